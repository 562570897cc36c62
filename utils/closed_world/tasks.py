"""Little tasks on words and sentences whose only right result can be computed."""

from __future__ import annotations

from collections.abc import Callable

from utils.closed_world import words
from utils.closed_world.checks import Dialogue, said
from utils.closed_world.second_language import lexicon
from utils.closed_world.splits import Wordings, split_of
from utils.closed_world.world import Dice, World

CATEGORIES = {
    "colour": words.COLOURS,
    "animal": words.BEASTS,
    "trade": words.TRADES,
    "place": words.PLACES,
}
NOUNS = tuple(sorted({*words.THINGS, *words.GOODS, *words.BEASTS, *words.PLACES}))
VERBS = words.listed("sleeps waits sings walks stands dances")
LOOKS = words.listed("little old happy hungry white brown")
Made = tuple[dict[str, str], str]  # what the wordings need, and the result


def _some(dice: Dice, least: int, most: int) -> list[str]:
    """So many different nouns."""
    return dice.shuffled(NOUNS)[: least + dice.below(most - least + 1)]


def _sentence(dice: Dice) -> str:
    beast, place = dice.pick(words.BEASTS), dice.pick(words.PLACES)
    look, verb = dice.pick(LOOKS), dice.pick(VERBS)
    near = dice.pick(("near", "behind", "beside"))
    return f"The {look} {beast} {verb} {near} the {place}."


def _on_sentence(result: Callable[[str], str]) -> Callable[[Dice], Made]:
    def make(dice: Dice) -> Made:
        sentence = _sentence(dice)
        return {"x": sentence}, result(sentence)

    return make


def _on_words(
    result: Callable[[list[str]], str], least: int = 3, most: int = 5, join: str = " "
) -> Callable[[Dice], Made]:
    def make(dice: Dice) -> Made:
        nouns = _some(dice, least, most)
        return {"x": join.join(nouns)}, result(nouns)

    return make


def _member(dice: Dice) -> Made:
    """Is a word in the list? Yes and no are equally frequent."""
    nouns = _some(dice, 4, 6)
    there = dice.chance(0.5)
    word = dice.pick(nouns[1:]) if there else nouns[0]
    return {"x": ", ".join(nouns[1:]), "w": word}, "yes" if there else "no"


def _kind(dice: Dice) -> Made:
    """Which word of three is of a kind?"""
    kind, other, third = dice.shuffled(list(CATEGORIES))[:3]
    word = dice.pick(CATEGORIES[kind])
    rest = [dice.pick(CATEGORIES[other]), dice.pick(CATEGORIES[third])]
    x = ", ".join(dice.shuffled([word, *rest]))
    return {"x": x, "w": words.with_article(kind)}, word


def _lookup(dice: Dice) -> Made:
    """A word in the second language, from a dictionary of three words."""
    known = dice.shuffled([noun for noun in NOUNS if noun in lexicon()])[:3]
    entries = ", ".join(f"{noun} is {lexicon()[noun]}" for noun in known)
    word = dice.pick(known)
    return {"x": entries, "w": word}, lexicon()[word]


def _last(dice: Dice) -> Made:
    *nouns, word = _some(dice, 3, 5)
    return {"x": " ".join(nouns), "w": word}, " ".join([*nouns, word])


def _first(dice: Dice) -> Made:
    word, *nouns = _some(dice, 3, 5)
    return {"x": " ".join(nouns), "w": word}, " ".join([word, *nouns])


def _swap(dice: Dice) -> Made:
    sentence, new = _sentence(dice), dice.pick(words.BEASTS)
    old = sentence.split()[2]
    forms = {"x": sentence, "w": old, "v": new}
    return forms, sentence.replace(f" {old} ", f" {new} ")


def _times(dice: Dice) -> Made:
    noun, times = dice.pick(NOUNS), 2 + dice.below(3)
    number = ("two", "three", "four")[times - 2]
    return {"x": noun, "w": number}, " ".join([noun] * times)


def _dashes(nouns: list[str]) -> str:
    return "\n".join(f"- {noun}" for noun in nouns)


def _numbers(nouns: list[str]) -> str:
    return "\n".join(f"{i}. {noun}" for i, noun in enumerate(nouns, start=1))


def _wordings(text: str) -> Wordings:
    """The ways to ask, divided by "|"; the last is kept for the test split."""
    *usual, new = (part.strip() for part in text.split("|"))
    return Wordings(tuple(usual), (new,))


# name: (ways to ask, none of which begins with {x}; how to make what goes into them)
TASKS: dict[str, tuple[str, Callable[[Dice], Made]]] = {
    "repeat": (
        "Repeat this sentence: {x}|Say this again, word for word: {x}|Say after me: {x}"
        "|Copy this sentence: {x}|I say, and you repeat: {x}|Please repeat: {x}"
        "|Write the same sentence once more: {x}",
        _on_sentence(str),
    ),
    "capitals": (
        "Write this in capitals: {x}|Say this in capital letters: {x}|In capitals,"
        " please: {x}|Use capital letters only: {x}|Make these words loud with"
        " capitals: {x}|Turn every letter into a capital: {x}",
        _on_words(lambda nouns: " ".join(nouns).upper(), 2, 4),
    ),
    "small letters": (
        "Write this without capitals: {x}|Use small letters only: {x}|Say this in small"
        " letters: {x}|In small letters, please: {x}|No capital letters: {x}"
        "|Turn every capital into a small letter: {x}",
        _on_sentence(str.lower),
    ),
    "reverse": (
        "Say these words in reverse order: {x}|Turn the order of the words round: {x}"
        "|Write the words from last to first: {x}|Reverse the words: {x}|Read these"
        " words backwards, word by word: {x}|Reverse order, please: {x}"
        "|Begin with the last word and go back to the first: {x}",
        _on_words(lambda nouns: " ".join(nouns[::-1])),
    ),
    "first word": (
        "What is the first word of this? {x}|Give me only the first word: {x}|With"
        " which word does this begin? {x}|Say the first of these words: {x}|First word,"
        " please: {x}|Which word comes first? {x}|Look at the beginning: {x}. What"
        " word is there?",
        _on_words(lambda nouns: nouns[0], 3, 6),
    ),
    "last word": (
        "What is the last word of this? {x}|Give me only the last word: {x}|With which"
        " word does this end? {x}|Say the last of these words: {x}|Last word, please:"
        " {x}|Which word comes last? {x}|Look at the end: {x}. What word is there?",
        _on_words(lambda nouns: nouns[-1], 3, 6),
    ),
    "count": (
        "How many words are there? {x}|Count these words: {x}|What is the number of"
        " these words? {x}|Count, and give only the number: {x}|How many words do you"
        " see? {x}|Number of words, please: {x}|How many words did I write here? {x}",
        _on_words(lambda nouns: str(len(nouns)), 2, 7),
    ),
    "sort": (
        "Sort these words: {x}|Put these words in the order of the alphabet: {x}|Sort"
        " from a to z: {x}|Write these words in alphabetical order: {x}|Sort, please:"
        " {x}|Bring these words into order, a first: {x}"
        "|Which order would these words have in a dictionary? {x}",
        _on_words(lambda nouns: " ".join(sorted(nouns)), 3, 4),
    ),
    "dashes": (
        "Make a list with dashes: {x}|Write each word on a line after a dash: {x}|A"
        " list with dashes, please: {x}|Turn this into a list with dashes: {x}|List"
        " these with a dash each: {x}|I need a list with dashes of this: {x}"
        "|One word a line, and a dash before each: {x}",
        _on_words(_dashes, 2, 5),
    ),
    "numbers": (
        "Make a numbered list: {x}|Number these words, one on a line: {x}|A list with"
        " numbers, please: {x}|Turn this into a numbered list: {x}|List these with a"
        " number each: {x}|I need a numbered list of this: {x}"
        "|One word a line, and a number before each: {x}",
        _on_words(_numbers, 2, 5),
    ),
    "commas": (
        "Join these words with commas: {x}|Put commas between the words: {x}|Write this"
        " with commas: {x}|Separate the words by commas: {x}|With commas, please: {x}"
        "|Add the commas: {x}|Between two words there should be a comma: {x}",
        _on_words(", ".join),
    ),
    "quotes": (
        "Put quotes around this: {x}|Write this in quotes: {x}|Add quotation marks: {x}"
        "|Enclose this sentence in quotes: {x}|In quotes, please: {x}|Somebody said"
        " this, so put it in quotes: {x}|Begin and end with a quote: {x}",
        _on_sentence('"{}"'.format),
    ),
    "yes or no": (
        "Is {w} one of these words? {x}. Answer with yes or no.|Yes or no: does this"
        " list contain {w}? {x}|Look for the word {w}: {x}. Is it there, yes or no?"
        "|Answer with yes or no. Is {w} in the list {x}?|Is the word {w} here, yes or"
        " no? {x}|Yes or no, please: is {w} among {x}?"
        "|Can you find {w} here? {x}. Say yes or no.",
        _member,
    ),
    "one word": (
        "Which of these is {w}: {x}? Answer in one word.|One word only: which of {x} is"
        " {w}?|Find {w} among these: {x}. Say only the word.|Look at {x}. Which one is"
        " {w}? Use one word.|In one word: what in this list is {w}? {x}|Pick {w} from"
        " this list: {x}|Name the word that stands for {w}, and only that: {x}",
        _kind,
    ),
    "look up": (
        "In the other language {x}. What is {w}?|Know that {x}. Translate {w}.|This is"
        " a dictionary: {x}. Give the other word for {w}.|If {x}, what is the word for"
        " {w}?|Look up {w} in this list: {x}|Translate {w}. The words are: {x}"
        "|Use this word list: {x}. How does one say {w}?",
        _lookup,
    ),
    "finish with": (
        "Say these words and finish with {w}: {x}|Write {x} and add {w} at the end.|Put"
        " the word {w} after these: {x}|Repeat {x} and end with {w}.|Finish with {w}"
        " after you say: {x}|Add {w} at the end of this: {x}"
        "|The last word should be {w}, before it stand these: {x}",
        _last,
    ),
    "begin with": (
        "Begin with {w}, then say these words: {x}|Write {x} and add {w} at the"
        " beginning.|Put the word {w} before these: {x}|Start with {w} and go on with"
        " these words: {x}|Say {w} before you say: {x}|Add {w} at the beginning of"
        " this: {x}|The first word should be {w}, after it stand these: {x}",
        _first,
    ),
    "replace": (
        "Replace {w} by {v}: {x}|Say {v} in place of {w}: {x}|Change {w} to {v} in this"
        " sentence: {x}|Write this with {v} for {w}: {x}|Put {v} where {w} stands: {x}"
        "|Use {v} and not {w}: {x}|It was no {w} but this: {v}. Correct the sentence:"
        " {x}",
        _swap,
    ),
    "times": (
        "Say the word {x} {w} times.|Write {x} {w} times.|Repeat {x} {w} times.|Say"
        " {w} times {x}.|Write the word {x} {w} times over.|Please say {x} {w} times."
        "|I want to read {x} {w} times.",
        _times,
    ),
}


def instruction(dice: Dice, world: World, split: str) -> Dialogue:
    """A task on words that no other split combines in this way."""
    name = dice.pick(list(TASKS))
    forms, make = TASKS[name]
    arguments, result = make(dice)
    about = f"{name}: {arguments}"
    while split_of(about) != split:
        arguments, result = make(dice)
        about = f"{name}: {arguments}"
    asked = words.capital(_wordings(forms).pick(dice, split).format(**arguments))
    expected = {"rule": "exact", "text": result, "task": name}
    return Dialogue("instruction", said(asked, result), expected, about)
