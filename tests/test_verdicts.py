"""Verdict cards: the rule, what is shown, what is stored."""

import pytest

from utils import registry, verdicts
from utils.measure import Interval, interval
from utils.runtime import Problem


@pytest.fixture
def shown(monkeypatch):
    """What `card` displays: a list of mime bundles."""
    bundles: list[dict] = []
    monkeypatch.setattr(verdicts, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


@pytest.mark.parametrize(
    "low, high, above, verdict",
    [
        (0.1, 0.3, True, "holds"),
        (-0.3, -0.1, True, "fails"),
        (-0.1, 0.3, True, "undecided"),
        (-0.3, -0.1, False, "holds"),
        (0.1, 0.3, False, "fails"),
        (0.0, 0.3, True, "undecided"),
    ],
)
def test_judge(low, high, above, verdict):
    value = Interval((low + high) / 2, low, high, 3)
    assert verdicts.judge(value, 0, above=above) == verdict


def test_a_card_stores_number_interval_and_runs(shown):
    verdicts.card("Q022", "holds", interval([1.0, 1.1, 1.2]), "a < b", unit="bits")
    (bundle,) = shown
    record = bundle[verdicts.MIME]
    assert (record["claim"], record["verdict"], record["runs"]) == ("Q022", "holds", 3)
    assert record["low"] < 1.1 < record["high"]
    assert "1.1 [" in bundle["text/plain"] and "bits" in bundle["text/plain"]
    assert (
        next(c.claim for c in registry.claims() if c.id == "Q022")
        in bundle["text/plain"]
    )


def test_a_course_claim_says_so_and_html_is_escaped(shown):
    verdicts.card("C15", "half true", "2 < 3", "counted", runs=4)
    (bundle,) = shown
    assert "The course says" in bundle["text/plain"]
    assert "2 &lt; 3 (4 runs" in bundle["text/html"]


@pytest.mark.parametrize("claim, verdict", [("Q999", "holds"), ("Q022", "maybe")])
def test_unknown_claims_and_verdicts_are_refused(shown, claim, verdict):
    with pytest.raises(Problem):
        verdicts.card(claim, verdict, "1", "why")
    assert not shown
