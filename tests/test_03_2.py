"""What notebook 03.2 writes out: RoPE both ways, context strategies, caches, queue."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import (
    apply_rotary_pos_emb,
    rotate_half,
)

from projects.llama3_qlora.model import rotate, rotation
from tests.notebook_code import namespace

STRATEGIES = ["head", "retrieval"]
OTHERS = ["fill", "turn_complex", "timeouts", "replay", "Listener", "kinds"]
MORE = ["lookup", "suggest", "cascade", "disguise", "SCRIPTS", "byte_lengths", "clocks"]
CONSTANTS = ["MOST", "STYLES", "LENGTHS", "BLANK"]
NAMES = [*STRATEGIES, *OTHERS, *MORE, *CONSTANTS]


class Words:
    """A tokenizer whose tokens are characters, so that budgets can be counted."""

    encode = staticmethod(lambda text: [ord(c) for c in text])
    decode = staticmethod(lambda ids: "".join(map(chr, ids)))


@pytest.fixture(scope="module")
def taught():
    found = namespace("03.2", NAMES)
    found["tokenizer"] = Words
    return found


sentences = st.lists(
    st.text("abcdefg", min_size=3, max_size=9), min_size=1, max_size=12, unique=True
)
SAMPLE = ["ann likes red hats", "bob has a dog", "cid lives here", "dot sings"]


@settings(max_examples=50, deadline=None)
@given(told=sentences, budget=st.integers(10, 60))
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_keep_order_and_budget(taught, name, told, budget):
    kept = taught[name](told, "abc def", budget)
    assert sum(len(s) + 1 for s in kept) <= budget
    places = [told.index(s) for s in kept]
    assert places == sorted(set(places))


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_with_room_for_all_keep_all(taught, name):
    assert taught[name](SAMPLE, "who has a dog", 1_000) == SAMPLE


def test_each_strategy_keeps_what_it_says(taught):
    size = len(SAMPLE[1]) + 1
    assert taught["head"](SAMPLE, "", 20) == SAMPLE[:1]
    assert taught["retrieval"](SAMPLE, "who has dog", size) == SAMPLE[1:2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), half=st.integers(1, 32), time=st.integers(1, 40))
def test_complex_turns_are_real_turns(taught, seed, half, time):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, time, 2 * half, generator=generator)
    frequencies = 1 / 10_000 ** (torch.arange(half) / half)
    places = torch.arange(float(time))
    ours = taught["turn_complex"](x, frequencies, places)
    assert not ours.is_complex()
    torch.testing.assert_close(
        ours, rotate(x, rotation(frequencies, places, x.dtype)), atol=1e-5, rtol=1e-5
    )
    angles = torch.cat([places[:, None] * frequencies] * 2, -1)[None]
    theirs, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_quarter_turn_is_rotate_half(taught):
    x = torch.arange(8.0).view(1, 1, 1, 8)
    quarter = torch.full((4,), torch.pi / 2)
    turned = taught["turn_complex"](x, quarter, torch.ones(1))
    torch.testing.assert_close(turned, rotate_half(x), atol=1e-5, rtol=0)


def test_the_listener_sees_every_operation(taught):
    kinds = taught["kinds"]
    kinds.clear()
    with torch.no_grad(), taught["Listener"]():
        x = torch.ones(3) * 2
        torch.complex(x, x).abs().split(1)
    assert kinds["complex"] == 1 and kinds["real"] >= 6


def test_the_semantic_cache_takes_the_nearest_above_its_threshold(taught):
    angles = np.radians([0, 90, 10, 80, 45])
    similar = np.cos(angles[:, None] - angles)
    replay = taught["replay"]
    assert replay(similar, ["east", "north", "east", "north", "?"], 0.9) == (2, 0)
    assert replay(similar, ["east", "north", "north", "north", "?"], 0.9) == (2, 1)
    assert replay(similar, ["east", "north", "east", "north", "?"], 0.7) == (3, 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1.1))
def test_hits_of_the_semantic_cache(taught, seed, threshold):
    rng = np.random.default_rng(seed)
    truth = rng.integers(4, size=30)
    perfect = (truth[:, None] == truth).astype(float)
    hits, wrong = taught["replay"](perfect, truth, 1)
    assert (hits, wrong) == (30 - len(set(truth)), 0)
    hits, wrong = taught["replay"](rng.random((30, 30)), truth, threshold)
    assert 0 <= wrong <= hits <= 29
    assert taught["replay"](perfect, truth, 1.01) == (0, 0)


def test_timeouts_of_an_idle_and_of_a_hopeless_server(taught):
    timeouts = taught["timeouts"]
    assert timeouts(1, gap=1e6, patience=2, seed=0, count=500) == 0
    assert timeouts(3, gap=10, patience=2, seed=0, count=500) == 1
    shares = [timeouts(s, gap=1, patience=5, seed=0) for s in (0.3, 0.8, 1.5)]
    assert shares == sorted(shares) and shares[0] < 0.01 and shares[2] > 0.3


def test_disguise_changes_letters_only(taught):
    for script, size in (("Cyrillic", 2), ("Katakana", 3), ("Gothic", 4)):
        hidden = taught["disguise"]("a bad cab, 12", script)
        assert len(hidden) == 13 and hidden[-4:] == ", 12"
        assert set(taught["byte_lengths"](hidden)) == {size}


def test_all_styles_end_in_the_right_hour(taught):
    for style in taught["STYLES"]:
        for terms in taught["LENGTHS"]:
            generator = torch.Generator().manual_seed(terms)
            rows = taught["clocks"](style, terms, 20, generator)
            assert torch.equal(rows[:, -1], rows[:, :terms].sum(1) % 5)
            answer = rows.shape[1] - 7
            assert answer == (1 if style == "direct" else terms)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_cascade_lies_between_its_models(taught, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(3, size=(2, 50))
    confidence = rng.random(50)
    shares = []
    for gate in (0, 0.3, 0.7, 2):
        found, share = taught["cascade"](first, second, confidence, gate)
        shares.append(share)
        assert ((found == first) | (found == second)).all()
        assert share == pytest.approx((confidence < gate).mean())
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert (taught["cascade"](first, second, confidence, 2)[0] == second).all()


def test_the_lookup_counts(taught):
    table = taught["lookup"]([1, 2, 3, 1, 2, 3, 1, 2, 4], longest=2)
    assert table[1, 2] == (3, 2 / 4) and table[(3,)] == (1, 2 / 3)
    assert taught["suggest"](table, [9, 3, 1], longest=2) == (2, 3 / 4)
    assert taught["suggest"](table, [9, 9, 9], longest=2) == (0, 0.0)
