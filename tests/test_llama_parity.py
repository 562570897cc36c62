"""Our Llama against transformers' on the same random weights, in every way of reading a
text; generation against its `generate` and its logits warpers.

The weights are large enough for logits of ordinary size (deviation 1) and for
attention that looks somewhere: with the small weights of a fresh model nearly any fault
would pass.
"""

import random
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.generation import logits_process as warpers

from projects.llama3_qlora import (
    KVCache,
    Llama,
    LlamaConfig,
    RopeScaling,
    Sampling,
    generate,
)
from projects.llama3_qlora.generate import before_stop, filtered, stream, tokens
from projects.llama3_qlora.model import rope_frequencies
from projects.llama3_qlora.tokenizer import Tokenizer
from projects.llama3_qlora.vocabulary import SPECIAL_TOKENS
from utils.runtime import Problem

LOGITS = {"atol": 1e-5, "rtol": 0}
DRAWS = range(10)
LONG_DRAWS = range(10, 13)  # 2,048 tokens, past the length that scaling starts from


def drawn(seed):
    """A configuration and a length, both random."""
    r = random.Random(seed)
    n_kv_heads, group = r.choice([1, 2, 3]), r.choice([1, 2, 4])
    n_heads = n_kv_heads * group
    length = 2048 if seed in LONG_DRAWS else int(8 * 2 ** r.uniform(0, 5))
    scaling = RopeScaling(r.choice([2.0, 8.0, 32.0]), 1.0, 4.0, r.choice([64, 256]))
    config = LlamaConfig(
        vocab_size=r.randint(50, 300),
        hidden_size=n_heads * r.choice([8, 12, 16]),
        intermediate_size=r.randint(40, 150),
        n_layers=r.randint(1, 3),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=r.choice([6, 8, 16, 22]),
        max_positions=4096,
        norm_eps=r.choice([1e-5, 1e-6]),
        rope_theta=r.choice([1e4, 5e5]),
        rope_scaling=r.choice([None, scaling]) if length < 2048 else scaling,
        tie_embeddings=r.choice([False, True]),
    )
    return config, length


def pair(config, seed=0):
    """The same weights in our model and in transformers'."""
    generator = torch.Generator().manual_seed(seed)
    ours = Llama(config).eval()
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            weight.normal_(generator=generator)
            if weight.dim() == 1:
                weight.mul_(0.1).add_(1)
            elif name.startswith(("lm_head", "model.embed")):
                weight.mul_(config.hidden_size**-0.5)
            else:
                weight.mul_(weight.shape[1] ** -0.5)
    theirs = transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(**config.to_hf()), attn_implementation="sdpa"
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def ids_for(config, *shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, shape, generator=generator)


@pytest.fixture(scope="module")
def small():
    config = LlamaConfig(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=100,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        max_positions=256,
    )
    return pair(config)


# --- one whole text


@pytest.mark.parametrize("seed", [*DRAWS, *LONG_DRAWS])
def test_logits_and_gradients(seed):
    config, length = drawn(seed)
    ours, theirs = pair(config, seed)
    ids = ids_for(config, 2 if length < 2048 else 1, length)
    logits, expected = ours(ids), theirs(ids).logits
    assert 0.5 < expected.std() < 2
    assert_close(logits, expected, **LOGITS)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    theirs(ids, labels=ids).loss.backward()
    wanted = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        reference = wanted[name].grad
        assert (weight.grad - reference).norm() <= 1e-4 * reference.norm(), name


def test_the_draws_cover_the_matrix():
    configs = [drawn(seed)[0] for seed in DRAWS]
    assert {c.tie_embeddings for c in configs} == {False, True}
    assert {c.rope_scaling is None for c in configs} == {False, True}
    assert {c.n_kv_heads == c.n_heads for c in configs} == {False, True}
    assert any(c.n_kv_heads == 1 < c.n_heads for c in configs)
    assert any(c.head_dim * c.n_heads != c.hidden_size for c in configs)


@pytest.mark.parametrize("seed", DRAWS)
def test_bfloat16_is_no_less_exact_than_theirs(seed):
    config, length = drawn(seed)
    ours, theirs = pair(config, seed)
    ids = ids_for(config, 1, length)
    with torch.inference_mode():
        exact = theirs(ids).logits
        logits = ours.bfloat16()(ids)
        expected = theirs.bfloat16()(ids).logits
    assert logits.dtype == torch.bfloat16
    error, allowed = (logits - exact).std(), (expected - exact).std()
    assert 1e-3 < error < 1.5 * allowed
    assert_close(logits, expected, atol=30 * allowed.item(), rtol=0)


# --- the same text in pieces: each compared with what transformers says of the whole


@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("how", ["token by token", "in chunks", "prompt, then tokens"])
@torch.inference_mode()
def test_cached(seed, how):
    config, length = drawn(seed)
    length = min(length, 70)
    ours, theirs = pair(config, seed)
    ids = ids_for(config, 2, length)
    cuts = {
        "token by token": range(length + 1),
        "in chunks": [
            0,
            *sorted(random.Random(seed).sample(range(1, length), 4)),
            length,
        ],
        "prompt, then tokens": [0, *range(length // 2, length + 1)],
    }[how]
    cache = KVCache(config, 2, length)
    read = [ours(ids[:, a:b], cache) for a, b in pairwise(cuts)]
    assert cache.length == length
    assert_close(torch.cat(read, 1), theirs(ids).logits, **LOGITS)


@pytest.mark.parametrize("seed", DRAWS)
@torch.inference_mode()
def test_left_padded_batch(seed):
    config, length = drawn(seed)
    length = min(length, 70)
    ours, theirs = pair(config, seed)
    ids = ids_for(config, 3, length)
    padding = torch.tensor([0, length // 3, length - 3])
    expected = [
        theirs(row[None, p:]).logits[0] for row, p in zip(ids, padding, strict=True)
    ]
    cache = KVCache(config, 3, length)
    pieces = [ours(ids[:, :-2], cache, padding)]
    pieces += [ours(ids[:, -2:-1], cache), ours(ids[:, -1:], cache)]  # padding is kept
    for logits in (ours(ids, padding=padding), torch.cat(pieces, 1)):
        assert logits.isfinite().all()
        for row, p, wanted in zip(logits, padding, expected, strict=True):
            assert_close(row[p:], wanted, **LOGITS)


@pytest.mark.parametrize("seed", DRAWS)
@torch.inference_mode()
def test_packed_documents_do_not_see_each_other(seed):
    config, _ = drawn(seed)
    ours, theirs = pair(config, seed)
    ids = ids_for(config, 2, 40)
    sizes = [[7, 1, 20, 12], [25, 15]]
    documents = torch.stack(
        [torch.arange(len(s)).repeat_interleave(torch.tensor(s)) for s in sizes]
    )
    logits = ours(ids, documents=documents)
    for row, result, size in zip(ids, logits, sizes, strict=True):
        alone = [theirs(part[None]).logits[0] for part in row.split(size)]
        assert_close(result, torch.cat(alone), **LOGITS)


@torch.inference_mode()
def test_tokens_taken_back(small):
    ours, theirs = small
    ids, other = ids_for(ours.config, 2, 30), ids_for(ours.config, 2, 30, seed=2)
    cache = KVCache(ours.config, 2, 30)
    ours(ids, cache)
    cache.length = 12
    read = ours(other[:, 12:], cache)
    text = torch.cat([ids[:, :12], other[:, 12:]], 1)
    assert_close(read, theirs(text).logits[:, 12:], **LOGITS)
    fresh = KVCache(ours.config, 2, 30)
    ours(text[:, :12], fresh)
    assert_close(read, ours(text[:, 12:], fresh), **LOGITS)


# --- positions past 8,192

LLAMA_3_1 = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    max_positions=131_072,
    rope_scaling=RopeScaling(),
)


def test_frequencies_are_theirs():
    for factor, theta, head_dim in [(8.0, 5e5, 128), (32.0, 5e5, 64), (8.0, 1e4, 16)]:
        sizes = {"vocab_size": 8, "hidden_size": 2 * head_dim, "intermediate_size": 8}
        heads = {"n_layers": 1, "n_heads": 2, "rope_theta": theta}
        config = LlamaConfig(**sizes, **heads, rope_scaling=RopeScaling(factor))
        rotary = pair(config)[1].model.rotary_emb
        assert torch.equal(rope_frequencies(config), rotary.inv_freq)


@torch.inference_mode()
def test_a_text_of_9000_tokens():
    ours, theirs = pair(LLAMA_3_1)
    ids = ids_for(LLAMA_3_1, 1, 9000)
    expected = theirs(ids, logits_to_keep=300).logits
    hidden = ours.model(ids)
    assert_close(ours.lm_head(hidden[:, -300:]), expected, **LOGITS)


@torch.inference_mode()
def test_tokens_after_100_000_others():
    """Both caches are filled with the same random keys and values."""
    ours, theirs = pair(LLAMA_3_1)
    ids, length = ids_for(LLAMA_3_1, 1, 4), 100_000
    cache = KVCache(LLAMA_3_1, 1, length + 4)
    cache.keys.normal_(generator=torch.manual_seed(3))
    cache.values.normal_(generator=torch.manual_seed(4))
    cache.length = length
    past = transformers.DynamicCache(config=theirs.config)
    past.update(cache.keys[0, :, :, :length], cache.values[0, :, :, :length], 0)
    expected = theirs(ids, past_key_values=past).logits
    assert_close(ours(ids, cache), expected, **LOGITS)


# --- generation


def without_cache(model, prompt, count):
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_greedy_text_is_the_same_in_every_way(small):
    ours, theirs = small
    prompts = [ids_for(ours.config, n, seed=n).tolist() for n in (1, 5, 17, 40)]
    alone = [generate(ours, [prompt], 60)[0] for prompt in prompts]
    assert [len(text) for text in alone] == [60] * 4
    assert len(set(map(tuple, alone))) == 4
    assert generate(ours, prompts, 60) == alone
    assert generate(ours, prompts[::-1], 60) == alone[::-1]
    assert [without_cache(ours, prompt, 60) for prompt in prompts] == alone
    for prompt, text in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        out = theirs.generate(ids, max_new_tokens=60, do_sample=False, **options)
        assert out[0, len(prompt) :].tolist() == text


def test_each_row_ends_at_its_stop_token(small):
    model, _ = small
    prompts = [[3, 1], [4, 1, 5], [9]]
    texts = generate(model, prompts, 50)
    stop = {texts[0][7], texts[1][20]}
    ended = generate(model, prompts, 50, stop_ids=stop)
    for text, short in zip(texts, ended, strict=True):
        cut = next((i for i, token in enumerate(text) if token in stop), 50)
        assert short == text[:cut]
    assert len(ended[0]) <= 7 and len(ended[1]) <= 20


def test_the_last_token_is_not_read(small):
    model, _ = small
    assert len(generate(model, [[1] * 250], 7)[0]) == 7  # 250 + 6 are all it has


def test_a_seed_gives_its_text(small):
    model, _ = small
    sampling = [Sampling(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    texts = [generate(model, [[1, 2, 3], [5]], 30, s) for s in sampling]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_probabilities(small):
    model, theirs = small
    sampling = Sampling(temperature=0.7, top_k=5, seed=3)
    drawn = torch.stack(list(tokens(model, [[1, 2, 3]] * 20_000, 1, sampling)))
    with torch.inference_mode():
        logits = theirs(torch.tensor([[1, 2, 3]])).logits[:, -1] / 0.7
    top = logits.topk(5)
    shares = (drawn[0] == top.indices.T).float().mean(1)
    assert_close(shares, top.values.softmax(-1)[0], atol=0.02, rtol=0)


FILTERS = [
    Sampling(temperature=0.5),
    Sampling(temperature=2.0, top_k=7),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
    Sampling(temperature=0.3, top_k=1),
    Sampling(temperature=1.0, top_k=500, top_p=0.01),
]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_filters_are_theirs(sampling):
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(500, 1, generator=generator) * 5
    logits = torch.randn(500, 100, generator=generator) * spread
    expected = warpers.TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        expected = warpers.TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = warpers.TopPLogitsWarper(sampling.top_p)(None, expected)
    if sampling.min_p:
        expected = warpers.MinPLogitsWarper(sampling.min_p)(None, expected)
    assert_close(filtered(logits, sampling).softmax(-1), expected.softmax(-1))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    st.floats(1e-6, 100),
    st.integers(0, 30),
    st.floats(1e-6, 1),
    st.floats(0, 1),
)
def test_filters_never_drop_the_likeliest(values, temperature, top_k, top_p, min_p):
    logits = torch.tensor([values, values[::-1]])
    kept = filtered(logits, Sampling(temperature, top_k, top_p, min_p))
    assert kept.softmax(-1).isfinite().all()
    # of equals any may stay; what stays is still the likeliest, which stands at 0
    assert kept.amax(-1).tolist() == [0, 0]


# --- text as it comes

TEXT = "The llama 🦙 naïvely ate 12 déjà-vu cafés; the rest is 沈黙. " * 30


@pytest.fixture(scope="module")
def talker():
    tokenizer = Tokenizer.train([TEXT], 256 + len(SPECIAL_TOKENS) + 20)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        n_layers=1,
        n_heads=2,
        max_positions=400,
    )
    return pair(config)[0], tokenizer


def says(monkeypatch, ids):
    """Let the model's tokens be these."""
    module = sys.modules["projects.llama3_qlora.generate"]
    monkeypatch.setattr(module, "tokens", lambda *_: (torch.tensor([i]) for i in ids))


def test_stream_gives_the_text_of_generate(talker):
    model, tokenizer = talker
    prompt = tokenizer.encode("The llama", bos=True)
    sampling = Sampling(temperature=1.0, seed=1)
    ids = generate(model, [prompt], 200, sampling, tokenizer.stop_ids)[0]
    pieces = list(stream(model, tokenizer, prompt, 200, sampling))
    assert "".join(pieces) == tokenizer.decode(ids) != ""
    text = "".join(pieces)
    stop = text[len(text) // 2 :][:3]
    short = "".join(stream(model, tokenizer, prompt, 200, sampling, [stop]))
    assert short == text[: text.index(stop)]


def test_stream_gives_no_half_characters(talker, monkeypatch):
    model, tokenizer = talker
    llamas = "🦙沈黙 é🦙"
    ids = [i for c in llamas.encode() for i in range(256) if byte(tokenizer, i, c)]
    assert len(ids) == len(llamas.encode())  # one byte at a time: the hardest case
    says(monkeypatch, ids)
    pieces = list(stream(model, tokenizer, [1], 99))
    assert pieces == list(llamas)
    # "黙 " could become "黙 x": it waits until "é" says that it does not
    stop = ["黙 x", "é🦙"]
    assert list(stream(model, tokenizer, [1], 99, stop=stop)) == ["🦙", "沈", "黙 "]


def byte(tokenizer, token, value):
    return tokenizer.token_bytes(token) == bytes([value])


def test_stream_ends_at_a_stop_token(talker, monkeypatch):
    model, tokenizer = talker
    said, more = tokenizer.encode("The rest"), tokenizer.encode(" is silence")
    says(monkeypatch, [*said, tokenizer.eot_id, *more])
    assert "".join(stream(model, tokenizer, [1], 99)) == "The rest"


LETTERS = st.text("abc", max_size=4)


@given(st.lists(LETTERS, max_size=12), st.lists(LETTERS.filter(bool), max_size=3))
def test_before_stop(pieces, stop):
    """Against the definition: cut where a stop string is first complete."""
    text, given = "".join(pieces), 0
    ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stop))]
    expected = text
    if stop and ends:
        begun = [text[: ends[0]].removesuffix(s) for s in stop]
        expected = min(begun, key=len)
    result, read = "", 0

    def reading():
        nonlocal read
        for piece in pieces:
            # nothing is held back that no stop string can begin with
            assert read - len(result) < max(map(len, stop), default=1)
            read += len(piece)
            yield piece

    for given in before_stop(reading(), stop):
        assert given
        result += given
    assert result == expected


# --- foreseeable mistakes: one sentence each

SIZES = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "n_layers": 1}
BAD_CONFIGS = [
    ({"n_heads": 0}, "n_heads"),
    ({"n_heads": 3}, "multiple"),
    ({"n_heads": 4, "n_kv_heads": 3}, "multiple"),
    ({"n_heads": 2, "head_dim": 5}, "even"),
    ({"n_heads": 2, "vocab_size": 0}, "vocab_size"),
    ({"n_heads": 2, "max_positions": -1}, "max_positions"),
]


def sentence(caught, word):
    message = str(caught.value)
    assert word in message and message.endswith(".")
    assert "\n" not in message and message.count(". ") == 0


@pytest.mark.parametrize(("values", "word"), BAD_CONFIGS, ids=str)
def test_bad_configuration(values, word):
    with pytest.raises(Problem) as caught:
        LlamaConfig(**SIZES | values)
    sentence(caught, word)


@pytest.mark.parametrize(
    "values", [{"factor": 0.5}, {"low_freq_factor": 4.0}, {"low_freq_factor": 0.0}]
)
def test_bad_scaling(values):
    with pytest.raises(Problem) as caught:
        RopeScaling(**values)
    sentence(caught, "RopeScaling")


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}],
)
def test_bad_sampling(values):
    with pytest.raises(Problem) as caught:
        Sampling(**values)
    sentence(caught, next(iter(values)))


def test_too_much_or_too_little_text(small, talker):
    model, _ = small
    cache = KVCache(model.config, 1, 10)
    model(torch.ones(1, 8, dtype=torch.long), cache)
    mistakes = [
        (lambda: model(torch.ones(1, 257, dtype=torch.long)), "max_positions"),
        (lambda: generate(model, [[1] * 250], 8), "max_positions"),
        (lambda: generate(model, [[1]], 0), "new tokens"),
        (lambda: generate(model, [], 5), "at least one token"),
        (lambda: generate(model, [[1], []], 5), "at least one token"),
        (lambda: model(torch.ones(1, 3, dtype=torch.long), cache), "cache"),
        (lambda: model(torch.ones(2, 1, dtype=torch.long), cache), "cache"),
        (lambda: list(stream(*talker, [1], 5, stop="ab")), "stop"),
        (lambda: list(stream(*talker, [1], 5, stop=["a", ""])), "stop"),
    ]
    for mistake, word in mistakes:
        with pytest.raises(Problem) as caught:
            mistake()
        sentence(caught, word)
    assert cache.length == 8  # a refused text leaves the cache as it was
