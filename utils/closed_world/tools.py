"""Requests that need a tool, written as JSON that a program could call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from utils.closed_world import words
from utils.closed_world.checks import Dialogue, said
from utils.closed_world.second_language import lexicon
from utils.closed_world.splits import Wordings, split_of, strangers, towns
from utils.closed_world.world import Dice, World

NO_TOOL = "I have no tool for that."
SYSTEMS = (
    "You have these tools: {tools}",
    "Answer with a call of one of these tools: {tools}",
    "Use a tool where one fits. Tools: {tools}",
)
DAYS = words.listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
CHORES = (
    "feed the hens",
    "paint the fence",
    "water the plants",
    "buy flour",
    "clean the oven",
    "fetch the pony",
    "pick pears",
    "write a letter",
    "wash the windows",
    "mend the gate",
)
NEWS = (
    "the bread is ready",
    "I will come late",
    "the fair is on Sunday",
    "the boat is dry",
    "dinner is at six",
    "the goat is back",
    "we need more flour",
    "the shop is closed today",
)
DISHES = words.listed("soup stew pie bread porridge pancakes dumplings jam")
SKIES = words.listed("sunny rainy foggy windy cloudy snowy")


@dataclass(frozen=True)
class Tool:
    """A tool, how people ask for it (the last way is kept for the test split), and the
    sentence that tells its result ("" where nothing is to be told)."""

    name: str
    description: str
    parameters: dict[str, str]
    asks: tuple[str, ...]
    answer: str = ""

    @property
    def wordings(self) -> Wordings:
        """The ways to ask."""
        return Wordings(self.asks[:-1], self.asks[-1:])

    def as_dict(self) -> dict[str, Any]:
        """What the system message says about the tool."""
        keys = ("name", "description", "parameters")
        return {key: getattr(self, key) for key in keys}


TOOLS = (
    Tool(
        "price_of",
        "the price of an item",
        {"item": "string"},
        (
            "How much is a new {item}?",
            "Look up the price of {an_item}.",
            "What would I have to pay for one {item}?",
            "Please find out what one {item} costs.",
        ),
        "The price of {an_item} is {result}.",
    ),
    Tool(
        "home_of",
        "the street where a person lives",
        {"person": "string"},
        (
            "I want to visit {person}. What is the address?",
            "Look up where {person} lives.",
            "To which street must I go to meet {person}?",
            "Find the home of {person} for me.",
        ),
        "{person} lives in {result}.",
    ),
    Tool(
        "opening_hours",
        "when a shop opens",
        {"shop": "string"},
        (
            "When does {shop} open?",
            "Tell me the opening hours of {shop}.",
            "From what time on can I go to {shop}?",
            "At what hour is the door of {shop} unlocked?",
        ),
        "It opens at {result}.",
    ),
    Tool(
        "add_to_basket",
        "put items into the basket",
        {"item": "string", "quantity": "integer"},
        (
            "Put {quantity} {items} into my basket.",
            "I would like to have {quantity} {items}.",
            "Add {quantity} {items}, please.",
            "My basket still needs {quantity} {items}.",
        ),
        "Your basket now has {result}.",
    ),
    Tool(
        "calculate",
        "the result of a calculation",
        {"expression": "string"},
        (
            "What is {expression}?",
            "Calculate {expression}.",
            "How much is {expression}?",
            "I need the result of {expression}.",
        ),
        "The result is {result}.",
    ),
    Tool(
        "set_reminder",
        "remind the user of a task",
        {"task": "string", "hour": "integer"},
        (
            "Remind me at {hour} to {task}.",
            "At {hour} I must {task}. Remind me.",
            "Set a reminder for {hour}: {task}.",
            "Do not let me forget to {task} at {hour}.",
        ),
    ),
    Tool(
        "weather",
        "the weather of a place on a day",
        {"place": "string", "day": "string"},
        (
            "What will the weather be in {place} on {day}?",
            "Will it rain in {place} on {day}?",
            "On {day} I travel to {place}. Do I need a coat?",
            "How will the sky look over {place} on {day}?",
        ),
        "On {day} it will be {result} in {place}.",
    ),
    Tool(
        "send_message",
        "send a text to a person",
        {"to": "string", "text": "string"},
        (
            "Send {to} a message: {text}.",
            "Write to {to}: {text}.",
            "Tell {to} this: {text}.",
            "Let {to} know: {text}.",
        ),
    ),
    Tool(
        "translate",
        "a word in the other language",
        {"word": "string"},
        (
            "What is {word} in the other language?",
            "Translate the word {word}.",
            "I need the other word for {word}.",
            "How do they say {word} over there?",
        ),
        "The word is {result}.",
    ),
    Tool(
        "find_recipe",
        "a recipe for a dish",
        {"dish": "string", "people": "integer"},
        (
            "How do I make {dish} for {people} people?",
            "Find a recipe of {dish} for {people}.",
            "We are {people} and want to eat {dish}. Is there a recipe?",
            "I want to cook {dish}, and {people} guests will come.",
        ),
    ),
    Tool(
        "remove_from_basket",
        "take an item out of the basket",
        {"item": "string"},
        (
            "Take the {item} out of my basket.",
            "I do not want the {item} any more.",
            "Remove the {item} from the basket.",
            "On second thought, no {item}.",
        ),
    ),
)


def _arguments(dice: Dice, world: World, split: str, tool: Tool) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "item": dice.pick(words.THINGS + words.GOODS),
        "person": dice.pick(strangers(world, split)),
        "to": dice.pick(strangers(world, split)),
        "shop": f"the {dice.pick(words.SHOP_FIRSTS)} {dice.pick(words.SHOP_LASTS)}",
        "quantity": 2 + dice.below(18),
        "expression": f"{2 + dice.below(98)} {dice.pick('+-*')} {2 + dice.below(98)}",
        "task": dice.pick(CHORES),
        "hour": 6 + dice.below(16),
        "place": dice.pick(towns(split)),
        "day": dice.pick(DAYS),
        "text": dice.pick(NEWS),
        "word": dice.pick([word for word in lexicon() if len(word) > 3]),
        "dish": dice.pick(DISHES),
        "people": 2 + dice.below(9),
    }
    return {key: drawn[key] for key in tool.parameters}


def _forms(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, and for an item its plural and its form with "a" or "an"."""
    if "item" not in arguments:
        return arguments
    item = arguments["item"]
    more = {"items": words.plural(item), "an_item": words.with_article(item)}
    return arguments | more


def _result(dice: Dice, world: World, name: str, arguments: dict[str, Any]) -> str:
    """What the tool finds; "" when that would tell a fact of the town."""
    item = arguments.get("item", "item")
    if name == "price_of" and item not in words.THINGS:
        return ""
    hour = 6 + dice.below(6)
    results = {
        "price_of": f"{2 + dice.below(39)} coins",
        "home_of": dice.pick(world.streets),
        "opening_hours": f"{hour} in the morning",
        "add_to_basket": f"{arguments.get('quantity')} {words.plural(item)}",
        "weather": dice.pick(SKIES),
        "translate": lexicon().get(arguments.get("word", ""), ""),
    }
    if name == "calculate":
        a, sign, b = arguments["expression"].split()
        return str(
            {"+": int(a) + int(b), "-": int(a) - int(b)}.get(sign, int(a) * int(b))
        )
    return results.get(name, "")


def compact(value: Any) -> str:
    """JSON without spaces between its parts."""
    return json.dumps(value, separators=(",", ":"))


def tool(dice: Dice, world: World, split: str) -> Dialogue:
    """A request where one listed tool fits, or (one in six) none does; one in three
    that fit go on with the tool's result and end with a sentence about it."""
    wanted, *others = dice.shuffled(TOOLS)[: 3 + dice.below(3)]
    fits = dice.chance(5 / 6)
    listed = dice.shuffled([wanted, *others[:-1]] if fits else others)
    system = dice.pick(SYSTEMS).format(tools=compact([t.as_dict() for t in listed]))
    arguments, about = _asked(dice, world, split, wanted)
    forms = _forms(arguments)
    user = wanted.wordings.pick(dice, split).format(**forms)
    if not fits:
        messages = said(user, NO_TOOL, system=system)
        return Dialogue("tool", messages, {"rule": "no tool"}, f"none: {about}")
    call = {"name": wanted.name, "parameters": arguments}
    messages = said(user, compact(call), system=system)
    result = _result(dice, world, wanted.name, arguments) if dice.chance(0.5) else ""
    if not (result and wanted.answer):
        return Dialogue("tool", messages, {"rule": "json", "call": call}, about)
    answer = wanted.answer.format(result=result, **forms)
    found = {"role": "tool", "content": compact({"result": result})}
    end = {"role": "assistant", "content": answer}
    expected = {"rule": "value", "value": result, "wrong": []}
    return Dialogue("tool", (*messages, found, end), expected, about)


def _asked(
    dice: Dice, world: World, split: str, tool: Tool
) -> tuple[dict[str, Any], str]:
    """Arguments that no other split has for this tool, and what to call both."""
    while True:
        arguments = _arguments(dice, world, split, tool)
        about = f"{tool.name} {compact(arguments)}"
        if split_of(about) == split:
            return arguments, about
