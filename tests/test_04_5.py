"""04.5: pass@k, mutation, metrics and the problems themselves."""

import ast
import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

pytest.importorskip("bandit", reason="the extra `evaluation` is not installed")

from tests.notebook_code import namespace
from utils import runtime, sandbox
from utils.runtime import Problem
from utils.sandbox import Limits, Test, run

ROOT = Path(__file__).parent.parent
FILE = ROOT / "data" / "code_problems" / "problems.jsonl"
PROBLEMS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
QUICK = Limits(cpu_seconds=0.5)
sealed = pytest.mark.skipif(bool(sandbox.refusal()), reason=sandbox.refusal())

NAMES = [
    "PAIRS", "SWAPS", "without_value", "swapped_operator", "other_constant", "CALLS",
    "other_call", "turned", "OPERATIONS", "RULES", "replaced", "mutants", "plug_in",
    "pass_at_k", "by_counting",
    "expected", "body", "tests_from", "our_findings", "LOOPS", "DECISIONS", "IMPORTS",
    "BLOCKS", "depth", "structure", "share_of", "parses",
]  # fmt: skip
notebook = namespace("04.5", NAMES)
notebook["runtime"] = runtime  # the notebook has it from its setup cell
pass_at_k, mutants = notebook["pass_at_k"], notebook["mutants"]


# The data


def cases_of(problem, part="tests"):
    return [Test(**row) for row in problem[part]]


def test_the_card_counts_right():
    card = (FILE.parent / "README.md").read_text("utf-8")
    wrong = [w for p in PROBLEMS for w in p["wrong"]]
    readings = [r for p in PROBLEMS for r in p.get("readings", [])]
    hidden = [t for p in PROBLEMS for t in p["tests"]]
    assert f"{len(PROBLEMS)} small" in card and len(PROBLEMS) >= 50
    assert f"{len(hidden)} in all" in card
    assert f"({len(wrong)} in all)" in card and f"({len(readings)} in all)" in card
    assert f"{sum(bool(p['wrong']) for p in PROBLEMS)} problems:" in card
    assert f"{sum('vague' in p for p in PROBLEMS)} problems:" in card
    ids = [p["id"] for p in PROBLEMS]
    assert ids == [f"p{i:02d}" for i in range(1, len(PROBLEMS) + 1)]
    assert len({p["name"] for p in PROBLEMS}) == len(PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["name"])
def test_form(problem):
    (function,) = [
        node
        for node in ast.parse(problem["reference"]).body
        if isinstance(node, ast.FunctionDef)
    ]
    arguments = ", ".join(a.arg for a in function.args.args)
    assert problem["signature"] == f"{problem['name']}({arguments})"
    assert len(problem["tests"]) >= 3 and len(problem["examples"]) == 2
    assert len(problem["spec"].split()) >= 10
    assert ("vague" in problem) == ("readings" in problem)
    inputs = [json.dumps(t["args"]) for t in problem["tests"]]
    assert len(set(inputs)) == len(inputs)


@sealed
def test_references_pass_and_faulty_solutions_fail():
    for p in PROBLEMS:
        both = cases_of(p) + cases_of(p, "examples")
        assert run(p["reference"], p["name"], both).solved, p["name"]
        for faulty in p["wrong"] + p.get("readings", []):
            outcome = run(faulty["code"], p["name"], cases_of(p), QUICK)
            assert not outcome.solved, (p["name"], faulty)
            assert outcome.ended == "finished"


# pass@k


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_the_published_formula(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    published = 1 - comb(n - c, k, exact=True) / comb(n, k, exact=True)
    assert math.isclose(pass_at_k(n, c, k), published, abs_tol=1e-9)


def test_pass_at_k_equals_counting():
    for n, c, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if c <= n and k <= n:
            counted = notebook["by_counting"](n, c, k)
            assert math.isclose(pass_at_k(n, c, k), counted, abs_tol=1e-12)


@given(st.integers(2, 20), st.floats(0.01, 0.99), st.data())
def test_only_the_estimator_is_unbiased(n, p, data):
    k = data.draw(st.integers(2, n))
    truth = 1 - (1 - p) ** k
    expected = notebook["expected"]
    assert math.isclose(expected(pass_at_k, n, k, p), truth, abs_tol=1e-9)
    assert expected(notebook["plug_in"], n, k, p) < truth + 1e-9


@pytest.mark.parametrize("wrong", [(5, 6, 1), (5, 2, 6), (5, 2, 0), (5, -1, 1)])
def test_pass_at_k_refuses_what_makes_no_sense(wrong):
    with pytest.raises(Problem, match="pass@k needs"):
        pass_at_k(*wrong)


# Mutation


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["name"])
def test_mutants_are_new_programs(problem):
    found = mutants(problem["reference"])
    codes = [code for _, code in found]
    assert found and len(set(codes)) == len(codes)
    assert ast.unparse(ast.parse(problem["reference"])) not in codes
    for code in codes:
        ast.parse(code)


def test_every_rule_is_used():
    used = {rule for p in PROBLEMS for rule, _ in mutants(p["reference"])}
    assert used == {name for name, _, _ in notebook["RULES"]} and len(used) >= 6


@pytest.mark.parametrize(
    ("code", "mutant"),
    [
        ("x + 1", "x - 1"),
        ("a < b", "a <= b"),
        ("a and b", "a or b"),
        ("f(True)", "f(False)"),
        ("min(a)", "max(a)"),
        ("range(n)", "range(n - 1)"),
        ("f('')", "f('1')"),
    ],
)
def test_a_mutant_by_hand(code, mutant):
    assert mutant in [m for _, m in mutants(code)]


# The rest


def test_body_ends_with_the_indentation():
    assert notebook["body"]("    a\n\n    b\nc\n    d") == "    a\n\n    b"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("assert f(1) == 2", 1),
        ("assert f(1) == 2\nassert f([1], 'a') == {'b': None}", 2),
        ("assert g(1) == 2", 0),
        ("assert f(x) == 2", 0),
        ("assert f(1) != 2", 0),
        ("assert f(1)", 0),
        ("assert True", 0),
        ("assert f({1}) == 2", 0),
        ("f(1) == 2\nassert f(", 0),
        ("", 0),
    ],
)
def test_written_tests_are_read(text, count):
    assert len(notebook["tests_from"](text, "f")) == count


def test_the_two_security_rules():
    found = notebook["our_findings"]
    assert found("eval(x)\nexec(y)") == {"text as code"}
    assert found("run(x, shell=True)") == found("os.popen(x)") == {"shell"}
    assert found("run(x, shell=False)\nevaluate(x)") == set()


def test_structure_by_hand():
    code = (
        "import re\ndef f(x):\n    if x and x > 1 or x < 0:\n"
        "        return [a for a in x]\n    return 2"
    )
    assert notebook["structure"](code) == {
        "lines": 5, "complexity": 5, "depth": 2, "imports": 1,
    }  # fmt: skip


def test_an_interval_for_no_success_has_a_width():
    share = notebook["share_of"]([False] * 20)
    assert share.mean == share.low == 0 and 0.1 < share.high < 0.2
