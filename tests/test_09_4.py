"""The caches, places and streams that notebook 09.4 teaches are right."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as library

from projects.llama3_qlora import KVCache, Llama, LlamaConfig
from projects.llama3_qlora.generate import Sampling, before_stop, filtered, generate
from tests.notebook_code import namespace
from utils import measure

CACHES = ["GrowingCache", "SlotCache", "ByteCache", "cache_bytes"]
WRITERS = ["as_batch", "write_naively", "write", "proposal", "write_guessing"]
PLACES = ["forward", "one", "two", "three", "four"]
OTHERS = ["operations", "read_in_chunks", "held", "until"]
SIZES = LlamaConfig(60, 32, 48, 3, 4, 2, max_positions=256)


@pytest.fixture(scope="module")
def taught():
    found = namespace("09.4", [*CACHES, *WRITERS, *PLACES, *OTHERS])
    found["session"] = SimpleNamespace(device="cpu")  # what the functions look up
    yield found
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Llama(SIZES).eval().requires_grad_(False)
    for weight in made.parameters():  # large enough that attention matters
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
    return made


def some_ids(count: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, (rows, count), generator=generator)


@pytest.mark.parametrize("size", [1, 5, 40])
@pytest.mark.parametrize("kind", ["growing", "slots", "package"])
def test_chunks_give_the_logits_of_the_whole(taught, model, kind, size):
    ids = some_ids(40, rows=2)
    cache = {
        "growing": lambda: taught["GrowingCache"](SIZES),
        "slots": lambda: taught["SlotCache"](SIZES, 40, 2),
        "package": lambda: KVCache(SIZES, 2, 40),
    }[kind]()
    logits = taught["read_in_chunks"](model, ids, cache, size)
    torch.testing.assert_close(logits, model(ids), rtol=1e-5, atol=1e-4)
    assert cache.length == 40


@pytest.mark.parametrize("seed", range(4))
def test_all_ways_to_write_agree(taught, model, seed):
    prompt = some_ids(12, seed=seed)[0].tolist()
    expected = prompt + generate(model, [prompt], 40)[0]
    assert taught["write_naively"](model, prompt, 40) == expected
    growing = taught["GrowingCache"](SIZES)
    assert taught["write"](model, prompt, 40, growing) == expected
    slots = taught["SlotCache"](SIZES, 52)
    assert taught["write"](model, prompt, 40, slots) == expected
    guessed, steps = taught["write_guessing"](model, prompt, 40)
    assert guessed == expected and steps <= 40


def test_guesses_that_are_right_save_steps(taught, model):
    prompt = some_ids(12)[0].tolist()
    taught["proposal"], honest = (
        (lambda ids: expected[len(ids) :][:4]),
        taught["proposal"],
    )
    expected = prompt + generate(model, [prompt], 40)[0]
    try:
        guessed, steps = taught["write_guessing"](model, prompt, 40)
    finally:
        taught["proposal"] = honest
    assert guessed == expected and steps == 8  # four guesses and one for free
    assert honest([1, 2, 3, 4, 1, 2]) == [3, 4, 1, 2] and honest([1, 2, 3]) == []


@pytest.mark.parametrize(
    ("name", "right"), [("one", True), ("two", False), ("three", False), ("four", 0)]
)
def test_only_one_way_to_place_a_chunk_is_right(taught, model, name, right):
    ids, cache = some_ids(24, rows=2), taught["SlotCache"](SIZES, 24, 2)
    parts = [
        taught["forward"](model, part, cache, *taught[name](cache.length, 8))
        for part in ids.split(8, 1)
    ]
    off = (torch.cat(parts, 1) - model(ids)).abs().max()
    assert (off < 1e-3) == bool(right)


def test_operations_equal_the_counter_of_pytorch(taught):
    config = transformers.LlamaConfig(
        **SIZES.to_hf(), attn_implementation="eager", use_cache=False
    )
    theirs = transformers.LlamaForCausalLM(config)
    for count in (1, 9, 50):
        counted = measure.count_flops(lambda n=count: theirs(some_ids(n)))
        assert counted == taught["operations"](SIZES, count)
    step, last = (taught["operations"](SIZES, 1, 9, n) for n in (1, 0))
    assert step - last == 2 * SIZES.hidden_size * SIZES.vocab_size


@pytest.mark.parametrize("batch", [1, 3])
def test_bytes_of_the_cache(taught, batch):
    cache = KVCache(SIZES, batch, 50)
    assert cache.n_bytes == taught["cache_bytes"](SIZES, 50, batch, number=4)


def test_cache_of_bytes_is_near(taught, model):
    ids = some_ids(40)
    exact = taught["GrowingCache"](SIZES)
    small = taught["ByteCache"](SIZES)
    for cache in (exact, small):
        taught["read_in_chunks"](model, ids, cache, 8)
    numbers, scale = small.pairs[0][0]
    assert numbers.dtype == torch.int8 and numbers.shape == exact.pairs[0][0].shape
    off = (numbers * scale - exact.pairs[0][0]).abs()
    assert (off <= scale / 2 + 1e-6).all()  # rounding, no more


JUDGES = {
    "temperature": (library.TemperatureLogitsWarper, st.floats(0.1, 5)),
    "top_k": (library.TopKLogitsWarper, st.integers(1, 40)),
    "top_p": (library.TopPLogitsWarper, st.floats(0.05, 0.99)),
    "min_p": (library.MinPLogitsWarper, st.floats(0.001, 0.99)),
}


@pytest.mark.parametrize("setting", JUDGES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_filters_equal_the_library(setting, data):
    warper, values = JUDGES[setting]
    value, seed = data.draw(values), data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 40, generator=generator, dtype=torch.float64)
    expected = warper(value)(None, logits).softmax(-1).float()
    package = filtered(logits, Sampling(**{"temperature": 1.0, setting: value}))
    torch.testing.assert_close(package.softmax(-1), expected)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.text("ab\n", max_size=4), max_size=6),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3),
)
def test_streams_stop_like_the_package_however_text_is_cut(taught, parts, stops):
    text = "".join(taught["until"](parts, stops))
    assert text == "".join(before_stop(parts, stops))
    assert text == "".join(taught["until"](["".join(parts)], stops))
    assert "".join(parts).startswith(text)
    assert not any(stop in text for stop in stops)


def test_what_may_begin_a_stop_string_is_held(taught):
    held = taught["held"]
    assert held("the end\n", ["\nQ:"]) == 1 and held("the end\nQ", ["\nQ:"]) == 2
    assert held("the end", ["\nQ:"]) == 0 and held("aab", ["abc", "bb"]) == 2
