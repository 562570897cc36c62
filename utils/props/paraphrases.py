"""Sentences whose relation to a reference is known, for the study of text metrics.

A meaning is one idea for each of six slots; every idea has two words that mean the
same. A frame says a meaning in a plain way and, in other order and with other function
words, in a free one.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

IDEAS = {
    "look": "old/elderly tired/weary cheerful/merry brave/bold rich/wealthy "
    "sly/cunning quiet/silent angry/furious",
    "who": "doctor/physician teacher/tutor sailor/seaman thief/robber "
    "lawyer/attorney king/monarch author/writer boy/lad",
    "did": "bought/purchased found/discovered mended/repaired lost/mislaid "
    "left/abandoned wrecked/destroyed washed/cleaned finished/completed",
    "thing": "stone/rock coat/jacket bag/sack picture/painting cup/mug "
    "present/gift carpet/rug boat/vessel",
    "place": "forest/woods shop/store hotel/inn harbour/port meadow/pasture "
    "cellar/basement house/dwelling garage/shed",
    "time": "dawn/daybreak dusk/nightfall noon/midday supper/dinner",
}
WORDS = {slot: [w.split("/") for w in text.split()] for slot, text in IDEAS.items()}
FRAMES = (
    (
        "At {time} the {look} {who} {did} a {thing} in the {place}, and that was all "
        "of it.",
        "The {thing} was {did} by the {look} {who} in the {place} around {time}, "
        "nothing else.",
    ),
    (
        "It is said that the {who} who lived by the {place} was {look} and that he "
        "{did} the {thing} at {time}.",
        "People tell how the {look} man, who was {who} of our {place}, {did} one "
        "{thing} when {time} came.",
    ),
    (
        "The {thing} that the {look} {who} {did} in the {place} was gone at {time}.",
        "Nobody could see the {thing} by {time}: a {look} {who} had {did} it in some "
        "{place}.",
    ),
    (
        "There was a {thing} in the {place}, and the {who} {did} it at {time} as if "
        "he were {look}.",
        "In the {place} one {thing} stood until {time}, when the {who}, seemingly "
        "{look}, {did} it.",
    ),
    (
        "Once the {who} had {did} the {thing} at {time}, the {look} man in the "
        "{place} went to bed.",
        "After some {who} {did} the {thing} around {time}, someone {look} in the "
        "{place} lay down.",
    ),
)
TROUBLE = [
    *("the", "the", "a", "an", "cat", "cats", "walked", "walking", "running", "THE"),
    *("naïve", "Straße", "猫", "🙂", "it's", "U.S.", "end.", "(so)", "&amp;", "no!"),
    *("3.5", "3,5", "well-known", "new-\n", "\t", ""),
]

Meaning = dict[str, int]


def relatives(rng: np.random.Generator) -> dict[str, str]:
    """A reference and seven sentences by their relation to it.

    "free paraphrase": the free frame, the other word in three of six slots; "close
    paraphrase": the same frame, the other word everywhere; "unrelated": the same frame,
    another idea everywhere; "another frame": both; "negated"; "shuffled"; and "near
    copy": the free paraphrase but for two words.
    """
    meaning = {slot: int(rng.integers(len(ideas))) for slot, ideas in WORDS.items()}
    here, there = rng.permutation(len(FRAMES))[:2]
    (plain, free), (elsewhere, _) = FRAMES[here], FRAMES[there]
    reference, nothing = tell(plain, meaning), changed(meaning, list(WORDS), rng)
    half = rng.permutation(list(WORDS))[:3].tolist()
    shuffled = rng.permutation(reference.rstrip(".").split()).tolist()
    return {
        "reference": reference,
        "free paraphrase": tell(free, meaning, half),
        "close paraphrase": tell(plain, meaning, list(WORDS)),
        "unrelated": tell(plain, nothing),
        "another frame": tell(elsewhere, nothing),
        "negated": tell(plain.replace("{did}", "never {did}"), meaning),
        "shuffled": " ".join(shuffled) + ".",
        "near copy": tell(free, meaning, half[:1]),
    }


def systems(
    rng: np.random.Generator, alike: bool, count: int = 8, lines: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """References, what systems make of them, and the errors planted in each: three
    arrays (count, lines).

    The first system plants no errors, the last four a line on average. Each uses the
    other word, which is correct, in some share of the slots, its freedom: 0.3 for all
    if `alike`, otherwise the systems have freedoms from 0 to 0.9 in random order.
    """
    freedoms = [0.3] * count if alike else rng.permutation(count) / (count - 1) * 0.9
    rows = [
        [_with_errors(rng, mean, freedom) for _ in range(lines)]
        for mean, freedom in zip(np.linspace(0, 4, count), freedoms, strict=True)
    ]
    references = np.array([[line[0] for line in row] for row in rows])
    said = np.array([[line[1] for line in row] for row in rows])
    return references, said, np.array([[line[2] for line in row] for row in rows])


def troublesome(rng: np.random.Generator, most: int = 12) -> str:
    """A text of 0 to `most` - 1 pieces that tokenizers disagree about: repeated words,
    punctuation, numbers, accents, other scripts, white space."""
    return " ".join(rng.choice(TROUBLE, size=rng.integers(most)).tolist())


def tell(frame: str, meaning: Meaning, other: Collection[str] = ()) -> str:
    """The sentence of a frame; the slots in `other` use the second word."""
    return frame.format(**{s: WORDS[s][i][s in other] for s, i in meaning.items()})


def changed(
    meaning: Meaning, slots: Collection[str], rng: np.random.Generator
) -> Meaning:
    """The meaning with another idea in each of these slots."""
    shift = {slot: int(rng.integers(1, len(WORDS[slot]))) for slot in slots}
    return {s: (i + shift.get(s, 0)) % len(WORDS[s]) for s, i in meaning.items()}


def _with_errors(
    rng: np.random.Generator, mean: float, freedom: float
) -> tuple[str, str, int]:
    """A reference, what a system makes of it, and how many slots have a wrong idea."""
    meaning = {slot: int(rng.integers(len(ideas))) for slot, ideas in WORDS.items()}
    frame = FRAMES[rng.integers(len(FRAMES))][0]
    slots = rng.permutation(list(WORDS)).tolist()
    wrong = slots[: rng.binomial(5, mean / 5)]
    other = [slot for slot in WORDS if rng.random() < freedom]
    said = tell(frame, changed(meaning, wrong, rng), other)
    return tell(frame, meaning), said, len(wrong)
