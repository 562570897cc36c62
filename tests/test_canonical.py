"""The canonicaliser: quiet, complete, and a fixed point of itself."""

import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from utils import verdicts
from utils.runner import canonical

NAMES = {"/where/it/is": "repo", "/where": "home", "/var/tmp": "tmp", "/env": "python"}


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def display(**data):
    mimes = {"html": "text/html", "plain": "text/plain", "png": "image/png"}
    return new_output("display_data", {mimes.get(k, k): v for k, v in data.items()})


def cleaned(*outputs, **metadata):
    """The cell with these outputs, made canonical."""
    cell = new_code_cell("1", outputs=list(outputs), metadata=metadata)
    return canonical.canonical(new_notebook(cells=[cell]), NAMES).cells[0]


def shown(text, name="stdout"):
    """What remains of a printed text."""
    return "".join(output.text for output in cleaned(stream(text, name)).outputs)


@pytest.mark.parametrize(
    ("printed", "quiet"),
    [
        ("in /where/it/is/data", "in <repo>/data"),
        ("/where/it/is", "<repo>"),
        ("/where/it/isnt", "<home>/it/isnt"),  # another folder in the home
        ("/else/where/it/is", "/else/where/it/is"),  # a longer path
        ("<function f at 0x7f10cafe>", "<function f at 0x…>"),
        ("the number 0x7f10cafe", "the number 0x7f10cafe"),
        ("/var/tmp/ipykernel_31/27.py:3: UserWarning", "<cell>:3: UserWarning"),
        ("/var/tmp/tmpab3_x9zq/words", "<tmp>/tmp/words"),
        ("step 1\rstep 2\rdone\n", "done\n"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
    ],
)
def test_texts(printed, quiet):
    assert shown(printed) == quiet


def test_bars_go_and_warnings_stay():
    bar = "epochs:  50%|#####     | 1/2 [00:01<00:01,  1.00s/it]"
    assert shown(f"\r{bar}\r{bar}\n", "stderr") == ""
    assert shown(f"\r{bar}\nUserWarning: far\n", "stderr") == "UserWarning: far\n"
    assert shown("7it [00:01, 6.99it/s]", "stderr") == ""
    assert shown("accuracy 50%|x|\n") == "accuracy 50%|x|\n"  # printed on purpose


def test_streams_are_joined_also_around_what_was_dropped():
    widget = display(**{canonical.WIDGET: {}, "plain": "0%"})
    bar = stream("100%|##| 1/1 [00:01<00:00,  1.00s/it]\n", "stderr")
    outputs = cleaned(stream("a\n"), widget, stream("b\n"), bar, stream("c\n")).outputs
    assert [output.text for output in outputs] == ["a\nb\nc\n"]


def test_rich_outputs():
    table = (
        '<table id="T_0a1b2"><td>/where/it/is</td></table><style>#T_0a1b2 {}</style>'
    )
    picture = "abc/where/it/is"
    (output,) = cleaned(display(html=table, plain="/env/bin", png=picture)).outputs
    assert output.data["text/html"] == (
        '<table id="T_00100"><td>&lt;repo&gt;</td></table><style>#T_00100 {}</style>'
    )
    assert output.data["text/plain"] == "<python>/bin"
    assert output.data["image/png"] == picture


def test_verdict_cards_are_kept():
    assert canonical.VERDICT == verdicts.MIME
    card = {"claim": "Q001", "measured": "at /where/it/is", "low": 0.5, "high": None}
    notebook = new_notebook(cells=[cleaned(display(**{verdicts.MIME: card}))])
    assert canonical.verdicts(notebook) == [card | {"measured": "at <repo>"}]


def test_metadata():
    noise = {"papermill": {"duration": 1}, "collapsed": True, "execution": {}}
    assert cleaned(**noise, tags=[]).metadata == {}
    solution = {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    assert cleaned(**noise, tags=["solution"]).metadata == solution
    notebook = new_notebook(metadata={"widgets": {}, "papermill": {"a": 1}})
    assert canonical.canonical(notebook, NAMES).metadata == canonical.METADATA


def test_text_is_sorted_and_ends_in_a_newline():
    notebook = new_notebook(cells=[new_markdown_cell("# é"), new_code_cell("1")])
    text = canonical.text(canonical.canonical(notebook, NAMES))
    assert text.startswith('{\n "cells": [\n  {\n   "cell_type"') and text.endswith(
        "}\n"
    )
    assert '"id": "cell-001"' in text and '"id": "cell-002"' in text and "# é" in text
    nbformat.validate(nbformat.reads(text, as_version=4))


MARKS = ["<repo>", "&lt;tmp&gt;", " at 0xabcdef", "T_0a1b2 ", "50%|#|", "\x1b[A"]
GLUE = ["/ipykernel_1/2.py", "/tmpabcdefgh", "\r", "\n", "a", ">", "/", "\x1b[", "A"]
PIECES = st.sampled_from([*NAMES, *MARKS, *GLUE])
TEXTS = st.lists(PIECES, max_size=12).map("".join)
OUTPUTS = st.one_of(
    st.builds(stream, TEXTS, st.sampled_from(["stdout", "stderr"])),
    st.builds(lambda a, b: display(html=a, plain=b), TEXTS, TEXTS),
    st.builds(lambda a: new_output("error", ename="E", evalue=a, traceback=[a]), TEXTS),
)


@given(st.lists(OUTPUTS, max_size=4))
def test_a_second_time_changes_nothing(outputs):
    cells = [new_markdown_cell("# A"), new_code_cell("1", outputs=outputs)]
    once = canonical.canonical(new_notebook(cells=cells), NAMES)
    assert canonical.text(canonical.canonical(once, NAMES)) == canonical.text(once)


def test_short_names_cover_this_machine():
    names = canonical.short_names(Path("/some/where"), scratch=Path("/scratch/x"))
    assert names["/some/where"] == "repo" and names["/scratch/x"] == "tmp"
    assert names[str(Path.home())] == "home"
    assert names[tempfile.gettempdir()] == "tmp"
    assert names[sys.prefix] == "python" or len(Path(sys.prefix).parts) <= 3
    assert "/" not in names


@pytest.mark.parametrize("first", ["# T", "# T\nText", "# T\n\nText", "# T\n\n\nText"])
def test_the_head_is_set_once_and_is_no_change(first):
    notebook = new_notebook(cells=[new_markdown_cell(first)])
    before = canonical.identity(notebook)
    for line in ("about 1 s", r"about \1 s"):
        canonical.set_head(notebook, line)
        source = notebook.cells[0].source
        assert source.startswith(f"# T\n\n<!-- head -->\n{line}\n<!-- /head -->")
        assert source.count("head -->") == 2 and source.count("Text") == (
            "Text" in first
        )
        assert canonical.identity(notebook) == before
    assert canonical.title(notebook) == "T"
    assert canonical.summary(notebook) == ("Text" if "Text" in first else "")


def test_a_written_file_is_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    canonical.write(path, "one")
    with pytest.raises(UnicodeEncodeError):
        canonical.write(path, "\ud800")
    assert path.read_text() == "one"
