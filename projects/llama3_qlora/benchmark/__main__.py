"""This model beside transformers and LitGPT, on the same weights, in one run.

    python -m projects.llama3_qlora.benchmark [--sizes 5M 57M 375M] [--quick]

On a CPU: float32, one thread, tokens per second of processor time. On a GPU: bfloat16
and the clock, with the share of the device's peak (of arithmetic in training, of memory
bandwidth in decoding). The contestants take turns in every round, so that a busy
machine is busy for all; shown are the median and half the distance between the
quartiles. Everything also goes to build/benchmark/, in files named by the sizes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from projects.llama3_qlora.benchmark.races import SIZES, Bench, Row
from projects.llama3_qlora.linear import AVX512
from utils.runtime import ROOT

OWN = ("cache", "int8")  # tasks that compare this model with itself
ROUNDS = {"5M": 11, "57M": 5, "375M": 2}


def table(rows: list[Row]) -> str:
    """The race against the others, in Markdown; transformers with its faster cache."""
    lines = [
        "| size | task | this model | transformers | LitGPT | this model to "
        "transformers | to LitGPT | share of peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mine, *others = [row.fastest(p) for p in ("this", "transformers", "litgpt")]
        if not row.task.startswith(OWN):
            cells = [row.size, row.task, row.cell(mine)]
            cells += [row.cell(n) + note(n) if n else "" for n in others]
            cells += [
                f"{row.rate(mine) / row.rate(n):.2f}" if n else "" for n in others
            ]
            cells.append(f"{row.share * row.rate(mine):.0%}" if row.share else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note(name: str) -> str:
    return " (static)" if "static" in name else ""


def own_table(rows: list[Row]) -> str:
    """What the cache is worth, and int8 weights."""
    lines = [
        "| size | task | who | tokens per second | to this model |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.task.startswith(OWN):
            base = row.rate("this model")
            for name in row.seconds:
                cells = [row.size, row.task, name, row.cell(name)]
                lines.append(f"| {' | '.join(cells)} | {row.rate(name) / base:.2f} |")
    return "\n".join(lines)


def circumstances(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for package in ("torch", "transformers", "litgpt", "xllamacpp"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    name = torch.backends.cpu.get_cpu_capability()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {name}",
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "float32 products by oneDNN": device == "cpu" and AVX512,
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows: list[Row] = []
    for size in options.sizes:
        rounds = 3 if options.quick else ROUNDS[size]
        rows += Bench(size, rounds, device).run()
        gc.collect()  # the contestants of this size make room for the next
    report(rows, circumstances(device))


def report(rows: list[Row], about: dict[str, Any]) -> None:
    """Print the tables and write them to build/benchmark/."""
    text = f"{table(rows)}\n\n{own_table(rows)}\n\n{json.dumps(about)}\n"
    print(text)
    folder = ROOT / "build" / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = "-".join(dict.fromkeys(row.size for row in rows))
    (folder / f"{sizes}.md").write_text(text, "utf-8")
    values = {"about": about, "rows": [asdict(row) for row in rows]}
    (folder / f"{sizes}.json").write_text(json.dumps(values, indent=1), "utf-8")


if __name__ == "__main__":
    main()
