"""What notebook 02.3 writes by hand, against PyTorch, differences and known truths."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace

CBOW = ["initial", "forward", "loss", "gradient", "numerical", "worst_error"]
CBOW += ["autograd", "relu_on_gradient"]
SIMILARITY = ["cosines", "gap", "neighbours", "permutation_p", "analogy"]
SKIP_GRAM = ["split_words", "Corpus", "ppmi", "Word2Vec", "negative_sampling_loss"]
PERCEPTRON = ["MLP", "Published", "without_effect", "gradient_ratio", "SEED"]


@cache
def taught(*wanted: str) -> dict[str, Any]:
    """Definitions of the notebook by name."""
    return namespace("02.3", list(wanted))


def test_cbow_gradient_equals_finite_differences() -> None:
    code = taught(*CBOW)
    for seed in range(3):
        errors = code["worst_error"](code["gradient"], np.random.default_rng(seed))
        assert max(errors.values()) < 1e-8


def test_published_relu_is_caught_by_finite_differences() -> None:
    code = taught(*CBOW)
    errors = code["worst_error"](code["relu_on_gradient"], np.random.default_rng(0))
    assert errors["W1"] > 1e-3 and errors["b1"] > 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 9))
def test_cbow_gradient_equals_autograd(seed: int, size: int, width: int) -> None:
    code, rng = taught(*CBOW), np.random.default_rng(seed)
    p = code["initial"](size, width, rng)
    batch = rng.integers(size, size=(6, 4)), rng.integers(size, size=6)
    ours, theirs = code["gradient"](p, *batch), code["autograd"](p, *batch)
    for name in p:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 500))
def test_cbow_probabilities_sum_to_one_even_for_huge_scores(
    seed: int, scale: float
) -> None:
    code, rng = taught(*CBOW), np.random.default_rng(seed)
    p = {name: t * scale for name, t in code["initial"](9, 5, rng).items()}
    probabilities = code["forward"](p, rng.integers(9, size=(4, 2)))[2]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_published_batches_repeat_one_window_and_ours_do_not() -> None:
    code = dict(taught("published_batches", "random_batches", "distinct_examples"))
    rng = np.random.default_rng(0)
    code["published_batches"].__globals__.update(
        contexts=rng.integers(50, size=(400, 4)), targets=np.arange(400)
    )
    distinct = code["distinct_examples"]
    assert distinct(code["published_batches"](rng)) == 1
    assert distinct(code["random_batches"](rng)) > 200


def test_adam_equals_pytorch() -> None:
    code = taught("adam", *CBOW)
    rng = np.random.default_rng(0)
    ours = code["initial"](8, 3, rng)
    theirs = {n: torch.tensor(t, requires_grad=True) for n, t in ours.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=0.01, betas=(0.9, 0.99))
    batch = rng.integers(8, size=(5, 4)), rng.integers(8, size=5)
    for _ in range(5):
        hidden = torch.relu(theirs["W1"][batch[0]].mean(1) + theirs["b1"])
        scores = hidden @ theirs["W2"] + theirs["b2"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.tensor(batch[1])).backward()
        optimizer.step()
    code["adam"](ours, iter([batch] * 5), 5, gradient=code["gradient"])
    for name, table in theirs.items():
        np.testing.assert_allclose(ours[name], table.detach().numpy(), atol=1e-9)


def test_word2vec_gradient_equals_finite_differences() -> None:
    code = taught(*SKIP_GRAM)
    torch.manual_seed(0)
    model = code["Word2Vec"](7, 3).double()
    torch.nn.init.normal_(model.guessed.weight)
    batch = torch.tensor([[1, 2, 7], [4, 7, 7]]), torch.tensor([[3, 0, 5], [2, 6, 6]])
    code["negative_sampling_loss"](model, batch).backward()
    for table in (model.known.weight, model.guessed.weight):
        for place in np.ndindex(7, 3):  # the padding row is no parameter
            kept, sides = table.data[place].item(), []
            for nudge in (1e-6, -1e-6):
                table.data[place] = kept + nudge
                sides.append(code["negative_sampling_loss"](model, batch).item())
            table.data[place] = kept
            slope = (sides[0] - sides[1]) / 2e-6
            assert table.grad[place].item() == pytest.approx(slope, abs=1e-8)


def test_padding_does_not_change_a_mean() -> None:
    model = taught(*SKIP_GRAM)["Word2Vec"](7, 3)
    torch.nn.init.normal_(model.guessed.weight)
    asked = torch.tensor([[0, 1]])
    short = model(torch.tensor([[2, 3]]), asked)
    torch.testing.assert_close(model(torch.tensor([[7, 2, 3, 7]]), asked), short)


def test_windows_stay_within_their_sentence() -> None:
    corpus = taught(*SKIP_GRAM)["Corpus"](
        [["a", "b", "c"], ["d", "e"]], window=2, least=1
    )
    known, guessed = corpus.skip_gram()
    pairs = {
        corpus.words[k] + corpus.words[g]
        for k, g in zip(known[:, 0], guessed, strict=True)
    }
    assert pairs == {"ab", "ba", "ac", "ca", "bc", "cb", "de", "ed"}


def test_ppmi_of_independent_words_is_zero_and_of_pairs_is_not() -> None:
    code = taught(*SKIP_GRAM)
    corpus = code["Corpus"]([["a", "b"], ["c", "d"]] * 20, window=1)
    table = code["ppmi"](corpus)
    a, b, c = (corpus.index[word] for word in "abc")
    assert table[a, b] > 1 and table[a, c] == 0 and (table >= 0).all()


def test_similarity_scores_know_the_two_extremes() -> None:
    code, labels = taught(*SIMILARITY), np.repeat([0, 1, 2], 8)
    rng = np.random.default_rng(0)
    clustered = np.eye(3)[labels] + rng.normal(0, 0.01, (24, 3))
    cosine = code["cosines"](clustered)
    assert code["gap"](cosine, labels) == pytest.approx(1, abs=0.05)
    assert code["neighbours"](cosine, labels) == 1
    assert code["permutation_p"](cosine, labels, rng, 99) == 0.01
    noise = code["cosines"](rng.normal(size=(24, 16)))
    assert abs(code["gap"](noise, labels)) < 0.1


def test_permutation_p_is_fair_without_structure() -> None:
    code, rng = taught(*SIMILARITY), np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 4)
    ps = [
        code["permutation_p"](
            code["cosines"](rng.normal(size=(12, 8))), labels, rng, 39
        )
        for _ in range(150)
    ]
    assert 0.4 < np.mean(ps) < 0.6 and np.mean(np.array(ps) <= 0.05) < 0.12


def test_analogy_rank_with_and_without_the_inputs() -> None:
    unit = np.array([[1, 0.0], [1, 0.1], [0, 1], [0.2, 1], [0.1, 1]])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    excluded, allowed, is_input = taught(*SIMILARITY)["analogy"](unit, 0, 1, 2, 3)
    assert (excluded, allowed, bool(is_input)) == (2, 3, True)


def test_mlp_equals_the_same_layers_by_hand() -> None:
    torch.manual_seed(0)
    model = taught(*PERCEPTRON)["MLP"](4, 6, 3, layers=2, activation=torch.nn.Tanh)
    x = torch.randn(5, 4)
    first, _, second, _, last = model.layers
    hidden = torch.tanh(x @ first.weight.T + first.bias)
    hidden = torch.tanh(hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)


def test_vanishing_is_caught_in_the_published_mlp_only() -> None:
    code = taught(*PERCEPTRON)
    assert code["gradient_ratio"](code["Published"](8, 32, 3, 16)) < 1e-3
    assert code["gradient_ratio"](code["MLP"](8, 32, 3, 2)) > 1e-2


def test_a_gate_is_a_product_of_two_halves() -> None:
    gate = taught("Gate")["Gate"](torch.nn.functional.silu)
    x = torch.randn(3, 8)
    expected = x[:, :4] * x[:, 4:] * torch.sigmoid(x[:, 4:])
    torch.testing.assert_close(gate(x), expected)
