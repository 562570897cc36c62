"""Reviews of the shops, whose sentiment is known because it was there first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.closed_world.words import capital, listed
from utils.closed_world.world import Dice, World
from utils.runtime import Problem

# topic: (noun phrase, verb, pronoun, pairs of a good and a bad word)
TOPICS = {
    "service": (
        *("the service", "was", "it"),
        "quick/slow friendly/rude patient/hasty careful/careless helpful/useless",
    ),
    "goods": (
        *("the goods", "were", "they"),
        "sturdy/flimsy lovely/ugly perfect/faulty clean/dirty strong/weak",
    ),
    "prices": (
        *("the prices", "were", "they"),
        "fair/steep modest/shocking honest/absurd",
    ),
    "room": (
        *("the shop", "was", "it"),
        "warm/cold tidy/dusty bright/gloomy quiet/noisy",
    ),
}
THEMES = [
    (topic, pair.split("/")[0], pair.split("/")[1])
    for topic, (*_, pairs) in TOPICS.items()
    for pair in pairs.split()
]
ADVERBS = ("", "very ", "really ", "rather ", "quite ")
# x: what the writer found; y: its opposite; np, was, it: the topic.
PLAIN = ("{np} {was} {adverb}{x}", "we found that {np} {was} {adverb}{x}")
NEGATED = (
    "{np} {was} not {y} at all",
    "nobody could say that {np} {was} {y}",
    "{np} {was} never {y}",
)
# These change their meaning, and none of their words, when x and y change places.
TURNING = (
    "{np} {was} not {y} but {x}",
    "{np} {was} {y} at first but {x} in the end",
    "we had heard that {np} {was} {y}, but {it} {was} {x}",
    "{np} {was} {x}, though some say {y}",
)
VISITS = (
    "I went to {shop} on {day}.",
    "On {day} I looked in at {shop}.",
    "This is about {shop}.",
    "It was my third visit to {shop}.",
    "We stopped at {shop} on the way home.",
)
TWINS = 0.1  # the share of reviews that have a twin
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday")
FILLERS = (
    "It was raining when I went in.",
    "My aunt came with me.",
    "I had been there once before.",
    "There is a bench outside the door.",
    "I needed something for a wedding.",
    "A cat sat in the window.",
    "I paid and walked home.",
    "They open at eight in the morning.",
)


@dataclass(frozen=True)
class Review:
    """A review. `label` is 1 for praise and 0 for complaint, `truth` the same before
    label noise. Each of one to five remarks praises or complains and the majority
    decides: `strength` is its lead over the rest, as a share of the remarks.
    Two reviews with the same `pair` (none: -1) have equal words and opposite truth.
    """

    text: str
    label: int
    truth: int
    strength: float
    topic: str
    shop: str
    speaker: str
    pair: int


@dataclass(frozen=True)
class Remark:
    """What one sentence says, and how."""

    form: str
    topic: str
    good: str
    bad: str
    adverb: str
    praise: bool

    def text(self) -> str:
        """The remark as a sentence."""
        phrase, was, it, _ = TOPICS[self.topic]
        x, y = (self.good, self.bad) if self.praise else (self.bad, self.good)
        form = self.form.format(np=phrase, was=was, it=it, x=x, y=y, adverb=self.adverb)
        return capital(form) + "."


def reviews(
    world: World, count: int = 1_000, seed: int = 0, noise: float = 0.0
) -> list[Review]:
    """Reviews in random order, half praise and half complaint; one in ten has a twin.

    With `noise`, each label is flipped with that probability.
    Raises `Problem` when `noise` is not from 0 to 1.
    """
    if not 0 <= noise <= 1:
        raise Problem(f"noise must be a probability from 0 to 1, not {noise!r}.")
    dice = Dice(world.seed, "reviews", seed)
    pairs = [_pair(dice, world, i, noise) for i in range((count + 1) // 2)]
    return dice.shuffled([review for pair in pairs for review in pair][:count])


def _pair(dice: Dice, world: World, number: int, noise: float) -> list[Review]:
    """A complaint and a praise: two that have nothing in common, or twins."""
    twins = dice.chance(TWINS)
    complaint = _remarks(dice, False, twins)
    frame = _frame(dice, world)
    if twins:
        praise = [replace(remark, praise=not remark.praise) for remark in complaint]
    else:
        praise = _remarks(dice, True, twins)
    other = frame if twins else _frame(dice, world)
    pair = number if twins else -1
    return [
        _review(dice, world, complaint, frame, pair, noise),
        _review(dice, world, praise, other, pair, noise),
    ]


def _remarks(dice: Dice, praise: bool, turning: bool) -> list[Remark]:
    """One, three or five remarks on different things, most of them as `praise` says."""
    count = dice.pick((1, 3, 3, 5))
    against = dice.below((count + 1) // 2) if dice.chance(0.5) else 0
    verdicts = dice.shuffled([praise] * (count - against) + [not praise] * against)
    themes = dice.shuffled(THEMES)
    return [
        Remark(_form(dice, turning), *theme, dice.pick(ADVERBS), verdict)
        for theme, verdict in zip(themes, verdicts, strict=False)
    ]


def _form(dice: Dice, turning: bool) -> str:
    if turning:
        return dice.pick(TURNING)
    return dice.pick(dice.pick((*[PLAIN] * 6, NEGATED, TURNING)))


def _frame(dice: Dice, world: World) -> tuple[str, str, list[str]]:
    """The shop, the sentence that names it, and up to two sentences of no opinion."""
    shop = dice.pick(world.shops).name
    visit = dice.pick(VISITS).format(shop=shop, day=dice.pick(DAYS))
    return shop, visit, dice.shuffled(FILLERS)[: dice.below(3)]


def _review(
    dice: Dice,
    world: World,
    remarks: list[Remark],
    frame: tuple[str, str, list[str]],
    pair: int,
    noise: float,
) -> Review:
    shop, visit, fillers = frame
    lead = sum(1 if remark.praise else -1 for remark in remarks)
    truth = int(lead > 0)
    return Review(
        text=" ".join([visit, *fillers, *(remark.text() for remark in remarks)]),
        label=1 - truth if dice.chance(noise) else truth,
        truth=truth,
        strength=abs(lead) / len(remarks),
        topic=remarks[0].topic,
        shop=shop,
        speaker=dice.pick(world.people).name,
        pair=pair,
    )
