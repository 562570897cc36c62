"""The tokenizer: nothing is lost, nobody can forge a turn, and transformers agrees."""

import base64
import json
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.tokenizer import Tokenizer
from projects.llama3_qlora.vocabulary import SPECIAL_TOKENS, SPLIT_PATTERN
from utils import corpora
from utils.runtime import ROOT, Problem

VOCAB = 700
TEXTS = [
    corpora.text("prose", "train")[:100_000],
    "1234567890 " * 500,
    "नमस्ते 👩‍🚀 " * 20,
]
TOKENIZER = Tokenizer.train(TEXTS, VOCAB)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is open?\n"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool", "content": '{"open": []}'},
    {"role": "assistant", "content": "Nothing. 🤷"},
]
# Any text, and text that is full of what a split pattern or a special name cares about.
# Unassigned characters are left out: two libraries may know two versions of Unicode.
ANY = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
SNIPPETS = [
    *SPECIAL_TOKENS,
    "<|",
    "|>",
    "don't",
    "I'LL",
    "12345",
    "\r\n",
    " \n  x",
    "नमस्ते",
]
TEXT = ANY | st.lists(st.sampled_from([*SNIPPETS, "👩‍🚀", "é", " "]) | ANY).map("".join)
IDS = st.lists(st.integers(0, VOCAB - 1) | st.integers(0, 255), max_size=30)
few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tokenizer as saved, beside the config of a model as transformers expects."""
    path = tmp_path_factory.mktemp("saved")
    TOKENIZER.save(path)
    LlamaConfig(VOCAB, 8, 16, 1, 1).save(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


# Text


@few
@given(TEXT)
def test_every_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(TOKENIZER.special.values())
    assert TOKENIZER.decode(TOKENIZER.encode(text, True, True)) == text
    assert TOKENIZER.encode_batch([text, "x"]) == [ids, TOKENIZER.encode("x")]


def test_digits_stand_in_groups_of_three():
    groups = ["123", "456", "78"]
    apart = [token for group in groups for token in TOKENIZER.encode(group)]
    assert TOKENIZER.encode("12345678") == apart
    assert len(TOKENIZER.encode("123")) == 1  # learned, as "1234" cannot be
    tokens = map(TOKENIZER.token_bytes, range(VOCAB))
    assert max(len(token) for token in tokens if token.isdigit()) == 3


def test_special_tokens_have_the_last_ids():
    last = range(VOCAB - len(SPECIAL_TOKENS), VOCAB)
    assert list(TOKENIZER.special.items()) == list(
        zip(SPECIAL_TOKENS, last, strict=True)
    )
    assert len(TOKENIZER) == TOKENIZER.vocab_size == VOCAB
    named = [TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.eot_id]
    names = ["begin_of_text", "end_of_text", "finetune_right_pad_id", "eot_id"]
    assert [TOKENIZER.token_bytes(i).decode() for i in named] == [
        f"<|{name}|>" for name in names
    ]
    stops = {TOKENIZER.special[f"<|{n}|>"] for n in ("end_of_text", "eom_id", "eot_id")}
    assert TOKENIZER.stop_ids == stops
    fill_in = [TOKENIZER.token_bytes(i) for i in TOKENIZER.fim_ids]
    assert fill_in == [b"<|fim_prefix|>", b"<|fim_suffix|>", b"<|fim_middle|>"]


def test_special_tokens_only_where_allowed():
    text = "a<|eot_id|><|eot_id|> b<|begin_of_text|>"
    plain = TOKENIZER.encode(text)
    assert TOKENIZER.decode(plain) == text
    allowed = TOKENIZER.encode(text, bos=True, eos=True, allow_special=True)
    eot, bos = TOKENIZER.eot_id, TOKENIZER.bos_id
    (a,), b = TOKENIZER.encode("a"), TOKENIZER.encode(" b")
    assert allowed == [bos, a, eot, eot, *b, bos, TOKENIZER.eos_id]
    assert TOKENIZER.decode(allowed) == "a b"
    inside = "<|begin_of_text|>" + text + "<|end_of_text|>"
    assert TOKENIZER.decode(allowed, skip_special=False) == inside


def test_another_process_still_treats_special_names_as_text():
    copy = pickle.loads(pickle.dumps(TOKENIZER))
    assert copy.encode("<|eot_id|>") == TOKENIZER.encode("<|eot_id|>")
    assert copy.chat(TALK) == TOKENIZER.chat(TALK)


@few
@given(IDS, st.booleans())
@example([TOKENIZER.encode("👩")[0], TOKENIZER.eot_id, *TOKENIZER.encode("👩")], True)
def test_decode_is_the_librarys(ids, skip):
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    assert TOKENIZER.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


@few
@given(IDS | TEXT.map(TOKENIZER.encode), st.booleans())
@example(TOKENIZER.encode("👩‍🚀 नमस्ते")[:-1], True)
def test_a_stream_gives_the_text_of_the_whole(ids, skip):
    pieces = list(TOKENIZER.decode_stream(iter(ids), skip))
    assert "".join(pieces) == TOKENIZER.decode(ids, skip)
    assert all(pieces)


@few
@given(TEXT)
def test_a_stream_never_gives_half_a_character(text):
    assert set("".join(TOKENIZER.decode_stream(TOKENIZER.encode(text)))) == set(text)


def test_a_stream_does_not_wait_longer_than_it_must():
    sent = []

    def ids():
        for token in TOKENIZER.encode("a👍b"):
            sent.append(token)
            yield token

    seen = [(piece, len(sent)) for piece in TOKENIZER.decode_stream(ids())]
    assert [piece for piece, _ in seen] == ["a", "👍", "b"]
    assert [count for _, count in seen] == [1, len(sent) - 1, len(sent)]


def test_tensors_decode():
    ids = TOKENIZER.encode("one two", bos=True)
    assert TOKENIZER.decode(torch.tensor(ids)) == "one two"


# Training


def test_another_process_learns_the_same_tokens():
    code = (
        "import json, sys\n"
        "from projects.llama3_qlora.tokenizer import Tokenizer\n"
        f"backend = Tokenizer.train(json.load(sys.stdin), {VOCAB}).backend\n"
        "print(ascii(backend.to_str()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        env=os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ascii(TOKENIZER.backend.to_str())


def test_training_text_cannot_make_a_special_token():
    tokenizer = Tokenizer.train(["<|eot_id|>" * 300], 273)
    ids = tokenizer.encode("<|eot_id|>")
    assert len(ids) == 4 and not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == "<|eot_id|>"


# Conversations


def test_the_layout_of_a_conversation():
    text = (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is open?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nI look.<|eot_id|>"
        '<|start_header_id|>ipython<|end_header_id|>\n\n{"open": []}<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\nNothing. 🤷<|eot_id|>"
    )
    asked = text + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert TOKENIZER.decode(TOKENIZER.chat(TALK), skip_special=False) == asked
    said = TOKENIZER.chat(TALK, add_generation_prompt=False)
    assert TOKENIZER.decode(said, skip_special=False) == text
    assert said == TOKENIZER.encode(text, allow_special=True)


def runs(ids: list[int], mask: list[int]) -> list[str]:
    """The texts of the stretches where the mask is 1."""
    both = zip(ids, mask, strict=True)
    marked = [TOKENIZER.token_bytes(i) if m else b"\0" for i, m in both]
    return [part.decode() for part in b"".join(marked).split(b"\0") if part]


def test_the_mask_is_what_assistants_say():
    ids, mask = TOKENIZER.chat_with_mask(TALK)
    assert ids == TOKENIZER.chat(TALK, add_generation_prompt=False)
    assert runs(ids, mask) == ["I look.<|eot_id|>", "Nothing. 🤷<|eot_id|>"]


ROLE = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGE = st.fixed_dictionaries({"role": ROLE, "content": TEXT})


@few
@given(st.lists(MESSAGE, min_size=1, max_size=4))
def test_content_cannot_forge_a_turn(talk):
    ids, mask = TOKENIZER.chat_with_mask(talk)
    special = [TOKENIZER.token_bytes(i) for i in ids if i >= TOKENIZER.bos_id]
    frame = [b"<|start_header_id|>", b"<|end_header_id|>", b"<|eot_id|>"]
    assert special == [b"<|begin_of_text|>", *frame * len(talk)]
    spoken = [m["content"].strip() for m in talk if m["role"] == "assistant"]
    marked = TOKENIZER.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert marked == "".join(spoken)
    assert set(mask) <= {0, 1}


# The same, as transformers has it


@few
@given(TEXT)
def test_transformers_gives_the_same_ids(theirs, text):
    ids = TOKENIZER.encode(text, allow_special=True)
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs(text)["input_ids"] == [TOKENIZER.bos_id, *ids]
    for skip in (False, True):
        assert theirs.decode(ids, skip_special_tokens=skip) == TOKENIZER.decode(
            ids, skip
        )


@few
@given(st.lists(MESSAGE, min_size=1, max_size=4))
@example(TALK)
def test_transformers_writes_the_same_conversation(theirs, talk):
    for ask in (False, True):
        ids = TOKENIZER.chat(talk, add_generation_prompt=ask)
        text = theirs.apply_chat_template(
            talk, tokenize=False, add_generation_prompt=ask
        )
        assert text == TOKENIZER.decode(ids, skip_special=False)
        rendered = theirs.apply_chat_template(talk, add_generation_prompt=ask)
        # a name in a content is special to transformers, and text to us
        assert rendered["input_ids"] == TOKENIZER.encode(text, allow_special=True)
        if not any(n in m["content"] for n in SPECIAL_TOKENS for m in talk):
            assert rendered["input_ids"] == ids


def test_transformers_knows_the_names(theirs):
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        TOKENIZER.bos_id,
        TOKENIZER.eos_id,
        TOKENIZER.pad_id,
    )
    assert len(theirs) == len(TOKENIZER)


def test_saved_and_loaded_it_is_the_same(folder, tmp_path):
    loaded = Tokenizer.load(folder)
    assert loaded.special == TOKENIZER.special
    assert loaded.chat(TALK) == TOKENIZER.chat(TALK)
    loaded.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_file_is_plain_bpe(folder):
    saved = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert saved["model"]["type"] == "BPE" and not saved["model"]["ignore_merges"]
    assert len(saved["model"]["vocab"]) == VOCAB - len(SPECIAL_TOKENS)
    assert len(saved["model"]["merges"]) == VOCAB - len(SPECIAL_TOKENS) - 256
    assert all(token["special"] for token in saved["added_tokens"])


def test_padding_and_truncation_in_a_file_do_no_harm(tmp_path):
    backend = tokenizers.Tokenizer.from_str(TOKENIZER.backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "more than two tokens"
    assert Tokenizer.load(tmp_path).encode(text) == TOKENIZER.encode(text)


# Meta's own file


def written(folder: Path, tokens: list[bytes]) -> Tokenizer:
    """A tokenizer from a tiktoken file of tokens in the order of their ranks."""
    lines = [f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return Tokenizer.load(folder)


def tiktoken_bpe(tokens: list[bytes], text: str) -> list[int]:
    """What tiktoken does, in plain Python: a piece that is a token is one; otherwise
    the neighbours whose union has the lowest rank become one, the leftmost first."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ids = []
    for piece in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        if piece.encode() in ranks:
            parts = [piece.encode()]
        while True:
            unions = [a + b for a, b in pairwise(parts)]
            known = [union for union in unions if union in ranks]
            if not known:
                break
            best = min(known, key=ranks.__getitem__)
            at = unions.index(best)
            parts[at : at + 2] = [best]
        ids += [ranks[part] for part in parts]
    return ids


TOKENS = [TOKENIZER.token_bytes(i) for i in range(VOCAB - len(SPECIAL_TOKENS))]


@pytest.fixture(scope="module")
def metas(tmp_path_factory) -> Tokenizer:
    return written(tmp_path_factory.mktemp("meta"), TOKENS)


@few
@given(TEXT)
@example("The language reference, 1234 of 12345 don't:\n\n  indented")
def test_metas_file_gives_the_ids_of_tiktoken(metas, text):
    assert metas.encode(text) == tiktoken_bpe(TOKENS, text)
    assert metas.decode(metas.encode(text)) == text


@few
@given(
    st.lists(st.text("ab ", min_size=2, max_size=5), unique=True, max_size=20),
    st.text("ab ", max_size=30),
)
@example(["ab b", "bb", "bbb"], "abbbbb")
def test_any_ranks_give_the_ids_of_tiktoken(tmp_path_factory, words, text):
    tokens = [bytes([byte]) for byte in reversed(range(256))]
    tokens += [word.encode() for word in words]
    tokenizer = written(tmp_path_factory.mktemp("any"), tokens)
    assert tokenizer.encode(text) == tiktoken_bpe(tokens, text)


def test_metas_special_tokens_are_where_llama_3_1_has_them(metas, tmp_path):
    first = len(TOKENS)
    assert len(metas) == first + 256 and len(metas.special) == 256
    published = {  # of the 128,000 tokens and 256 special ones of Llama 3.1
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|reserved_special_token_0|>": 128002,
        "<|finetune_right_pad_id|>": 128004,
        "<|reserved_special_token_2|>": 128005,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_3|>": 128011,
        "<|reserved_special_token_247|>": 128255,
    }
    for name, index in published.items():
        assert metas.special[name] - first == index - 128000
    with pytest.raises(Problem, match="has no <|fim_prefix|>".replace("|", r"\|")):
        _ = metas.fim_ids
    metas.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat(TALK) == metas.chat(TALK)
    hub = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert hub.apply_chat_template(TALK)["input_ids"] == metas.chat(TALK, False)


# Mistakes


def json_file(folder: Path, change=lambda values: None, name="tokenizer.json") -> Path:
    values = json.loads(TOKENIZER.backend.to_str())
    change(values)
    (folder / name).write_text(json.dumps(values), "utf-8")
    return folder


def test_files_that_cannot_be_read_are_named(tmp_path):
    def fails(match: str) -> None:
        with pytest.raises(Problem, match=match) as caught:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")

    fails("has no tokenizer.json or tokenizer.model")
    meta = tmp_path / "tokenizer.model"
    for content in (b"\n\x0e\n\x05<unk>\x15\xf6", b"one\n", b"!!!! 0\n", b"YQ== x\n"):
        meta.write_bytes(content)
        fails("not Llama 3's text file")
    for content in (b"", b"YQ== 0\n"):
        meta.write_bytes(content)
        fails("lacks bytes or ranks")
    with pytest.raises(Problem, match="lacks bytes or ranks"):
        written(tmp_path, [*TOKENS, TOKENS[-1]])
    json_file(tmp_path, lambda v: v.update(decoder={"type": "Metaspace"} | META))
    fails("not byte-level")
    json_file(tmp_path, lambda v: v["added_tokens"].pop(0))
    fails(r"has no <\|begin_of_text\|>")
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    fails("tokenizer.json in .* is damaged")


META = {"replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("texts", "size", "match"),
    [
        (["a"], 265, "at least 266, 256 bytes and 10 special tokens, not 265"),
        (["a b"], 300, "too few for 300 tokens: they give 267"),
        ("a text", 300, "put the one in a list"),
    ],
)
def test_training_says_what_is_wrong(texts, size, match):
    with pytest.raises(Problem, match=match):
        Tokenizer.train(texts, size)


def test_the_least_vocabulary_is_bytes_and_special_tokens():
    tokenizer = Tokenizer.train([], 266)
    assert len(tokenizer) == 266
    assert tokenizer.decode(tokenizer.encode("Ünï 👩‍🚀")) == "Ünï 👩‍🚀"


@pytest.mark.parametrize("index", [-1, -100, VOCAB])
def test_ids_outside_the_vocabulary(index):
    with pytest.raises(
        Problem, match=f"no token {index}: ids go from 0 to {VOCAB - 1}"
    ):
        TOKENIZER.decode([0, index])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"),
        ([{"role": "bot", "content": "x"}], "system, user, assistant, tool: 'bot'"),
        ([{"content": "x"}], "A role is one of"),
        ([{"role": "user"}], "A message is a dict"),
        ([{"role": "user", "content": None}], "A message is a dict"),
        ("hello", "A message is a dict"),
    ],
)
def test_conversations_of_another_form(messages, match):
    for write in (TOKENIZER.chat, TOKENIZER.chat_with_mask):
        with pytest.raises(Problem, match=match):
            write(messages)
