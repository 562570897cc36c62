"""What notebook 02.5 writes from scratch equals the library, for any sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace

BUILT = [
    "attention",
    "MultiHeadAttention",
    "as_torch",
    "masks",
    "leaks",
    "in_blocks",
    "sinusoids",
    "textbook_softmax",
    "stable_softmax",
    "Shape",
    "Block",
    "Transformer",
    "KVCache",
    "Recurrent",
    "set_fused",
    "sliding",
    "block_count",
    "NAMES",
    "SPOKEN",
    "spell",
]
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**16)


NB = namespace("02.5", BUILT)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(n=sizes, m=sizes, width=sizes, values=sizes, seed=seeds)
def test_attention_equals_the_library(n, m, width, values, seed):
    g = generator(seed)
    q, k = (torch.randn(2, 3, rows, width, generator=g) for rows in (n, m))
    v = torch.randn(2, 3, m, values, generator=g)
    mask = torch.rand(n, m, generator=g) < 0.5
    mask[:, 0] = True  # every query may look somewhere
    for given_mask in (None, mask):
        ours, weights = NB["attention"](q, k, v, given_mask)
        theirs = F.scaled_dot_product_attention(q, k, v, given_mask)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, n))
    assert (weights[..., ~mask] == 0).all()


def test_the_worked_example_has_the_published_numbers():
    q = torch.tensor([[1.0, 0, 2], [2, 2, 2], [2, 1, 3]])
    k = torch.tensor([[0.0, 1, 1], [4, 4, 0], [2, 3, 1]])
    v = torch.tensor([[1.0, 2, 3], [2, 8, 0], [2, 6, 3]])
    printed = NB["attention"](q, k, v, scale=1.0)[0][0]
    intended = NB["attention"](q, k, v)[0][0]
    expected = torch.tensor([[1.9366, 6.6831, 1.5951], [1.8639, 6.3194, 1.7042]])
    torch.testing.assert_close(
        torch.stack([printed, intended]), expected, atol=1e-4, rtol=0
    )


@settings(max_examples=15, deadline=None)
@given(heads=st.sampled_from([1, 2, 4]), time=sizes, other=sizes, seed=seeds)
def test_multi_head_attention_equals_the_library(heads, time, other, seed):
    torch.manual_seed(seed)
    ours = NB["MultiHeadAttention"](8, heads)
    theirs = NB["as_torch"](ours)
    x, memory = torch.randn(2, time, 8), torch.randn(2, other, 8)
    causal = torch.ones(time, time).tril() > 0
    for source, mask, forbidden in ((x, causal, ~causal), (memory, None, None)):
        output, weights = theirs(
            x, source, source, attn_mask=forbidden, average_attn_weights=False
        )
        torch.testing.assert_close(ours(x, source, mask), output)
        torch.testing.assert_close(ours.weights, weights)


def test_the_fused_kernel_gives_the_same_logits():
    torch.manual_seed(0)
    model = NB["Transformer"](NB["Shape"](vocab=20, context=16), causal=True)
    ids = torch.randint(1, 20, (3, 12))
    naive = model(ids)
    NB["set_fused"](model, True)
    torch.testing.assert_close(model(ids), naive)


@settings(max_examples=15, deadline=None)
@given(time=st.integers(2, 7), prefix=st.integers(1, 4), seed=seeds)
def test_nothing_leaks_through_a_mask(time, prefix, seed):
    torch.manual_seed(seed)
    layers = [NB["MultiHeadAttention"](8, 2) for _ in range(2)]
    x = torch.randn(1, time, 8)
    for mask in NB["masks"](time, prefix).values():
        assert not (NB["leaks"](layers, mask, x) & ~mask).any()


def test_the_leak_test_finds_a_leak():
    torch.manual_seed(0)
    layers = [NB["MultiHeadAttention"](8, 2)]
    mask = NB["masks"](5, 1)["causal"]
    faulty = mask.clone()
    faulty[1, 3] = True
    moved = NB["leaks"](layers, faulty, torch.randn(1, 5, 8))
    assert (moved & ~mask).nonzero().tolist() == [[1, 3]]


def test_blocks_equal_full_attention_under_a_block_mask():
    q, k, v = torch.randn(3, 2, 12, 8, generator=generator(0))
    block = torch.arange(12) // 4
    full = NB["attention"](q, k, v, block[:, None] == block)[0]
    torch.testing.assert_close(NB["in_blocks"](q, k, v, 4), full)


@settings(max_examples=30, deadline=None)
@given(x=st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=6))
def test_stable_softmax_is_the_librarys(x):
    x = torch.tensor(x)
    torch.testing.assert_close(NB["stable_softmax"](x), x.softmax(-1))


def test_the_textbook_softmax_overflows_above_88():
    assert NB["textbook_softmax"](torch.tensor([88.0, 0.0])).isfinite().all()
    assert NB["textbook_softmax"](torch.tensor([90.0, 0.0])).isnan().any()


@settings(max_examples=30, deadline=None)
@given(time=st.integers(1, 30), half=st.integers(1, 16))
def test_sinusoids_follow_the_formula(time, half):
    width = 2 * half
    waves = NB["sinusoids"](time, width)
    for p, i in ((0, 0), (time - 1, half - 1), (time // 2, half // 2)):
        angle = p / 10_000 ** (2 * i / width)
        found = waves[p, 2 * i : 2 * i + 2].tolist()
        assert found == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [5, 1, 3]])
def test_the_cache_changes_no_logit(norm, chunks):
    torch.manual_seed(0)
    shape = NB["Shape"](vocab=20, context=16, norm=norm)
    model, cache = NB["Transformer"](shape, causal=True), NB["KVCache"]()
    ids = torch.randint(1, 20, (2, 9))
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids))
    assert cache.length == 9


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("width", [8, 32])
def test_parameter_arithmetic(width, cross):
    block = NB["Block"](NB["Shape"](vocab=5, context=4, width=width), cross)
    counted = sum(p.numel() for p in block.parameters())
    assert counted == NB["block_count"](width, cross)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_the_librarys(norm):
    torch.manual_seed(0)
    block = NB["Block"](NB["Shape"](vocab=5, context=8, norm=norm))
    theirs = torch.nn.TransformerEncoderLayer(
        *(32, 4, 128, 0.0, F.gelu), batch_first=True, norm_first=norm == "pre"
    ).eval()
    theirs.self_attn = NB["as_torch"](block.attention)
    theirs.linear1, theirs.linear2 = block.up, block.down
    theirs.norm1, theirs.norm2 = block.norms
    x = torch.randn(2, 6, 32)
    torch.testing.assert_close(block(x), theirs(x))


def test_padding_does_not_change_an_encoder():
    torch.manual_seed(0)
    model = NB["Transformer"](NB["Shape"](vocab=20, context=16), causal=False)
    ids = torch.randint(1, 20, (2, 6))
    padded = F.pad(ids, (0, 4))
    torch.testing.assert_close(model(padded)[:, :6], model(ids))


@settings(max_examples=20, deadline=None)
@given(time=st.integers(1, 12), window=st.integers(1, 12))
def test_a_window_is_a_band_of_the_causal_mask(time, window):
    mask = NB["sliding"](time, window)
    assert mask.sum(1).tolist() == [min(i + 1, window) for i in range(time)]
    assert not mask.triu(1).any()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (7, "seven"),
        (20, "twenty"),
        (42, "forty two"),
        (100, "one hundred"),
        (219, "two hundred and nineteen"),
        (742, "seven hundred and forty two"),
    ],
)
def test_numbers_are_spelt(number, words):
    assert " ".join(NB["SPOKEN"][i] for i in NB["spell"](number)) == words
