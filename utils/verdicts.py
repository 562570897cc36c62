"""Verdict cards: what the book says, what we measured, and what follows.

A card is shown to the reader and, in the same output, stored as data, from which the
claims page is made.
"""

from __future__ import annotations

import html
import platform
from dataclasses import asdict, dataclass

import torch
from IPython.display import display

from utils import registry
from utils.measure import Interval
from utils.runtime import Problem

MIME = "application/vnd.companion.verdict+json"
VERDICTS = ("holds", "half true", "fails", "undecided", "cannot be tested here")
SIGNS = dict(zip(VERDICTS, "✓◐✗?–", strict=True))


@dataclass(frozen=True)
class Verdict:
    """One tested claim, as stored in the notebook."""

    claim: str
    verdict: str
    measured: str
    low: float | None
    high: float | None
    runs: int
    over: str
    why: str
    hardware: str


def judge(value: Interval, threshold: float, *, above: bool = True) -> str:
    """ "holds" when the whole interval is above (or below) the threshold, "fails" when
    it is wholly on the other side, "undecided" when it straddles the threshold."""
    if value.low <= threshold <= value.high:
        return "undecided"
    return "holds" if (value.mean > threshold) == above else "fails"


def card(
    claim: str,
    verdict: str,
    measured: Interval | str,
    why: str,
    *,
    unit: str = "",
    runs: int = 0,
) -> None:
    """Show the verdict card of a claim of the registry.

    `measured` is the deciding number: an `Interval` (its bounds and count are stored),
    or a text for exact counts, with `runs` given by hand. `why` is one sentence that
    tells what was compared with what. Raises `Problem` for an unknown claim or verdict.
    """
    known = {row.id: row for row in registry.claims()}
    if claim not in known:
        raise Problem(f"The registry has no claim {claim!r}.")
    if verdict not in VERDICTS:
        raise Problem(f"A verdict is one of {', '.join(VERDICTS)}, not {verdict!r}.")
    if isinstance(measured, Interval):
        low, high, runs, over = (
            measured.low,
            measured.high,
            measured.count,
            measured.over,
        )
        number = f"{measured} {unit}".strip()
    else:
        low, high, over = None, None, "runs"
        number = measured
    record = Verdict(claim, verdict, number, low, high, runs, over, why, _hardware())
    _show(record, known[claim].claim, known[claim].figure)


def _hardware() -> str:
    """What this run computes on: the GPU once it has been used, else the CPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"CPU, {threads} thread{plural}, {platform.machine()}"


def _show(record: Verdict, claim: str, figure: str) -> None:
    said = f"{claim} ({figure})" if figure else claim
    runs = f"{record.runs} {record.over}, " if record.runs > 1 else ""
    source = "The course says" if record.claim.startswith("C") else "The book says"
    measured = f"{record.measured} ({runs}{record.hardware})"
    rows = {source: said, "We measured": measured, "Why": record.why}
    title = f"{SIGNS[record.verdict]} {record.claim}: {record.verdict}"
    cells = "".join(
        f"<tr><th style='text-align:left;white-space:nowrap'>{name}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    bundle = {
        "text/html": f"<table style='border-left:6px solid #14304f'><caption style="
        f"'text-align:left;font-weight:bold'>{title}</caption>{cells}</table>",
        "text/plain": "\n".join([title, *(f"{n}: {v}" for n, v in rows.items())]),
        MIME: asdict(record),
    }
    display(bundle, raw=True)
