"""What notebook 04.1 writes itself, against the libraries and by its properties."""

import random
import shutil
from collections import Counter

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.llama3_qlora import Llama, LlamaConfig, Tokenizer
from tests.notebook_code import namespace
from utils import measure, runtime
from utils.gpt import GPT, GPTConfig
from utils.ngram import KneserNey

NAMES = [
    "EDITS",
    "LICENCES",
    "Licence",
    "NOUNS",
    "PARTS",
    "Shape",
    "answer",
    "as_text",
    "attention",
    "batch",
    "child_of",
    "contexts",
    "count",
    "counting_writer",
    "evolve",
    "fault_of",
    "load_pinned",
    "logits_of",
    "next_word",
    "norm",
    "pin",
    "reasons",
    "running",
    "seed_items",
    "sha256",
    "true_sentences",
    "up_to_stop",
]
FOLDER = runtime.ROOT / "data" / "models" / "base"


@pytest.fixture(scope="module")
def lesson():
    found = namespace("04.1", NAMES)
    found["runtime"] = runtime
    return found


def library_count(config):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return measure.count_parameters(model)


sizes = st.tuples(
    st.integers(10, 99), st.integers(1, 3), st.sampled_from([2, 4]), st.integers(1, 5)
)


@settings(deadline=None, max_examples=10)
@given(sizes)
def test_count_equals_gpt2(lesson, size):
    vocab, layers, heads, positions = size
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=8, n_layer=layers, n_head=heads, n_positions=positions
    )
    shape = lesson["Shape"](vocab, 8, layers, heads, 32, positions=positions)
    assert sum(lesson["count"](shape).values()) == library_count(config)


@settings(deadline=None, max_examples=10)
@given(sizes, st.booleans())
def test_count_equals_llama(lesson, size, tied):
    vocab, layers, heads, inner = size
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=8,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        tie_word_embeddings=tied,
    )
    shape = lesson["Shape"](
        vocab,
        8,
        layers,
        heads,
        inner,
        kv_heads=heads // 2,
        gated=True,
        bias=False,
        norm_bias=False,
        tied=tied,
    )
    assert sum(lesson["count"](shape).values()) == library_count(config)


def test_manifest_accepts_the_pinned_and_refuses_the_rest(lesson, tmp_path):
    folder = tmp_path / "assets"
    shutil.copytree(FOLDER, folder)
    lesson["pin"](folder, ["model.safetensors", "tokenizer.json"])
    model, tokenizer = lesson["load_pinned"](folder)
    assert isinstance(model, Llama) and isinstance(tokenizer, Tokenizer)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(runtime.Problem, match=r"model\.safetensors"):
        lesson["load_pinned"](folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(runtime.Problem, match="missing"):
        lesson["load_pinned"](folder)


def test_manifest_refuses_parts_that_do_not_belong_together(lesson, tmp_path):
    tokenizer = Tokenizer.load(FOLDER)
    tokenizer.save(tmp_path)
    Llama(LlamaConfig(len(tokenizer) - 1, 8, 8, 1, 2, bos_id=4)).save_pretrained(
        tmp_path
    )
    lesson["pin"](tmp_path, ["model.safetensors", "tokenizer.json"])
    with pytest.raises(runtime.Problem, match="belong together"):
        lesson["load_pinned"](tmp_path)


def test_reasons_name_every_need_that_is_not_met(lesson):
    licence = lesson["Licence"](commercial=False, teaching=False)
    assert lesson["reasons"](licence, ("weights", "hosting")) == []
    assert lesson["reasons"](licence, ("commercial", "teaching")) == [
        "no commercial",
        "no teaching",
    ]


def stacked(models, width, layers, vocab, time):
    torch.manual_seed(0)
    shapes = {"tokens": (vocab, width), "positions": (time, width)}
    for i in range(layers):
        shapes |= {f"qkv{i}": (width, 3 * width), f"out{i}": (width, width)}
        shapes |= {f"up{i}": (width, 4 * width), f"down{i}": (4 * width, width)}
    return {n: 0.3 * torch.randn(models, *s) for n, s in shapes.items()}


def as_gpt(p, index, layers):
    """The same weights in `utils.gpt`."""
    vocab, width = p["tokens"].shape[1:]
    gpt = GPT(GPTConfig(vocab, width, layers, 4, p["positions"].shape[1]))
    weights = gpt.state_dict()
    weights["tokens.weight"] = p["tokens"][index]
    weights["positions.weight"] = p["positions"][index]
    for i in range(layers):
        names = {"attention.qkv": "qkv", "attention.out": "out"}
        for theirs, ours in (names | {"up": "up", "down": "down"}).items():
            weights[f"blocks.{i}.{theirs}.weight"] = p[f"{ours}{i}"][index].T
        for theirs in ("up", "down"):
            weights[f"blocks.{i}.{theirs}.bias"].zero_()
    gpt.load_state_dict(weights)
    return gpt


def test_stacked_models_equal_single_ones(lesson):
    lesson["LAYERS"] = 2
    p = stacked(3, 16, 2, 20, 7)
    ids = torch.randint(20, (4, 7))
    ours = lesson["logits_of"](p, ids, 2, post=False).view(3, 4, 7, 20)
    for index in range(3):
        torch.testing.assert_close(
            ours[index], as_gpt(p, index, 2)(ids), rtol=1e-4, atol=1e-4
        )


def test_post_norm_ends_normalized(lesson):
    p = stacked(1, 16, 2, 16, 7)
    p["tokens"] = torch.eye(16)[None]  # then the logits are the stream itself
    logits = lesson["logits_of"](p, torch.randint(16, (4, 7)), 2, post=True)
    assert logits.mean(-1).abs().max() < 1e-5
    assert (logits.std(-1, correction=0) - 1).abs().max() < 1e-3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_evolution_keeps_what_elimination_promises(lesson, seed):
    rng = random.Random(seed)
    items = lesson["seed_items"](rng, 60)
    survivors, fate = lesson["evolve"](items, rng)
    assert sum(fate.values()) == len(items) and fate["survives"] == len(survivors)
    assert len({*items, *survivors}) == len(set(items)) + len(survivors)
    for nouns, edits in survivors:
        assert len(set(edits)) == len(edits) <= 2
        assert lesson["answer"]((nouns, edits)) not in ([], list(nouns))


def test_each_elimination_rule_fires(lesson):
    fault, (first, reverse) = lesson["fault_of"], list(lesson["EDITS"])[1::-1]
    parent = (("cup", "pipe"), (reverse,))
    assert fault((parent[0], (reverse, reverse)), parent, set()) == "asks twice"
    assert fault((("cup",), (first,)), parent, set()) == "nothing left"
    assert fault((("cup",), (reverse,)), parent, set()) == "no change"
    child = (parent[0], (reverse, first))
    assert fault(child, parent, {child}) == "exists already"
    assert fault(child, parent, set()) is None


def test_only_the_answer_is_learnt(lesson):
    tokenizer = lesson["tokenizer"] = Tokenizer.load(FOLDER)
    items = lesson["seed_items"](random.Random(0), 5)
    inputs, targets = lesson["batch"](items)
    assert inputs.shape == targets.shape
    for row, item in zip(targets, items, strict=True):
        kept = row[row != -100].tolist()
        assert tokenizer.decode(kept) == lesson["as_text"](item)[1]


@pytest.mark.parametrize("context", [(), ("a",), ("a", "b"), ("c", "c", "b")])
def test_writer_draws_from_kneser_ney(lesson, context):
    rng = random.Random(1)
    text = [rng.choice("aaabbc") for _ in range(60)]
    number = {"a": 0, "b": 1, "c": 2}
    judge = KneserNey([number[w] for w in text], 4, 3)
    levels = lesson["contexts"](text, 4)
    drawn = Counter(
        lesson["next_word"](levels, ["a", "b", "c"], context, 1, rng)
        for _ in range(20_000)
    )
    ids = tuple(number[w] for w in context)
    for word, index in number.items():
        assert abs(drawn[word] / 20_000 - judge.probability(ids, index)) < 0.02


def test_writer_completes_what_it_is_given(lesson):
    truth = lesson["true_sentences"](3)
    data = [s for s, times in truth.values() for _ in range(times)]
    write = lesson["counting_writer"](data, 0, 1.5)
    begin = next(iter(truth))
    for sentence in write([begin, ()]):
        assert sentence.count(".") <= 1 and len(sentence) <= 12
    assert write([begin])[0][:2] == begin
    assert lesson["up_to_stop"](["a", ".", "b"]) == ("a", ".")
    assert lesson["up_to_stop"](["a"]) == ("a", ".")
