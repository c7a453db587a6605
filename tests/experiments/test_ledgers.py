"""Every committed ledger says what its own numbers say, and judges what its paper file claims today."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from limbeck.experiments.units import load_paper

LEDGERS = sorted((Path(__file__).parents[2] / "ledger").glob("*.json"))


@pytest.fixture(params=LEDGERS, ids=lambda path: path.stem)
def entry(request):
    return json.loads(request.param.read_text())


def test_verdicts_follow_from_the_numbers_of_the_seeds(entry):
    verdicts = []
    for row in entry["comparisons"]:
        sides = [
            np.array([entry["arms"][row[side]]["seeds"][str(seed)]["metrics"][row["metric"]] for seed in used(entry)])
            for side in ("method", "against")
        ]
        better = sides[0] - sides[1] if row["better"] == "higher" else sides[1] - sides[0]
        assert better.tolist() == pytest.approx(row["differences"], abs=1e-12)
        if better.std() > 0:
            low, high = stats.t.interval(row["level"], len(better) - 1, better.mean(), stats.sem(better))
        else:
            low = high = better.mean()
        assert (low, high) == pytest.approx((row["low"], row["high"]), abs=1e-9)
        expected = "holds" if low > -row["margin"] else "does not hold" if high < -row["margin"] else "inconclusive"
        assert row["verdict"] == expected
        if row["decisive"]:
            verdicts.append(expected)
    bad = "does not hold" if "does not hold" in verdicts else "inconclusive"
    assert entry["verdict"] == ("holds" if set(verdicts) == {"holds"} else bad)


def used(entry):
    """The seeds that were judged: all that every arm has."""
    return entry["plan"]["seeds"][: len(entry["comparisons"][0]["differences"])]


def test_the_paper_file_claims_what_was_judged(entry):
    paper = load_paper(entry["name"])
    assert (entry["id"], entry["title"], entry["claim"]) == (paper.id, paper.title, paper.claim)
    assert [
        (row["metric"], row["method"], row["against"], row["better"], row["margin"], row["decisive"])
        for row in entry["comparisons"]
    ] == [(c.metric, c.method, c.against, c.better, c.margin, c.decisive) for c in paper.compared]


def test_what_was_tuned_is_the_best_that_was_tried(entry):
    metric, sign = entry["metric"], 1 if entry["better"] == "higher" else -1
    for name, arm in entry["arms"].items():
        tuning = arm.get("tuning")
        if tuning and tuning.get("tried"):
            assert not set(tuning["seeds"]) & set(entry["plan"]["seeds"]) and tuning["split"] == "validation", name
            best = max(tuning["tried"], key=lambda tried: sign * tried[metric])
            chosen = next(
                tried
                for tried in tuning["tried"]
                if all(tried[key] == value for key, value in tuning["chosen"].items())
            )
            assert chosen[metric] == best[metric], name
            assert arm["settings"] == {**arm["settings"], **tuning["chosen"]}, name
