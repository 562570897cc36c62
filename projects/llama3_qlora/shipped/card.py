"""The card of a shipped model: what it is, what it read, what it can and cannot do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from projects.llama3_qlora.recipe import TrainConfig
from utils.measure import Interval

CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The companion's {name} model

A Llama with {parameters} million parameters that carries chapters 5 to 12 of the
companion to *LLMs in Production*. It is made for lessons, not for use.

{purpose}

## Data

{data}

The prose and the code are the documentation and the source of the Python standard
library (PSF licence), read from the Python that trained the model; modules are held out
by a hash of their name. All else is written by `utils/closed_world` from seeds. Nothing
was taken from elsewhere, and no text of it is in this folder.

## Recipe

A step reads 4 rows of 512 tokens.

{recipe}

`make models` trains it again; `log.jsonl` has loss, learning rate and gradient norm.

## Measured

On what training never saw, greedily, by `shipped/exam.py` of the project; the interval
is 95 % over the items.

{results}

## Limits

It knows a town that does not exist, and how Python's documentation sounds. Facts about
the real world it has not read, and what it says about them is made up. Names, streets
and goods other than the town's, questions in other words, texts of more than a few
hundred tokens: expect less than the table says. Refusals were learnt from templates and
are no protection. "Known wordings" asks about other people and towns in the words of
training; the other rows ask every second time in words that training never had.
"""
PURPOSES = {
    "base": "It continues text: prose and code in the manner of the library, "
    "statements about the town, answers to `Question:` after a passage.",
    "chat": "It goes on from the base model and follows Llama 3's chat template: it "
    "answers from a text or from memory, does small tasks, calls tools in JSON, "
    "declines what harms.",
}


def write_card(
    folder: Path,
    n_parameters: int,
    weights: Mapping[str, Mapping[str, float]],
    stages: Mapping[str, TrainConfig],
    results: Mapping[str, Interval],
) -> None:
    """Write `README.md` and `exam.json` of a shipped model into its folder. `weights`
    and `stages` are the mixtures and settings of training, stage by stage; those after
    the one named like the folder are not this model's."""
    own = list(stages)[: list(stages).index(folder.name) + 1]
    sources = dict.fromkeys(source for stage in own for source in weights[stage])
    shares = [[s, *(_share(weights[stage], s) for stage in own)] for s in sources]
    settings = [[k, *(str(getattr(stages[s], k)) for s in own)] for k in SETTINGS]
    rows = [[name, *_figures(result)] for name, result in results.items()]
    text = CARD.format(
        name=folder.name,
        parameters=f"{n_parameters / 1e6:.1f}",
        purpose=PURPOSES[folder.name],
        data=_table(["share of the rows in stage", *own], shares),
        recipe=_table(["setting in stage", *own], settings),
        results=_table(["what", "result", "95 % interval", "items"], rows),
    )
    (folder / "README.md").write_text(text, "utf-8")
    plain = {name: asdict(result) for name, result in results.items()}
    (folder / "exam.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")


SETTINGS = [
    *("steps", "optimizer", "learning_rate", "embedding_rate", "min_rate", "warmup"),
    *("weight_decay", "betas", "clip", "precision", "seed"),
]


def _share(weights: Mapping[str, float], source: str) -> str:
    return f"{weights[source]:.0%}" if source in weights else ""


def _figures(result: Interval) -> list[str]:
    interval = f"{result.low:.3f} to {result.high:.3f}"
    return [f"{result.mean:.3f}", interval, str(result.count)]


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
