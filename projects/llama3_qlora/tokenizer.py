"""Text to token ids and back, and conversations as Llama 3 writes them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from projects.llama3_qlora.vocabulary import (
    BOS,
    END_HEADER,
    EOM,
    EOS,
    EOT,
    FILL_IN,
    HEADER,
    PAD,
    SPECIAL_TOKENS,
    as_bytes,
    learned,
    read,
)
from utils.runtime import Problem

NEEDED = (BOS, EOS, HEADER, END_HEADER, EOT)  # without these there is no conversation
ROLES = ("system", "user", "assistant", "tool")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


class Tokenizer:
    """Byte-level BPE with Llama 3's special tokens and chat layout.

    `special` maps the name of each special token to its id; generation ends at one of
    `stop_ids`.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Wrap a byte-level `tokenizers.Tokenizer`, which then belongs to this object.
        Raises `Problem` when it lacks one of the special tokens of a conversation."""
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # as plain text, that is: see `encode`
        added = backend.get_added_tokens_decoder()
        self.backend = backend
        self.special = {t.content: i for i, t in added.items() if t.special}
        if missing := [name for name in NEEDED if name not in self.special]:
            raise Problem(
                f"The tokenizer has no {', '.join(missing)}: it is not one of Llama 3."
            )
        self.bos_id, self.eos_id = self.special[BOS], self.special[EOS]
        self.eot_id = self.special[EOT]
        self.pad_id = self.special.get(PAD, self.eos_id)  # Llama 3.0 has none
        ends = (EOS, EOM, EOT)
        self.stop_ids = frozenset(self.special[e] for e in ends if e in self.special)
        self._special_ids = frozenset(self.special.values())
        names = "|".join(map(re.escape, self.special))
        self._special_pattern = re.compile(f"({names})")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            self._bytes[index] = token.encode() if index in added else as_bytes(token)

    def __reduce__(self) -> tuple[Any, ...]:
        # a backend forgets encode_special_tokens when it is sent to another process
        return Tokenizer, (self.backend,)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A vocabulary of exactly `vocab_size` tokens learned from `texts`: 256 bytes,
        the merges, and last the special tokens. The same texts give the same tokens.

        Raises `Problem` when `vocab_size` leaves no room for bytes and special tokens,
        or is more than the texts can fill.
        """
        if isinstance(texts, str):
            raise Problem("Tokenizer.train takes several texts: put the one in a list.")
        least = 256 + len(SPECIAL_TOKENS)
        if vocab_size < least:
            raise Problem(
                f"vocab_size must be at least {least}, 256 bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens, not {vocab_size}."
            )
        tokenizer = cls(learned(texts, vocab_size))
        if len(tokenizer) < vocab_size:
            raise Problem(
                f"The texts are too few for {vocab_size} tokens: they give "
                f"{len(tokenizer)}."
            )
        return tokenizer

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From `tokenizer.json` in a folder, or else from Meta's `tokenizer.model`.

        Raises `Problem` when there is neither, it cannot be read, or it is not Llama
        3's kind. The chat template of the folder is not read: see `chat`.
        """
        return cls(read(Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers'
        AutoTokenizer gives the same ids and the same chat."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD if PAD in self.special else EOS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, "utf-8")

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included."""
        return len(self)

    def encode(
        self,
        text: str,
        bos: bool = False,
        eos: bool = False,
        allow_special: bool = False,
    ) -> list[int]:
        """Token ids of a text.

        The name of a special token in the text is ordinary text, so that no user can
        end a turn or speak as somebody else; `allow_special` is for text of our own.
        """
        # with the pattern's one group, every second part is the name of a special token
        parts = self._special_pattern.split(text) if allow_special else [text]
        ids = [self.bos_id] if bos else []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self.special[part])
            else:
                ids += self.backend.encode(part, add_special_tokens=False).ids
        return [*ids, self.eos_id] if eos else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on all cores."""
        batch = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become the sign U+FFFD.
        Raises `Problem` for an id that is not in the vocabulary."""
        return b"".join(self._pieces(ids, skip_special)).decode("utf-8", "replace")

    def decode_stream(
        self, ids: Iterable[int], skip_special: bool = True
    ) -> Iterator[str]:
        """The text of token ids that are still coming, piece by piece, as `decode`
        would give it. Bytes wait until their character is complete."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in self._pieces(ids, skip_special):
            if text := decoder.decode(piece):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    @property
    def fim_ids(self) -> tuple[int, ...]:
        """The ids that mark prefix, suffix and middle, to fill in between two texts
        (Bavarian et al. 2022). Raises `Problem` when the tokenizer, like Meta's, has
        none."""
        if missing := [name for name in FILL_IN if name not in self.special]:
            raise Problem(f"This tokenizer has no {', '.join(missing)}.")
        return tuple(self.special[name] for name in FILL_IN)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; of a special token, its name."""
        if not 0 <= token < len(self):
            raise Problem(
                f"There is no token {token}: ids go from 0 to {len(self) - 1}."
            )
        return self._bytes[token]

    def _pieces(self, ids: Iterable[int], skip_special: bool) -> Iterator[bytes]:
        for token in map(int, ids):  # a tensor's elements are not ints yet
            if not skip_special or token not in self._special_ids:
                yield self.token_bytes(token)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation, and of the header that asks for an answer.

        A message has a `role` (system, user, assistant or tool) and a `content`, whose
        outer white space is dropped. The layout is that of the Llama 3.1 model card,
        without the dates that Meta's template adds. Raises `Problem` for no messages
        and for one of another form.
        """
        ids, _ = self.chat_with_mask(messages)
        return ids + self._header("assistant") if add_generation_prompt else ids

    def chat_with_mask(
        self, messages: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and for each 1 where an assistant speaks: its
        content and the <|eot_id|> behind it, which is what it must learn to say."""
        if not messages:
            raise Problem("A conversation needs at least one message.")
        ids, mask = [self.bos_id], [0]
        for message in messages:
            role, content = checked(message)
            header = self._header(role)
            said = [*self.encode(content.strip()), self.eot_id]
            ids += header + said
            mask += [0] * len(header) + [int(role == "assistant")] * len(said)
        return ids, mask

    def _header(self, role: str) -> list[int]:
        written = "ipython" if role == "tool" else role  # Llama 3.1's name for a tool
        start, end = self.special[HEADER], self.special[END_HEADER]
        return [start, *self.encode(written), end, *self.encode("\n\n")]


def checked(message: Mapping[str, Any]) -> tuple[str, str]:
    """Role and content of a message. Raises `Problem` when either is not usable."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise Problem('A message is a dict with "role" and a text as "content".')
    if message.get("role") not in ROLES:
        raise Problem(f"A role is one of {', '.join(ROLES)}: {message.get('role')!r}.")
    return message["role"], message["content"]
