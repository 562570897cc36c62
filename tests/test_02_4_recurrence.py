"""The cells and helpers that notebook 02.4 teaches, against PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.notebook_code import namespace
from utils import measure

NAMES = [
    *("Cell", "RNNCell", "LSTMCell", "GRUCell", "unroll", "copy_weights"),
    *("recurrent", "recall_batch", "PAD", "backwards", "last_notes", "packed_notes"),
    *("reserved_are_free", "same_batches", "devices", "matrix_flops", "stack_flops"),
    *("WindowMLP", "WordMLP", "recurrent_of", "of_size"),
]
KINDS = ["RNN", "LSTM", "GRU"]


@pytest.fixture(scope="module")
def book():
    return namespace("02.4", NAMES)


def twins(book, kind, inputs, hidden):
    """PyTorch's layer and our cell with the same weights."""
    layer = getattr(nn, kind)(inputs, hidden, batch_first=True)
    return layer, book["copy_weights"](book[f"{kind}Cell"](inputs, hidden), layer)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 4),
    time=st.integers(1, 12),
    inputs=st.integers(1, 5),
    hidden=st.integers(1, 6),
)
def test_cells_equal_pytorch(book, kind, batch, time, inputs, hidden):
    layer, cell = twins(book, kind, inputs, hidden)
    x = torch.randn(batch, time, inputs)
    torch.testing.assert_close(book["unroll"](cell, x), layer(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_pytorch(book, kind):
    layer, cell = twins(book, kind, 3, 5)
    x = torch.randn(2, 20, 3)
    layer(x)[0].square().sum().backward()
    book["unroll"](cell, x).square().sum().backward()
    torch.testing.assert_close(cell.read.weight.grad, layer.weight_ih_l0.grad)
    torch.testing.assert_close(cell.recall.weight.grad, layer.weight_hh_l0.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_does_not_change_the_past(book, kind):
    cell = book[f"{kind}Cell"](3, 4)
    x = torch.randn(2, 10, 3)
    changed = x.clone()
    changed[:, 6] += 1
    before, after = book["unroll"](cell, x), book["unroll"](cell, changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_forget_bias_opens_only_the_forget_gate(book):
    layer = book["recurrent"]("LSTM", 3, 4, forget_bias=3.0)
    assert (layer.bias_ih_l0[4:8] == 3).all()
    assert (layer.bias_ih_l0[:4].abs() <= 0.5).all()
    assert (layer.bias_ih_l0[8:].abs() <= 0.5).all()


@pytest.mark.parametrize("middle", [False, True])
def test_the_symbol_stands_lag_steps_from_the_end(book, middle):
    generator = torch.Generator().manual_seed(0)
    ids, symbol = book["recall_batch"](7, generator, middle=middle)
    assert ids.shape == (32, 15 if middle else 8)
    assert torch.equal(ids[:, -8], symbol)
    assert int((ids < 4).sum()) == len(ids)  # all else is noise


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_backwards_turns_words_and_leaves_padding(book, lengths):
    ids = nn.utils.rnn.pad_sequence(
        [torch.arange(1, n + 1) for n in lengths], batch_first=True
    )
    turned = book["backwards"](ids, torch.tensor(lengths))
    for row, n in zip(turned, lengths, strict=True):
        assert row[:n].tolist() == list(range(n, 0, -1))
        assert (row[n:] == book["PAD"]).all()


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_picking_the_last_word_equals_packing(book, kind):
    layer = nn.RNN(3, 5, batch_first=True) if kind == "RNN" else None
    layer = layer or nn.LSTM(3, 5, batch_first=True)
    x, lengths = torch.randn(4, 9, 3), torch.tensor([2, 9, 1, 5])
    picked = book["last_notes"](layer, x, lengths)
    torch.testing.assert_close(picked, book["packed_notes"](layer, x, lengths))


def test_reading_to_the_end_of_the_padding_is_something_else(book):
    layer, x = nn.LSTM(3, 5, batch_first=True), torch.randn(2, 9, 3)
    to_word = book["last_notes"](layer, x, torch.tensor([2, 3]))
    to_end = book["last_notes"](layer, x, torch.tensor([9, 9]))
    assert not torch.allclose(to_word, to_end)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_a_cell(book, kind):
    cell, x = book[f"{kind}Cell"](6, 7), torch.zeros(3, 5, 6)
    counted = measure.count_flops(lambda: book["unroll"](cell, x))
    assert counted == book["matrix_flops"](cell, 3, 5)


@pytest.mark.parametrize("directions", [1, 2])
def test_flops_of_a_stack_are_twice_its_matrix_weights(book, directions):
    layer = nn.LSTM(10, 6, num_layers=3, bidirectional=directions == 2)
    weights = sum(p.numel() for n, p in layer.named_parameters() if "weight" in n)
    assert book["stack_flops"](10, 6, 3, directions) == 2 * weights


def test_checks_fire_on_the_faults_and_only_on_them(book):
    free, same = book["reserved_are_free"], book["same_batches"]
    assert free({"a": 2, "b": 3}, (0, 1))
    assert not free({"a": 0, "b": 1}, (0, 2))
    assert not free({"a": 2, "b": 3}, (0, 0))
    rows = torch.arange(100)
    assert same([rows, rows])
    assert not same([rows, rows.flip(0).roll(7)])
    model = nn.Linear(2, 2)
    assert book["devices"](model, torch.zeros(1)) == {"cpu"}
    assert book["devices"](model, torch.zeros(1, device="meta")) == {"cpu", "meta"}


@pytest.mark.parametrize("time", [8, 64])
def test_networks_of_equal_size(book, time):
    builds = [book["WindowMLP"], book["WordMLP"], book["recurrent_of"]("LSTM")]
    for build in builds:
        size = measure.count_parameters(book["of_size"](build, time))
        assert abs(size - 40_000) < 0.04 * 40_000
