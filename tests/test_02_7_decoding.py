"""The decoders that notebook 02.7 teaches are those of transformers."""

import json
import math
import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as library

from tests.notebook_code import namespace

FILTER_NAMES = ["temperature", "cut", "top_k", "top_p", "min_p", "typical", "chain"]
PENALTIES = ["occurrences", "presence", "frequency", "repetition"]
AUTOMATON = ["NOTHING", "DONE", "chars", "then", "either", "may_stop", "derive"]
OTHERS = ["draw", "beam_search", "distinct", "longest_repeat", "total_variation"]
NAMES = [*FILTER_NAMES, *PENALTIES, *AUTOMATON, "follow", *OTHERS, "safe"]
END = 0


@pytest.fixture(scope="module")
def taught():
    return namespace("02.7", NAMES)


def some_logits(seed: int, rows: int = 4, vocab: int = 40, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=END,
    )
    return transformers.LlamaForCausalLM(config).eval()


FILTERS = {
    "temperature": (library.TemperatureLogitsWarper, st.floats(0.1, 5)),
    "top_k": (library.TopKLogitsWarper, st.integers(1, 60)),
    "top_p": (library.TopPLogitsWarper, st.floats(0.05, 0.99)),
    "min_p": (library.MinPLogitsWarper, st.floats(0.001, 0.99)),
    "typical": (library.TypicalLogitsWarper, st.floats(0.05, 0.99)),
}


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_filters_equal_the_library(taught, name, data):
    theirs, values = FILTERS[name]
    value = data.draw(values)
    logits = some_logits(data.draw(st.integers(0, 10_000)))
    ours = taught[name](value)(None, logits)
    torch.testing.assert_close(ours, theirs(value)(None, logits))
    torch.testing.assert_close(ours.softmax(-1).sum(-1), torch.ones(4).double())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(1.01, 3))
def test_repetition_penalty_equals_the_library(taught, seed, strength):
    logits = some_logits(seed)
    ids = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(seed))
    theirs = library.RepetitionPenaltyLogitsProcessor(strength)(ids, logits.clone())
    torch.testing.assert_close(taught["repetition"](strength)(ids, logits), theirs)


def test_presence_once_and_frequency_per_count(taught):
    ids, logits = torch.tensor([[1, 2, 2, 2]]), torch.zeros(1, 4)
    assert taught["presence"](0.5)(ids, logits).tolist() == [[0, -0.5, -0.5, 0]]
    assert taught["frequency"](0.5)(ids, logits).tolist() == [[0, -0.5, -1.5, 0]]


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_top_p_keeps_the_fewest_that_reach_p(taught, p):
    logits = some_logits(1)
    kept = taught["top_p"](p)(None, logits).isfinite()
    for q, keep in zip(logits.softmax(-1), kept, strict=True):
        assert q[keep].sum() >= p
        assert q[keep].sum() - q[keep].min() < p
        assert q[keep].min() >= q[~keep].max()


def test_cold_is_greedy_and_one_changes_nothing(taught):
    logits = some_logits(2)
    cold = taught["temperature"](1e-3)(None, logits).softmax(-1)
    assert torch.equal(cold.max(-1)[0].round(decimals=6), torch.ones(4).double())
    assert torch.equal(cold.argmax(-1), logits.argmax(-1))
    assert torch.equal(taught["temperature"](1.0)(None, logits), logits)


def test_draw_takes_tokens_as_often_as_their_probability(taught):
    q = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    u = (torch.arange(10_000).double() + 0.5) / 10_000
    ids = taught["draw"](q.expand(10_000, 6), u)
    counts = torch.bincount(ids, minlength=6) / 10_000
    torch.testing.assert_close(counts, q, atol=2e-4, rtol=0)
    first_and_last = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    ends = taught["draw"](q.expand(2, 6), first_and_last)
    assert ends.tolist() == [1, 4]  # never a token without probability


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search_with_an_end_equals_generate(taught, tiny_model, width, penalty):
    @torch.no_grad()
    def log_probs(ids):
        return tiny_model(ids).logits[:, -1].log_softmax(-1)

    for first in range(1, 6):
        prompt = [first, 3]
        _, ids = taught["beam_search"](log_probs, prompt, width, 7, END, penalty)
        theirs = tiny_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 2, dtype=torch.long),
            do_sample=False,
            num_beams=width,
            max_new_tokens=7,
            eos_token_id=END,
            length_penalty=penalty,
            early_stopping="never" if width > 1 else False,
        )[0].tolist()
        if width == 1:  # the library's greedy search stops at the first end
            assert ids[: len(theirs)] == theirs or END in ids
        else:
            assert ids == theirs[: len(ids)]
            assert set(theirs[len(ids) :]) <= {END}


def test_wide_beam_finds_the_optimum(taught):
    table = some_logits(3, 4, 4).log_softmax(-1)
    paths = torch.cartesian_prod(*[torch.arange(4)] * 4)
    full = torch.nn.functional.pad(paths, (1, 0))
    best = table[full[:, :-1], full[:, 1:]].sum(1).max()
    score, _ = taught["beam_search"](lambda ids: table[ids[:, -1]], [0], 64, 4)
    assert math.isclose(score, best, abs_tol=1e-5)


def test_repetition_measures(taught):
    assert taught["distinct"]([[1, 2, 1, 2, 1]]) == 0.5
    assert taught["distinct"]([[1, 2], [1, 2]]) == 0.5  # over all rows
    assert taught["longest_repeat"]([5, 1, 2, 3, 9, 1, 2, 3]) == 3
    assert taught["longest_repeat"]([1, 1, 1, 1]) == 3  # the spans may overlap
    assert taught["longest_repeat"]([1, 2, 3]) == 0


def test_order_of_temperature_and_top_p(taught):
    heat, nucleus = taught["temperature"](2.0), taught["top_p"](0.8)
    logits = some_logits(4)
    one = taught["chain"](heat, nucleus)(logits).softmax(-1)
    two = taught["chain"](nucleus, heat)(logits).softmax(-1)
    assert taught["total_variation"](one, two).min() > 0.01
    assert taught["total_variation"](one, one).max() == 0


@settings(max_examples=200, deadline=None)
@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=4))
def test_streaming_never_takes_anything_back(taught, text, stop):
    shown = ""
    for n in range(len(text) + 1):
        step = taught["safe"](text[:n], stop)
        assert step.startswith(shown)
        shown = step
    if stop in text:
        assert shown == text[: text.index(stop)]
    else:
        assert text.startswith(shown) and len(text) - len(shown) < len(stop)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=7))
def test_automaton_agrees_with_re(taught, text):
    chars, then, either = taught["chars"], taught["then"], taught["either"]
    expression = then(
        "a", either(chars("bc"), taught["DONE"]), either(then("ca"), then("cb"))
    )
    pattern = re.compile("a[bc]?(?:ca|cb)")
    state = taught["follow"](expression, text)
    assert taught["may_stop"](state) == bool(pattern.fullmatch(text))
    words = ["aca", "acb", "abca", "abcb", "acca", "accb"]
    alive = any(word.startswith(text) for word in words)
    assert (state != taught["NOTHING"]) == alive


def test_real_records_match_the_form_of_json(taught):
    digits = taught["chars"]("0123456789")
    form = taught["then"]('{"age": ', digits, digits, "}")
    for age in (18, 40, 99):
        text = json.dumps({"age": age})
        assert taught["may_stop"](taught["follow"](form, text))
        assert taught["follow"](form, text[1:]) == taught["NOTHING"]
