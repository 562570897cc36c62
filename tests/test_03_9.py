"""The indexes that notebook 03.9 teaches find what FAISS finds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace

faiss = pytest.importorskip("faiss", reason="needs the extra operations")
rank_bm25 = pytest.importorskip("rank_bm25", reason="needs the extra retrieval")

GRAPH = ["Graph", "walk", "diverse", "connect", "insert", "search_graph"]
OTHERS = ["nearest", "unit", "euclidean", "recall", "k_means", "signatures"]
WORDS = ["differing", "words_of", "bm25", "Positive", "fused"]


@pytest.fixture(scope="module")
def taught():
    return namespace("03.9", [*GRAPH, *OTHERS, *WORDS])


def some(count: int, seed: int, hidden: int = 16) -> np.ndarray:
    """Unit vectors in clumps, so that near things have near neighbours."""
    rng = np.random.default_rng(seed)
    clumps = rng.standard_normal((count // 10 + 1, hidden))
    vectors = clumps[rng.integers(len(clumps), size=count)]
    vectors = vectors + 0.4 * rng.standard_normal((count, hidden))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def built(taught, vectors, seed=0, **options):
    graph, rng = taught["Graph"](vectors), np.random.default_rng(seed)
    graph.links = [{0: []}]
    for node in range(1, len(vectors)):
        taught["insert"](graph, node, rng, **options)
    return graph


def test_the_graph_finds_as_much_as_the_librarys(taught) -> None:
    vectors, queries = some(2_000, 0), some(2_100, 0)[2_000:]
    truth = taught["nearest"](queries @ vectors.T)
    graph = built(taught, vectors, most=8, width=40)
    theirs = faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT)
    theirs.hnsw.efConstruction = 40
    theirs.add(vectors)
    for width in (10, 40, 160):
        theirs.hnsw.efSearch = width
        ours = [taught["search_graph"](graph, q, width) for q in queries]
        hits = taught["recall"](ours, truth).mean()
        assert (
            hits > taught["recall"](theirs.search(queries, 10)[1], truth).mean() - 0.05
        )
    assert hits > 0.9


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 60), seed=st.integers(0, 1_000))
def test_links_go_to_others_and_stay_within_bounds(taught, count, seed) -> None:
    graph = built(taught, some(count, seed), seed, most=4, width=10)
    assert set(graph.links[0]) == set(range(count))
    for layer, links in enumerate(graph.links):
        for node, friends in links.items():
            assert node not in friends and len(friends) == len({*friends})
            assert len(friends) <= (4 if layer else 8)
            assert {*friends} <= set(links)


def test_one_vector_can_be_searched(taught) -> None:
    vectors = some(1, 0)
    assert taught["search_graph"](built(taught, vectors), vectors[0], 10) == [0]


def test_bits_that_differ_are_the_librarys(taught) -> None:
    vectors, rng = some(300, 1), np.random.default_rng(1)
    planes = rng.standard_normal((64, 16))
    codes = taught["signatures"](vectors, planes)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    theirs = index.search(codes[:5], 300)[0]
    ours = [np.sort(taught["differing"](code, codes)) for code in codes[:5]]
    assert (theirs == np.array(ours)).all()


def test_centres_are_better_than_random_ones(taught) -> None:
    vectors = some(1_000, 2)
    centres = taught["k_means"](vectors, 20)
    drawn = vectors[np.random.default_rng(0).choice(1_000, 20, replace=False)]
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    close = [(vectors @ c.T).max(axis=1).mean() for c in (centres, drawn)]
    assert close[0] > close[1]


def test_distances_agree_on_unit_vectors(taught) -> None:
    vectors, queries = some(200, 3), some(220, 3)[200:]
    by_angle = taught["nearest"](queries @ vectors.T)
    by_distance = taught["nearest"](taught["euclidean"](queries, vectors))
    assert (by_angle == by_distance).mean() > 0.99
    raw = taught["euclidean"](queries, vectors)
    exact = -((queries[:, None] - vectors) ** 2).sum(-1)
    assert np.allclose(raw, exact, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("abc ", min_size=1), min_size=1, max_size=8),
    st.text("abcd ", min_size=1),
)
def test_bm25_is_the_librarys(taught, documents, query) -> None:
    documents = [*documents, "a b c"]  # the library divides by the mean length
    split = [taught["words_of"](d) for d in documents]
    theirs = taught["Positive"](split).get_scores(taught["words_of"](query))
    assert np.allclose(taught["bm25"](query, documents), theirs)


def test_fusion_prefers_what_both_like(taught) -> None:
    fused = taught["fused"](np.array([3.0, 2.0, 1.0]), np.array([1.0, 3.0, 2.0]))
    assert fused.argmax() == 1
    assert math.isclose(fused[0], 1 / 61 + 1 / 63)
