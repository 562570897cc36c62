"""Text from a model, one token at a time: greedy or sampled, one text or many."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projects.llama3_qlora.cache import KVCache
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.tokenizer import Tokenizer
from utils.runtime import Problem


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; `top_k` 0, `top_p` 1 and
    `min_p` 0 keep every token.

    The filters act in this order: the `top_k` likeliest tokens; the fewest whose
    probabilities reach `top_p` (Holtzman et al. 2020); those at least `min_p` times as
    likely as the likeliest (Nguyen et al. 2024).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0:
            raise Problem("temperature and top_k must be 0 or more.")
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise Problem("top_p must be above 0 and at most 1, min_p from 0 to 1.")


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (batch, vocab) at the temperature, with what is not to be drawn at minus
    infinity. The likeliest token always stays."""
    logits = logits.float()
    # the likeliest at 0: a temperature near 0 makes the others vanish, not overflow
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return logits


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """One token id for each row of logits (batch, vocab): (batch,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = filtered(logits, sampling).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Prompts as one tensor of ids (batch, time), flush right, and how much padding
    stands before each (batch,), or None when there is none."""
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows), padding if padding.any() else None


@torch.inference_mode()
def tokens(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
) -> Iterator[Tensor]:
    """The next token of every prompt (batch,), again and again, `max_new_tokens` times.

    Each prompt is read once; from then on the model sees one new token per text and
    finds the rest in its cache. Raises `Problem` for an empty prompt or one that leaves
    no room for `max_new_tokens`.
    """
    if not prompts or not all(prompts):
        raise Problem("Every prompt needs at least one token.")
    ids, padding = left_padded(prompts)
    batch, time = ids.shape
    room = time + max_new_tokens - 1  # the last token is given, not read
    if max_new_tokens < 1 or room > model.config.max_positions:
        raise Problem(
            f"A prompt of {time} and {max_new_tokens} new tokens do not fit "
            f"max_positions {model.config.max_positions}."
        )
    weight = model.model.embed_tokens.weight
    device, generator = weight.device, torch.Generator(weight.device)
    generator.manual_seed(sampling.seed)
    cache = KVCache(model.config, batch, room, weight.dtype, device)
    new, padding = ids.to(device), None if padding is None else padding.to(device)
    for _ in range(max_new_tokens):
        hidden = model.model(new, cache, padding)
        # only the last position asks for a token: spare the others the vocabulary
        chosen = draw(model.lm_head(hidden[:, -1]), sampling, generator)
        yield chosen
        new = chosen[:, None]


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """New token ids for each prompt, without the prompt and without the stop token."""
    texts: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for chosen in tokens(model, prompts, max_new_tokens, sampling):
        for row, token in enumerate(chosen.tolist()):
            if row not in running:
                continue
            if token in stop_ids:
                running.remove(row)
            else:
                texts[row].append(token)
        if not running:
            break
    return texts


def stream(
    model: Llama,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The answer to one prompt as text, piece by piece as it comes, until one of
    `tokenizer.stop_ids`, a `stop` string (neither is given) or `max_new_tokens`.

    No piece holds half a character. Text that could be the beginning of a stop string
    waits until it is decided. Raises `Problem` as `tokens` does.
    """
    if isinstance(stop, str) or not all(stop):
        raise Problem('`stop` is a list of texts, none empty, such as ["\\n\\n"].')
    ids = _until(tokens(model, [prompt_ids], max_new_tokens, sampling), tokenizer)
    return before_stop(tokenizer.decode_stream(ids), stop)


def _until(chosen: Iterable[Tensor], tokenizer: Tokenizer) -> Iterator[int]:
    for token in map(int, chosen):
        if token in tokenizer.stop_ids:
            return
        yield token


def before_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first of the `stop` strings to be complete."""
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.index(s) + len(s), held.index(s)) for s in stop if s in held]
        if found:
            held = held[: min(found)[1]]
            break
        sure = len(held) - _undecided(held, stop)
        if sure:
            yield held[:sure]
        held = held[sure:]
    if held:
        yield held


def _undecided(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` could begin a stop string."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    ends = (n for n in range(longest, 0, -1) if _begins(text[-n:], stop))
    return next(ends, 0)


def _begins(end: str, stop: Sequence[str]) -> bool:
    return any(s.startswith(end) for s in stop)
