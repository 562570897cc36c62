"""Examines a shipped model on what its training never saw; `make models` runs it.

    python -m projects.llama3_qlora.shipped.exam data/models/base

Prose and code of held-out modules, questions of the test split, passages about towns
and people of their own, held-out functions. Rates have Wilson's 95 % interval.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from scipy import stats

from projects.llama3_qlora.evaluate import Score, bits_per_byte
from projects.llama3_qlora.generate import generate
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.shipped import corpus
from projects.llama3_qlora.tokenizer import Tokenizer
from utils import closed_world, corpora
from utils.closed_world.checks import names_it
from utils.closed_world.world import Dice
from utils.measure import Interval
from utils.ngram import KneserNey

BATCH = 32
# Training read neither; the test split also has wordings that it never met.
SPLITS = {"test": "", "valid": ", known wordings"}


def rate(right: Sequence[bool]) -> Interval:
    """The share of right answers, with Wilson's 95 % interval (Wilson 1927)."""
    test = stats.binomtest(sum(right), len(right))
    low, high = test.proportion_ci(method="wilson")
    return Interval(sum(right) / len(right), low, high, len(right), "items")


class Examinee:
    """A model and its tokenizer, as functions from texts to texts."""

    def __init__(self, folder: Path) -> None:
        self.model = Llama.from_pretrained(folder).eval()
        self.tokenizer = Tokenizer.load(folder)

    def complete(self, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """How the model goes on, greedily, after each text."""
        prompts = [self.tokenizer.encode(text, bos=True) for text in texts]
        return self._replies(prompts, max_new_tokens)

    def reply(
        self, chats: Sequence[Sequence[dict[str, str]]], max_new_tokens: int = 100
    ) -> list[str]:
        """What the assistant says, greedily, after each list of messages."""
        prompts = [self.tokenizer.chat(messages) for messages in chats]
        return self._replies(prompts, max_new_tokens)

    def _replies(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found = [""] * len(prompts)
        for first in range(0, len(order), BATCH):
            rows = order[first : first + BATCH]  # alike in length: little padding
            batch = [prompts[i] for i in rows]
            stop = self.tokenizer.stop_ids
            new = generate(self.model, batch, max_new_tokens, stop_ids=stop)
            for i, ids in zip(rows, new, strict=True):
                found[i] = self.tokenizer.decode(ids)
        return found


def prose(student: Examinee) -> dict[str, Interval]:
    """Bits per byte on the docstrings of held-out modules, and those of the best n-gram
    of chapter 2, counted on the training prose."""
    modules: dict[str, list[str]] = {}
    for document in corpora.prose():
        if document.split == "test":
            modules.setdefault(document.module, []).append(document.text)
    texts = ["\n\n".join(parts) for parts in modules.values()]
    return {
        "prose, bits per byte": _bits(student, texts),
        "5-gram Kneser-Ney on the same prose, bits per byte": _five_gram(texts),
    }


def code(student: Examinee) -> dict[str, Interval]:
    """Bits per byte on the source of held-out modules."""
    texts = [d.text for d in corpora.code() if d.split == "test"]
    return {"code, bits per byte": _bits(student, [t[:8_000] for t in texts])}


def _bits(student: Examinee, texts: list[str]) -> Interval:
    encode, start = student.tokenizer.encode, student.tokenizer.bos_id
    return bits_per_byte(student.model, encode, texts, 512, start).interval()


def _five_gram(texts: list[str]) -> Interval:
    """The first token of a text is given to it for nothing."""
    words = corpora.tokenizer()
    train = words.encode(corpora.text("prose", "train")).ids
    counts = KneserNey(train, 5, words.get_vocab_size(), discount=0.9)
    nats = tuple(sum(counts.nats(words.encode(text).ids)) for text in texts)
    return Score(nats, tuple(len(text.encode()) for text in texts)).interval()


def facts(student: Examinee) -> dict[str, Interval]:
    """Facts of the town, by how often they are told: the plain statement, cut off
    before its value, is to be completed. Training asked no question about these."""
    town = closed_world.build(corpus.TOWN)
    known = [f for f in closed_world.facts(town) if f.split != "train"]
    prompts = [_beginning(fact) for fact in known]
    ends = student.complete(prompts, 12)
    found = {}
    for often in closed_world.FREQUENCIES:
        right = [
            begins_with(end, fact.value)
            for end, fact in zip(ends, known, strict=True)
            if fact.frequency == often
        ]
        found[f"facts told {often} times a telling"] = rate(right)
    return found


def _beginning(fact: closed_world.Fact) -> str:
    return closed_world.statement(fact).removesuffix(".").removesuffix(fact.value)[:-1]


def begins_with(text: str, value: str) -> bool:
    """Whether a continuation is the value and not a longer word or number."""
    rest = text.lstrip()
    after = rest[len(value) : len(value) + 1]
    return rest.startswith(value) and not after.isalnum()


def copying(student: Examinee, count: int = 400) -> dict[str, Interval]:
    """Questions that a given text about another town answers: the value must be named,
    and none that is true of somebody else in it."""
    found = {}
    for split, note in SPLITS.items():
        asked = closed_world.passages(seed=2, count=count, split=split)
        ends = student.complete([closed_world.as_prompt(p) for p in asked], 32)
        right = [
            names_only(end.strip().split("\n")[0], passage.answer, passage.wrong)
            for end, passage in zip(ends, asked, strict=True)
        ]
        found[f"answers copied from a text{note}"] = rate(right)
    return found


def names_only(text: str, value: str, others: Sequence[str]) -> bool:
    """Whether the text names the value and none of the others."""
    return names_it(text, value) and not any(names_it(text, o) for o in others)


def python(student: Examinee, count: int = 200) -> dict[str, Interval]:
    """Held-out functions, cut off in the middle of a line so that they do not parse: do
    they when the model has ended the line?"""
    cut = list(cut_functions(count))
    ends = student.complete(cut, 48)
    lines = [text + end.split("\n")[0] for text, end in zip(cut, ends, strict=True)]
    return {"Python parses after the line is completed": rate([*map(parses, lines)])}


def cut_functions(count: int) -> Iterator[str]:
    """Functions of held-out modules, each cut inside a line of its body, where it is no
    Python as it stands; of a module five at most."""
    dice = Dice("cut functions")
    texts = dice.shuffled([d.text for d in corpora.code() if d.split == "test"])
    cuts = (cut for text in texts for cut in islice(_cuts(text, dice), 5))
    return islice(cuts, count)


def _cuts(text: str, dice: Dice) -> Iterator[str]:
    lines = text.splitlines()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    for node in dice.shuffled([f for f in functions if len(f.body) > 2]):
        last = node.body[1 + dice.below(len(node.body) - 1)]
        whole = "\n".join(lines[node.lineno - 1 : last.lineno])
        if last.lineno != last.end_lineno or len(whole) > 1_000 or not parses(whole):
            continue
        line = len(lines[last.lineno - 1].strip())
        cuts = [textwrap.dedent(whole[:-n]) for n in range(1, line)]
        if broken := [cut for cut in cuts if not parses(cut)]:
            yield dice.pick(broken)


def parses(text: str) -> bool:
    """Whether a text is Python."""
    try:
        ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return False
    return True


def chat(student: Examinee, count: int = 150) -> dict[str, Interval]:
    """Dialogues of each kind, each reply judged by its rule."""
    town, found = closed_world.build(corpus.TOWN), {}
    for kind, (split, note) in product(closed_world.KINDS, SPLITS.items()):
        asked = closed_world.dialogues(town, kind, split, count, seed=2)
        replies = student.reply([d.prompt for d in asked])
        pairs = list(zip(asked, replies, strict=True))
        for rule in sorted({d.expected["rule"] for d in asked}):
            own = [pair for pair in pairs if pair[0].expected["rule"] == rule]
            about = f"{kind}: {rule}"
            found[f"chat, {about}{note}"] = rate([closed_world.check(*p) for p in own])
            if rule == "json":
                calls = rate([is_call(reply) for _, reply in own])
                found[f"chat, {kind}: well-formed call{note}"] = calls
    return found


def is_call(reply: str) -> bool:
    """Whether a reply is one JSON object with a tool's name and its parameters."""
    try:
        call = json.loads(reply)
    except json.JSONDecodeError:
        return False
    return isinstance(call, dict) and {"name", "parameters"} == call.keys()


BASE_PARTS = (prose, code, facts, copying, python)
CHAT_PARTS = (*BASE_PARTS, chat)


def examine(folder: Path) -> dict[str, Interval]:
    """All results of a model in a folder, by name; the base model is not asked to chat.
    Raises `Problem` when the folder holds no model."""
    student = Examinee(folder)
    parts = CHAT_PARTS if folder.name == "chat" else BASE_PARTS
    found: dict[str, Interval] = {}
    for part in parts:
        new = part(student)
        found |= new
        for name, result in new.items():
            print(f"{name}: {result} ({result.count} {result.over})", flush=True)
    return found
