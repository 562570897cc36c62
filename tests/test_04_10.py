"""Notebook 04.10: pooling, ranks and the contrastive loss, against libraries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from tests.notebook_code import namespace

CODE = namespace("04.10", ["pool", "ranks", "recall", "cosine", "contrast"])


@pytest.mark.parametrize(
    ("how", "mode"),
    [("first", "cls"), ("mean", "mean"), ("max", "max"), ("last", "lasttoken")],
)
def test_pooling_equals_sentence_transformers(how: str, mode: str) -> None:
    library = pytest.importorskip(
        "sentence_transformers.models", reason="needs the extra retrieval"
    )
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 9, 16, generator=generator)
    lengths = torch.tensor([9, 1, 4, 7, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    layer = library.Pooling(16, pooling_mode=mode)
    features = {"token_embeddings": states.clone(), "attention_mask": mask}
    theirs = layer(features)["sentence_embedding"]
    torch.testing.assert_close(CODE["pool"](states, mask, how), theirs)


@pytest.mark.parametrize("how", ["first", "mean", "max", "last"])
def test_padding_does_not_count(how: str) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(1, 4, 8, generator=generator)
    padded = torch.cat([states, 100 * torch.ones(1, 3, 8)], 1)
    short, long = torch.ones(1, 4).long(), torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    expected = CODE["pool"](states, short, how)
    torch.testing.assert_close(CODE["pool"](padded, long, how), expected)


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_recall_is_top_k_accuracy_when_nothing_ties(seed: int, k: int) -> None:
    scores = np.random.default_rng(seed).random((12, 12))
    theirs = top_k_accuracy_score(np.arange(12), scores, k=k) if k < 12 else 1.0
    assert CODE["recall"](scores, k) == pytest.approx(theirs)


def test_ties_count_against_the_right_text() -> None:
    assert CODE["ranks"](np.zeros((3, 3))).tolist() == [3, 3, 3]


def test_cosine_equals_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (
        torch.randn(4, 6, generator=generator),
        torch.randn(5, 6, generator=generator),
    )
    theirs = torch.cosine_similarity(a[:, None], b[None], dim=-1)
    np.testing.assert_allclose(CODE["cosine"](a, b), theirs.numpy(), atol=1e-6)


def test_contrast_equals_the_library_loss() -> None:
    """MultipleNegativesRankingLoss of sentence-transformers is the same thing."""
    losses = pytest.importorskip(
        "sentence_transformers.losses", reason="needs the extra retrieval"
    )
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(6, 8, generator=generator) for _ in range(2))
    loss = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / 0.05)
    theirs = loss.compute_loss_from_embeddings([a, b], None)
    torch.testing.assert_close(CODE["contrast"](a, b), theirs)
