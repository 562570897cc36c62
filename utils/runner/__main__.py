"""Runs the notebooks of the book: `python -m utils.runner run|refresh|site`.

Each notebook is executed by papermill in a process of its own (`execute`), several at a
time with one thread each; what is finished and unchanged is not run again (`schedule`).
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from utils.runner import canonical, report
from utils.runner.schedule import Plan, Result, key, ledger, run
from utils.runtime import ROOT, SCALES, Problem


def _write_reports(plan: Plan) -> None:
    """The report on all notebooks that have a result, coverage and claims."""
    paths = replace(plan, only="").notebooks()
    # In executed, html and results; a dot begins a draft of another runner.
    for stray in plan.build.glob("[ehr]*/[!.]*.*"):
        if stray.stem not in {path.stem for path in paths}:
            stray.unlink(missing_ok=True)  # its notebook has another name now
    stored = [plan.result(path) for path in paths]
    page = report.run_report([result for result in stored if result])
    canonical.write(plan.build / "report.html", page)
    _write_registry(plan.build, plan.build / "executed", "html/")


def _write_registry(folder: Path, executed: Path, pages: str) -> None:
    from utils import registry

    coverage = report.markdown_page(registry.coverage_markdown(), pages)
    canonical.write(folder / "coverage.html", coverage)
    claims = report.markdown_page(registry.claims_markdown(executed), pages)
    canonical.write(folder / "claims.html", claims)


def command_run(plan: Plan) -> int:
    """Execute, report, and say how many failed."""
    run(plan)
    _write_reports(plan)
    results = [plan.result(path) for path in plan.notebooks()]
    failed = [r["name"] for r in results if r and r["status"] != "ok"]
    print(f"{len(results) - len(failed)} of {len(results)} notebooks ran.", end=" ")
    print("See build/report.html.")
    return 1 if failed else 0


def command_refresh(plan: Plan) -> int:
    """Execute with the defaults, and write outputs, costs and heads into the book."""
    executed = run(plan)
    _write_reports(plan)
    costs, code = ledger(plan.root), 0
    for path in plan.notebooks():
        if not plan.done(path, key(path, plan)):
            print(f"{path.stem}  not refreshed: it failed, or changed while it ran")
            code = 1
            continue
        if path in executed or path.stem not in costs:
            costs[path.stem] = _cost(plan.result(path) or {})
        notebook = canonical.read(plan.build / "executed" / path.name)
        canonical.set_head(notebook, _head(path, plan.root, costs[path.stem]))
        canonical.write(path, canonical.text(notebook))
    text = json.dumps(costs, indent=1, sort_keys=True)
    canonical.write(plan.root / "data" / "ledger.json", text + "\n")
    return code


def _cost(result: Result) -> dict[str, Any]:
    columns = ("cpu_seconds", "peak_memory_mb", "code_cells", "python", "torch")
    row = {column: result[column] for column in columns}
    return row | {"cpu_seconds": round(result["cpu_seconds"])}


def _words(cost: dict[str, Any]) -> str:
    if not cost:
        return ""
    memory = f"{cost['peak_memory_mb']} MB on one core of a laptop, offline"
    return f"about {cost['cpu_seconds']} s and {memory}"


def _head(path: Path, root: Path, cost: dict[str, Any]) -> str:
    """The line below a title: a button that opens Colab, time and memory."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    place = f"{repository}/blob/main/{path.relative_to(root).as_posix()}"
    site = "https://colab.research.google.com"
    badge = f"![Open in Colab]({site}/assets/colab-badge.svg)"
    return f"[{badge}]({site}/github/{place}) {_words(cost)}"


def command_site(plan: Plan) -> int:
    """The book as a static site, from the outputs that the repository holds."""
    site, costs, entries = plan.build / "site", ledger(plan.root), []
    for path in plan.notebooks():
        notebook = canonical.read(path)
        page = report.notebook_page(notebook, path.parent)
        canonical.write(site / f"{path.stem}.html", page)
        entries.append((path.stem, notebook, _words(costs.get(path.stem, {}))))
    canonical.write(site / "index.html", report.site_index(entries))
    _write_registry(site, plan.root / "notebooks", "")
    print(f"The site has {len(entries)} notebooks: open build/site/index.html.")
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise Problem(f"{message[0].upper()}{message[1:]}.")


def _scale(text: str) -> str:
    if text not in SCALES:
        raise Problem(f"SCALE must be laptop or gpu, not {text!r}.")
    return text


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise Problem(f"SEED must be a whole number from 0 up, not {text!r}.")
    return int(text)


def _param(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise Problem(f"A parameter is given as NAME=VALUE, not {text!r}.")
    if name in ("SCALE", "SEED"):
        raise Problem(f"{name} has its own option: --{name.lower()} {value}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _positive(kind: Callable[[str], float]) -> Callable[[str], Any]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not number > 0:
            raise Problem(f"A number above 0 is needed, not {text!r}.")
        return number

    return parse


def parse(argv: list[str] | None) -> Plan:
    """The plan of a command line. Raises `Problem` for anything that is wrong in it."""
    parser = Parser(prog="python -m utils.runner", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--only", default="", help="how file names begin: 04, 04.1")
    parser.add_argument("--scale", type=_scale, default="laptop")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument("--param", type=_param, action="append", default=[])
    cores = min(os.cpu_count() or 1, 4)
    parser.add_argument("--jobs", type=_positive(int), default=cores)
    parser.add_argument("--force", action="store_true", help="also what is unchanged")
    parser.add_argument("--timeout", type=_positive(float), default=1800.0)
    parser.add_argument("--memory", type=_positive(float), default=6.0)
    parser.add_argument("--root", type=lambda p: Path(p).resolve(), default=ROOT)
    plan = Plan(**vars(parser.parse_args(argv)))
    defaults = {"SCALE": "laptop", "SEED": 0}
    if plan.command == "refresh" and plan.parameters != defaults:
        raise Problem("A refresh has no parameters: the book shows the defaults.")
    return plan


COMMANDS = {"run": command_run, "refresh": command_refresh, "site": command_site}


def main(argv: list[str] | None = None) -> int:
    """0 when all went well, 1 when a notebook failed, 2 for a wrong command line."""
    try:
        plan = parse(argv)
        return COMMANDS[plan.command](plan)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: what is finished is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
