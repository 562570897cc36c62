"""The stages of the cleaning funnel that look at one document alone (notebook 04.7).

Language and quality by rules, a linear classifier on hashed words, overlap with texts
that a model must not see, personal data, and the MinHash signature by which `funnel`
finds near duplicates. Only NumPy is loaded, so that many processes can share a machine.
"""

from __future__ import annotations

import html
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha1
from itertools import pairwise
from pathlib import Path

import numpy as np

LARGEST = 2_000_000  # bytes of a file: what is larger is data, not prose
QUOTED = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


def read(root: Path, name: str) -> tuple[str, str]:
    """The prose of a file and "", or what there is and why it cannot be used."""
    path = root / name
    try:
        if path.stat().st_size > LARGEST:
            return "", "too large"
        text = path.read_bytes().decode()
    except OSError:
        return "", "unreadable"
    except UnicodeDecodeError:
        return "", "not UTF-8"
    if "\0" in text:
        return "", "not text"
    if name.endswith(".py"):
        text = "\n\n".join(found[1].strip() for found in QUOTED.findall(text))
    elif name.endswith("METADATA"):
        text = text.partition("\n\n")[2]
    elif name.endswith(".html"):
        text = html.unescape(TAGS.sub(" ", text))
    return text, "" if text.strip() else "no prose"


FUNCTION_WORDS = frozenset(
    "the of and to a in is that it was for on are as with be this from or not he she "  # noqa: SIM905
    "his her they you we have had an by at but when if".split()
)
# What each number of `measures` may be; the first that is not is the reason.
LIMITS: dict[str, tuple[float, float]] = {
    "function words": (0.1, 1),
    "words": (30, 100_000),
    "letters per word": (3, 10),
    "words with a letter": (0.75, 1),
    "marks per word": (0, 0.1),
    "bullet lines": (0, 0.9),
    "repeated lines": (0, 0.3),
    "commonest pair": (0, 0.1),
}


def measures(text: str) -> dict[str, float]:
    """The numbers that LIMITS bounds: shares, but for words and letters per word.
    After the rules of Gopher (Rae et al. 2021)."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = Counter(pairwise(words))
    n, rows = max(1, len(words)), max(1, len(lines))
    return {
        "function words": sum(w.lower() in FUNCTION_WORDS for w in words) / n,
        "words": len(words),
        "letters per word": sum(map(len, words)) / n,
        "words with a letter": sum(w.lower() != w.upper() for w in words) / n,
        "marks per word": (text.count("#") + text.count("...")) / n,
        "bullet lines": sum(line[0] in "*-•|" for line in lines) / rows,
        "repeated lines": 1 - len(set(lines)) / rows,
        "commonest pair": max(pairs.values(), default=0) / n,
    }


def luhn(found: str) -> bool:
    """Whether the last digit of a card number checks the others (Luhn 1960)."""
    digits = [int(c) for c in reversed(found) if c.isdecimal()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban(found: str) -> bool:
    """Whether an account number leaves 1 when divided by 97 (ISO 13616)."""
    code = "".join(found.split())
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


# kind: its form, and a check that only true ones pass
_IBAN = r"\b[A-Z]{2}\d\d(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?\b"
PERSONAL: dict[str, tuple[re.Pattern[str], Callable[[str], bool] | None]] = {
    "iban": (re.compile(_IBAN), iban),
    "card": (re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), luhn),
    "email": (re.compile(r"\b[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+"), None),
    "phone": (re.compile(r"(?<![\w.-])\+?\d{2,5}[ -]\d{3,4}[ -]?\d{3,5}\b"), None),
}


def redact(text: str, checked: bool = True) -> tuple[str, Counter[str]]:
    """The text with <kind> in place of personal data, and how often of each kind.
    Unless `checked`, what has the form counts."""
    counts: Counter[str] = Counter()
    for kind, (form, true) in PERSONAL.items():
        found = list(form.finditer(text))
        if checked and true:
            found = [match for match in found if true(match[0])]
        for match in reversed(found):
            text = f"{text[: match.start()]}<{kind}>{text[match.end() :]}"
            counts[kind] += 1
    return text, counts


WORD = re.compile(r"\w+")
BUCKETS = 2**16  # of the hashed words of the classifier


def log_odds(good: Iterable[str], bad: Iterable[str]) -> np.ndarray:
    """Weights (BUCKETS,) of a linear classifier: naive Bayes over hashed words."""
    shares = []
    for texts in (good, bad):
        counts = np.ones(BUCKETS)
        for text in texts:
            np.add.at(counts, _buckets(text), 1)
        shares.append(counts / counts.sum())
    return np.log(shares[0] / shares[1])


def score(weights: np.ndarray, text: str) -> float:
    """Mean weight of the words of a text: above 0 it looks like the good texts."""
    found = _buckets(text)
    return float(weights[found].mean()) if found else 0.0


def _buckets(text: str) -> list[int]:
    return [zlib.crc32(w.encode()) % BUCKETS for w in WORD.findall(text.lower())]


SHARED = 8  # words in a row that a document may not share with a protected text


def grams(text: str, size: int) -> list[str]:
    """Each run of `size` words, lower case, marks left out; all words if fewer."""
    words = WORD.findall(text.lower())
    last = max(1, len(words) - size + 1)
    return [" ".join(words[i : i + size]) for i in range(last)]


SHINGLE, BANDS, ROWS, ALIKE = 5, 16, 8, 0.7
_dice = np.random.RandomState(1)
A = _dice.randint(0, 2**31, BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
B = _dice.randint(0, 2**32, BANDS * ROWS, dtype=np.uint32)


def signature(text: str) -> np.ndarray:
    """MinHash of a text's shingles, (BANDS * ROWS,) uint32: that of datasketch."""
    digests = b"".join(sha1(g.encode()).digest()[:4] for g in set(grams(text, SHINGLE)))
    h = np.frombuffer(digests, "<u4")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # mix the bits
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h = h ^ (h >> np.uint32(16))
    least = np.full(BANDS * ROWS, 2**32 - 1, np.uint32)
    for part in np.array_split(h, len(h) // 1024 + 1):  # stays in the cache
        np.minimum(least, (part[:, None] * A + B).min(0), out=least)
    return least


@dataclass(frozen=True)
class Judged:
    """A document after its own stages: redacted, with the reason for its rejection
    ("" if there is none). What is kept has a digest of its words and a signature."""

    name: str
    text: str
    reason: str
    personal: dict[str, int]
    digest: int = 0
    signature: bytes = b""


@dataclass(frozen=True)
class Judge:
    """The stages that look at one document alone. `weights` are those of `log_odds`
    (None: no classifier) with the least score `floor`; `protected` are grams of
    SHARED words of texts that a model must not see."""

    weights: np.ndarray | None = None
    floor: float = 0.0
    protected: frozenset[str] = frozenset()

    def __call__(self, name: str, text: str, reason: str = "") -> Judged:
        reason = reason or self.reason(text)
        if reason:
            return Judged(name, text, reason, {})
        text, found = redact(text)
        words = " ".join(WORD.findall(text.lower()))
        digest = int.from_bytes(
            sha1(words.encode()).digest()[:8], "little", signed=True
        )
        return Judged(name, text, "", found, digest, signature(text).tobytes())

    def reason(self, text: str) -> str:
        """Why a text is rejected, or ""."""
        for key, value in measures(text).items():
            low, high = LIMITS[key]
            if not low <= value <= high:
                return "language" if key == "function words" else f"rule: {key}"
        if self.weights is not None and score(self.weights, text) < self.floor:
            return "classifier"
        if self.protected and not self.protected.isdisjoint(grams(text, SHARED)):
            return "leaked"
        return ""


def digest(content: bytes) -> int:
    """64 bits of SHA-1, as SQLite stores integers."""
    return int.from_bytes(sha1(content).digest()[:8], "little", signed=True)


def band_keys(numbers: np.ndarray) -> list[int]:
    """A 64-bit key for each band of a signature: equal bands have equal keys."""
    bands = numbers.reshape(BANDS, ROWS)
    return [digest(bytes([i]) + band.tobytes()) for i, band in enumerate(bands)]
