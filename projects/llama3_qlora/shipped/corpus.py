"""What the shipped models read: the library's prose and code, and the closed world.

Every source is a list of documents of the training split; nothing that `exam.py` asks
for is in one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from projects.llama3_qlora.tokenizer import Tokenizer
from utils import closed_world, corpora
from utils.closed_world import splits, words
from utils.closed_world import world as town_world

TOWN = 0  # the seed of the town that the models know by heart
VOCAB_SIZE = 4096

# Share of the rows of each source in each stage, chosen by short trials.
WEIGHTS = {
    "reading": {"passages": 0.85, "lists": 0.15},
    "base": {
        "prose": 0.30,
        "code": 0.15,
        "infill": 0.04,
        "facts": 0.15,
        "questions": 0.04,
        "passages": 0.24,
        "lists": 0.04,
        "stories": 0.04,
    },
    "chat": {
        "dialogues": 0.76,
        "facts": 0.10,
        "prose": 0.06,
        "code": 0.04,
        "passages": 0.04,
    },
}
DIALOGUES = {  # how many of each kind
    "recall": 8_000,
    "context": 32_000,
    "instruction": 30_000,
    "refusal": 4_000,
    "unknown": 2_000,
    "tool": 16_000,
    "story": 6_000,
    "smalltalk": 2_000,
}


def prose() -> list[str]:
    """The docstrings of each module, and each topic of the reference, as one text."""
    modules: dict[str, list[str]] = {}
    for document in corpora.prose():
        if document.split == "train":
            modules.setdefault(document.module, []).append(document.text)
    return ["\n\n".join(texts) for texts in modules.values()]


def code() -> list[str]:
    """Source files."""
    return [d.text for d in corpora.code() if d.split == "train"]


def facts(tellings: int = 12) -> list[str]:
    """What is true in the town, ten sentences to a text; each fact `frequency` times in
    each of the `tellings`, in other words."""
    town = closed_world.build(TOWN)
    told = [
        sentence
        for seed in range(tellings)
        for sentence in closed_world.fact_sentences(town, seed)
    ]
    return [" ".join(told[i : i + 10]) for i in range(0, len(told), 10)]


def questions() -> list[str]:
    """Questions of the train split about the town, four to a text, each as often as its
    fact is told: to ask must not make a rare fact frequent."""
    asked = closed_world.questions(closed_world.build(TOWN), "train")
    pairs = [
        f"Question: {q.question}\nAnswer: {closed_world.statement(q.fact)}"
        for q in asked
        for _ in range(4 * q.fact.frequency)
    ]
    pairs = town_world.Dice("questions in random order").shuffled(pairs)
    return ["\n".join(pairs[i : i + 4]) for i in range(0, len(pairs), 4)]


def passages(count: int = 40_000) -> list[str]:
    """Texts about other towns, with questions answered by a sentence of them; half of
    them of four sentences at most."""
    return [
        closed_world.as_document(passage)
        for seed, most in ((1, 4), (2, 8))
        for passage in closed_world.passages(seed, count // 2, "train", most)
    ]


def lists(count: int = 20_000) -> list[str]:
    """Lists of names and what belongs to them, said three times in different orders:
    who can go on with the second time looks things up in what was read."""
    dice = town_world.Dice("lists")
    keys = [*splits.names("train"), *words.GOODS]
    values = [*keys, *words.TRADES, *words.COLOURS, *words.STREETS, *words.MATERIALS]
    found = []
    for _ in range(count):
        form, size = dice.pick(LIST_FORMS), 2 + dice.below(dice.pick((3, 8)))
        own = dict.fromkeys(dice.pick(keys) for _ in range(size))
        lines = [form.format(key, dice.pick(values)) for key in own]
        found.append("\n\n".join("\n".join(dice.shuffled(lines)) for _ in range(3)))
    return found


LIST_FORMS = ("{}: {}", "{} = {}", "- {}: {}", "{}, {}", '"{}": "{}",', "{} -> {}")


def stories(count: int = 4_000) -> list[str]:
    """Little stories about the town's children."""
    return closed_world.stories(closed_world.build(TOWN), count, seed=1)


SOURCES = {
    "prose": prose,
    "code": code,
    "facts": facts,
    "questions": questions,
    "passages": passages,
    "lists": lists,
    "stories": stories,
}


def train_tokenizer(vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer of the base model's texts, a megabyte or two of each source."""
    return Tokenizer.train(
        (
            text
            for name, source in SOURCES.items()
            for text in _up_to(source(), 2_000_000 if name in REAL else 400_000)
        ),
        vocab_size,
    )


REAL = ("prose", "code")


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The first texts, about so many characters of them."""
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


def tokens(
    tokenizer: Tokenizer, source: str
) -> tuple[list[list[int]], list[list[int]] | None]:
    """The documents of a source of `WEIGHTS` as token ids, and for dialogues masks that
    are 1 on what is to be learnt: what the assistant says."""
    if source == "dialogues":
        return dialogues(tokenizer)
    if source == "infill":
        return list(infill(tokenizer)), None
    texts = tokenizer.encode_batch(SOURCES[source]())
    return [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in texts], None


def dialogues(tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Dialogues of all kinds as token ids, and their masks."""
    town = closed_world.build(TOWN)
    ids, masks = [], []
    for kind, count in DIALOGUES.items():
        for dialogue in closed_world.dialogues(town, kind, "train", count, seed=1):
            tokens, mask = tokenizer.chat_with_mask(dialogue.messages)
            ids.append(tokens)
            masks.append(mask)
    return ids, masks


def infill(tokenizer: Tokenizer, count: int = 4_000) -> Iterator[list[int]]:
    """Pieces of source code with a hole, and then what belongs into it (Bavarian et al.
    2022): prefix, suffix, middle, each after its special token."""
    dice = town_world.Dice("infill")
    files = [text for text in code() if len(text) > 400]
    prefix, suffix, middle = tokenizer.fim_ids
    for _ in range(count):
        text = dice.pick(files)
        start = dice.below(max(1, len(text) - 1_000))
        piece = text[start : start + 300 + dice.below(700)]
        first, second = sorted((dice.below(len(piece)), dice.below(len(piece))))
        yield [
            prefix,
            *tokenizer.encode(piece[:first]),
            suffix,
            *tokenizer.encode(piece[second:]),
            middle,
            *tokenizer.encode(piece[first:second]),
            tokenizer.eos_id,
        ]
