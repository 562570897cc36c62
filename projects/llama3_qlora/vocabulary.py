"""Byte-level BPE as `tokenizers` holds it: split pattern, special tokens, files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from utils.runtime import Problem

# Where text is cut before any merge: contractions; letters with the one sign before
# them; up to three digits; punctuation; line ends; spaces. From Meta's llama-models
# repository, models/llama3/tokenizer.py, where it was taken over from cl100k_base.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
EOM, EOT = "<|eom_id|>", "<|eot_id|>"  # ends of a message with more to come, a turn
FILL_IN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SPECIAL_TOKENS = (BOS, EOS, PAD, HEADER, END_HEADER, EOM, EOT, *FILL_IN)


def byte_alphabet() -> list[str]:
    """The character that stands for each of the 256 bytes in a vocabulary file: itself
    where it prints, else one from U+0100 on (Radford et al. 2019, GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


ALPHABET = byte_alphabet()
BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


def as_bytes(token: str) -> bytes:
    """The bytes that a token of a vocabulary file stands for."""
    return bytes(BYTES[character] for character in token)


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """A model behind Llama 3's split pattern, without special tokens."""
    backend = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def add_special(backend: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    """Give special tokens the next ids. Transformers then starts each text with the
    first token of all, as it does for Llama 3; `Tokenizer.encode` does so if asked."""
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, backend.token_to_id(BOS))],
    )


def learned(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A backend with at most `vocab_size` tokens learned from `texts`."""
    backend = byte_level(models.BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    add_special(backend, SPECIAL_TOKENS)
    return backend


def read(folder: Path) -> tokenizers.Tokenizer:
    """The backend in `tokenizer.json`, or else Meta's `tokenizer.model`, of a folder.
    Raises `Problem` when there is neither or it is not a byte-level BPE."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return from_tiktoken(folder / "tokenizer.model")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing narrower
        raise Problem(f"{path.name} in {folder.name} is damaged.") from None
    if not isinstance(backend.decoder, decoders.ByteLevel):
        raise Problem(
            f"{path.name} in {folder.name} is not byte-level BPE as Llama 3's is; "
            "SentencePiece (Llama 2) is not read."
        )
    return backend


def from_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """Meta's `tokenizer.model`, its special tokens named as in Llama 3.1 on the hub.

    The file ranks tokens; tiktoken merges the neighbours whose union ranks lowest, and
    takes a whole piece of text at once where it is a token. As merges: every way to cut
    a token in two tokens, in the order of ranks.
    """
    if not path.is_file():
        raise Problem(f"{path.parent.name} has no tokenizer.json or {path.name}.")
    ranks = read_ranks(path)
    text = {token: "".join(ALPHABET[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(rank, ranks[a], ranks[b], text[a], text[b]) for a, b in known]
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    pairs = [(a, b) for *_, a, b in sorted(merges)]
    backend = byte_level(models.BPE(vocabulary, pairs, ignore_merges=True))
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(248)]
    named = [HEADER, END_HEADER, EOM, EOT, "<|python_tag|>"]
    add_special(
        backend, [BOS, EOS, *reserved[:2], PAD, reserved[2], *named, *reserved[3:]]
    )
    return backend


def read_ranks(path: Path) -> dict[bytes, int]:
    """Tokens and ranks of a tiktoken file: on each line base64 and a number. Raises
    `Problem` when it is none, or does not rank every byte and every rank once."""
    try:
        lines = [line.split() for line in path.read_text("ascii").splitlines()]
        ranks = {base64.b64decode(t, validate=True): int(rank) for t, rank in lines}
    except ValueError:  # not ASCII, not two columns, not base64, not a number
        raise Problem(
            f"{path.name} in {path.parent.name} is not Llama 3's text file of tokens "
            "and ranks; SentencePiece (Llama 2) is not read."
        ) from None
    complete = all(bytes([byte]) in ranks for byte in range(256))
    if not complete or sorted(ranks.values()) != list(range(len(lines))):
        raise Problem(f"{path.name} in {path.parent.name} lacks bytes or ranks.")
    return ranks
