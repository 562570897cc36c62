"""The card of the Space: what the Hub needs to know, then what a visitor should."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.space.assistant import Limits
from projects.llama3_qlora.space.measured import Numbers

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CARD = """---
title: A very small Llama
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: mit
short_description: A chat with a language model made for lessons
---

# A very small Llama

A chat with the model of the companion to *LLMs in Production*: a Llama of {layers}
layers, made for lessons and not for use. It knows a small town that does not exist.
What it says about the real world is made up, and its refusals are no protection.
`model/README.md` says what it was trained on and how.

## Limits

At most {limits.prompt_tokens} tokens are read and {limits.new_tokens} written;
{limits.at_once} visitors are answered at once, {limits.waiting} more wait in line.
Nothing that a visitor writes is kept.

## Speed and memory

With int8 weights on one thread, torch {torch}, on the machine that built this folder.

| what | measured |
| --- | --- |
| first token after {limits.prompt_tokens} tokens | {first:.3f} CPU seconds |
| from then on | {speed:,.0f} tokens per CPU second |
| memory of the whole program | {memory:,.0f} MB |

## Answers

The Space serves int8 weights; the training made float32 ones. Both answered the first
{count} questions of the exam greedily; {same} of the texts are the same.

| weights | right, 95 % interval |
| --- | --- |
| float32, as trained | {trained} |
| int8, as served | {served} |

The whole exam, with the weights as trained; the questions are in wordings that the
model never saw.

| what | result | 95 % interval | items |
| --- | --- | --- | --- |
{exam}

## Run it elsewhere

`pip install -r requirements.txt`, then `python app.py`; `/health` says whether it is
ready. For a docker Space, set `sdk: docker` and `app_port: 7860` above.
"""


def text(numbers: Numbers, model: Path) -> str:
    """README.md of the Space, from what was measured and the exam of the model."""
    agreement = numbers.agreement
    return CARD.format(
        gradio=metadata.version("gradio"),
        python=PYTHON,
        layers=LlamaConfig.load(model).n_layers,
        limits=Limits(),
        torch=metadata.version("torch"),
        first=numbers.speed.first_token,
        speed=numbers.speed.tokens_per_second,
        memory=numbers.memory_mb,
        count=agreement.same.count,
        same=f"{agreement.same.mean:.0%}",
        trained=agreement.trained,
        served=agreement.served,
        exam=exam(model),
    )


def exam(model: Path) -> str:
    """Rows of the chat exam, of the questions in new words."""
    results = json.loads((model / "exam.json").read_text("utf-8"))
    return "\n".join(
        f"| {name} | {r['mean']:.3f} | {r['low']:.3f} to {r['high']:.3f} "
        f"| {r['count']} |"
        for name, r in results.items()
        if name.startswith("chat, ") and not name.endswith("known wordings")
    )
