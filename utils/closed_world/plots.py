"""The plots of the little stories, with places to fill in.

{A} is the hero and {B} another child; every pronoun ({he}, {him}, {his}; at the start
of a sentence {He}, {His}) is the hero's. {a_thing} stands for "a kite" or "a red kite".
"""

from __future__ import annotations

from dataclasses import dataclass

Slots = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """Alternatives for each sentence of the way to the end, then the possible ends."""

    way: Slots
    ends: tuple[Slots, ...]


WISH = Plot(
    way=(
        (
            "{A} wanted {a_thing} more than anything.",
            "All spring {A} dreamed of {a_thing}.",
            "There was only one thing that {A} wished for, and it was {a_thing}.",
            "{A} saw {a_thing} at the market and could not forget it.",
        ),
        (
            "But the {thing} cost {n} coins, and {he} had only one.",
            "But {he} had no money, and the {thing} cost {n} coins.",
            "{His} pockets were empty, and the {thing} cost {n} coins.",
        ),
        (
            "So {he} asked the {adult} for work.",
            '"I will work for it," {he} said, and went to see the {adult}.',
        ),
        (
            "For {n} days {he} {chore} at the {place}.",
            "Every morning {he} {chore}, and every evening {he} got a coin.",
            "{He} {chore} until {his} arms were tired.",
            "The {adult} laughed, but {he} {chore} all week.",
        ),
        ("", "", "{B} came to help, and the work went twice as fast."),
    ),
    ends=(
        (
            (
                "At last {he} had all the coins and ran to buy the {thing}.",
                "On the last day the {adult} paid {him}, and {he} bought the {thing}.",
            ),
            (
                "{He} held the {thing} in both hands and smiled.",
                "That night the {thing} lay beside {his} bed.",
                "Nobody in the town was happier than {A}.",
            ),
        ),
        (
            (
                "But when {he} came to buy the {thing}, somebody had taken it.",
                "But by then the {thing} was sold.",
            ),
            (
                "{A} was sad, but {he} kept the coins for another day.",
                '"Then I will make one myself," said {A}, and {he} did.',
                "{B} felt sorry for {him} and gave {him} a pear.",
            ),
        ),
    ),
)
LOST = Plot(
    way=(
        (
            "One day {A} lost {his} {look} {thing}.",
            "{A} looked under the bed, but {his} {look} {thing} was gone.",
            "When {A} woke up, {he} could not find {his} {look} {thing}.",
        ),
        (
            "It was a gift from the {adult}, and {he} loved it.",
            "Without the {thing} {he} did not want to go out.",
            "{He} had played with it near the {place} the day before.",
        ),
        (
            "First {he} looked behind the {place}, but there was only {a_beast}.",
            "{He} asked the {adult}, but the {adult} had not seen it.",
            "{He} went to the {place} and looked into every corner.",
        ),
        ("", '"Do not cry," said {B}, "we will look together."'),
    ),
    ends=(
        (
            (
                "Then {he} heard a noise and saw {a_beast} that sat on the {thing}.",
                "At last {he} saw the {thing} in the grass.",
                "In the evening {B} found the {thing} on the roof.",
            ),
            (
                "{A} laughed and took the {thing} home.",
                "{He} cleaned the {thing} and never lost it again.",
                "{He} hugged the {thing} and would not let it go.",
            ),
        ),
        (
            (
                "But the {thing} did not come back.",
                "{A} looked until it was dark, but {he} did not find the {thing}.",
            ),
            (
                "So {B} lent {him} another one, and {he} felt better.",
                "The next day the {adult} made {him} a new one.",
            ),
        ),
    ),
)
BEAST = Plot(
    way=(
        (
            "{A} had {a_look_beast} that liked to climb.",
            "{A} took care of {a_look_beast} for the {adult}.",
            "The best friend of {A} was {a_look_beast}.",
        ),
        (
            "One {weather} day the {beast} ran away.",
            "One {weather} morning the {beast} was stuck on the roof of the {place}.",
            "On {a_weather} day the {beast} fell into the water by the {place}.",
        ),
        (
            "{He} called and called, but the {beast} did not come.",
            "{A} wanted to do something, but {he} was too small.",
            "{He} tried to reach the {beast}, but it was too far away.",
        ),
        (
            "So {he} ran to the {adult} and asked for help.",
            "Then {B} had an idea and brought some pears.",
            "{He} sat down and thought about it.",
        ),
    ),
    ends=(
        (
            (
                "With some bread and a kind word {he} got the {beast} to come.",
                "The smell of pears made the {beast} come at last.",
                "In the end the {beast} jumped right into {his} arms.",
            ),
            (
                "{A} carried the {beast} home and gave it warm milk.",
                '"Never do that again," said {A}, but the {beast} was already asleep.',
                "From that day the {beast} stayed close to {him}.",
            ),
        ),
        (
            (
                "But before {he} could do anything, the {beast} went home alone.",
                "In the meantime the {beast} had found its own way home.",
            ),
            (
                "It was hungry, and it waited at {his} door.",
                "At home {A} found the {beast} asleep in {his} bed.",
            ),
        ),
    ),
)
ERRAND = Plot(
    way=(
        (
            "The {adult} asked {A} to carry {a_thing} to {B}.",
            "{A} had to bring {a_thing} to {B}, who lived by the river.",
            "It was the birthday of {B}, and {A} set out with {a_thing}.",
        ),
        (
            "It was {a_weather} day, and the way was long.",
            "The way went past the {place}, and it was {weather}.",
            '"Be careful with the {thing}," said the {adult}.',
        ),
        (
            "At the {place} {a_look_beast} stood in the way.",
            "Then {a_look_beast} jumped up and tried to take the {thing}.",
            "Halfway there {he} fell, and the {thing} landed in the mud.",
        ),
        (
            "{He} was afraid, but {he} did not turn back.",
            "{A} took a deep breath and sang a song.",
            "{He} thought of {B} and went on.",
        ),
    ),
    ends=(
        (
            (
                "In the evening {he} gave the {thing} to {B}.",
                "{B} was waiting at the door and took the {thing} with both hands.",
            ),
            (
                "They ate pie together, and {A} told the whole story.",
                '"You are very brave," said {B}, and {A} turned red.',
                "{A} slept well that night.",
            ),
        ),
        (
            (
                "When {he} came to {B}, the {thing} was dirty.",
                "{He} came too late, and the {thing} was wet.",
            ),
            (
                '"It does not matter," said {B}, "I am glad that you are here."',
                "But {B} only laughed, and they cleaned it together.",
            ),
        ),
    ),
)
FAIR = Plot(
    way=(
        (
            "{A} wanted to win the prize at the fair.",
            "There was a fair by the {place}, and {A} wanted to show {a_thing}.",
            "Every year the town gave a prize, and {A} had never won it.",
        ),
        (
            "For {n} weeks {he} worked on {a_look_thing}.",
            "{He} made {a_look_thing} and showed it to nobody.",
            "The {adult} taught {him} how to make {a_look_thing}.",
        ),
        (
            "But {B} had made one too, and it was better.",
            "But the night before, {a_beast} sat on it.",
            "But on the day of the fair it was {weather}, and nobody came.",
        ),
        (
            "{A} wanted to give up.",
            "{He} almost cried.",
            '"I will try all the same," said {A}.',
        ),
    ),
    ends=(
        (
            (
                "Then the {adult} looked at it for a long time and smiled.",
                "But in the last hour the whole town came to see it.",
            ),
            (
                "{A} won the prize and shared it with {B}.",
                "To {his} surprise {A} won the prize.",
            ),
        ),
        (
            (
                "The prize went to {B} that year.",
                "In the end the {adult} won the prize.",
            ),
            (
                "{A} clapped the loudest of all.",
                "{A} was not angry, for {he} had learned a lot.",
            ),
        ),
    ),
)
PLOTS = (WISH, LOST, BEAST, ERRAND, FAIR)
