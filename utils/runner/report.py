"""HTML: one page for each notebook, the report of a run, and the book as a site."""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from utils.runner import canonical

BOOK = "LLMs in Production, a notebook companion"
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; color: #14304f; background: #fff }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #d5dbe1 }}
a.anchor-link {{ display: none }}
</style></head><body>
{body}
</body></html>
"""
# nbconvert knows nothing of collapsed cells.
FOLDED = """{% extends 'lab/index.html.j2' %}
{% block input_group %}{% if 'solution' in cell.metadata.get('tags', []) %}
<details><summary>Solution</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}{% endblock %}"""


def notebook_page(notebook: NotebookNode, folder: Path) -> str:
    """A notebook as one HTML file; pictures it names in `folder` become part of it."""
    exporter = HTMLExporter(
        embed_images=True,
        extra_loaders=[DictLoader({"folded.html.j2": FOLDED})],
        template_file="folded.html.j2",
    )
    about = {"name": canonical.title(notebook), "path": str(folder)}
    return exporter.from_notebook_node(notebook, resources={"metadata": about})[0]


def markdown_page(markdown: str, pages: str) -> str:
    """Markdown as a page; links to notebooks lead to their pages below `pages`."""
    body = markdown2html(markdown)
    body = re.sub(r'href="[^":]*?([^/"]+)\.ipynb"', rf'href="{pages}\1.html"', body)
    found = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    return PAGE.format(title=found[1] if found else BOOK, body=body)


def index(heading: str, columns: tuple[str, ...], rows: list[list[str]]) -> str:
    """A page with one table; cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    links = '<p><a href="coverage.html">Coverage</a> · <a href="claims.html">Claims</a>'
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    heading = escape(heading)
    return PAGE.format(title=heading, body=f"<h1>{heading}</h1>{links}</p>\n{table}")


def run_report(results: list[dict[str, Any]]) -> str:
    """The index of a run: what each notebook took, what it found, why it failed."""
    columns = ("Notebook", "Status", "Seconds", "Memory (MB)", "Verdicts", "Error")
    return index("The run", columns, [_row(result) for result in results])


def _row(result: dict[str, Any]) -> list[str]:
    kinds = Counter(verdict["verdict"] for verdict in result["verdicts"])
    found = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    name = escape(result["name"])
    return [
        f'<a href="html/{name}.html">{name}</a>',
        result["status"],
        f"{result['seconds']:.0f}",
        str(result["peak_memory_mb"]),
        escape(found),
        escape(result["error"]),
    ]


def site_index(notebooks: list[tuple[str, NotebookNode, str]]) -> str:
    """The first page of the book: (name, notebook, cost) of each, in reading order."""
    rows = []
    for name, notebook, cost in notebooks:
        link = f'<a href="{name}.html">{escape(canonical.title(notebook))}</a>'
        line = re.sub(r"</?p>", "", markdown2html(canonical.summary(notebook)))
        rows.append([link, line, escape(cost)])
    return index(BOOK, ("Notebook", "What it is about", "Cost"), rows)
