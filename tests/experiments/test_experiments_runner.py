"""Runs of a paper that costs nothing: plans, tuning, fairness, resuming, processes and Ray, the ledger."""

from __future__ import annotations

import importlib
import json

import pytest

from limbeck.errors import LimbeckError, UsageError
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Sequential
from limbeck.experiments import units as units_module
from limbeck.experiments.runner import Plan, check_equal, judge, run_papers, savings
from limbeck.experiments.units import Unit, execute, fingerprint, load_paper


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_STORE", str(tmp_path / "store"))


def go(tmp_path, name="miniature_paper", **settings):
    return run_papers([f"{name}"], ledger=tmp_path / "ledger", progress=False, **settings)[0]


@pytest.fixture(autouse=True)
def plain_names(monkeypatch):
    """Test modules are top-level: let a name without a dot be one."""
    monkeypatch.setattr(units_module, "paper_files", lambda: {})
    real = units_module._module
    names = ("miniature_paper", "tuned_paper")
    monkeypatch.setattr(
        units_module, "_module", lambda name: importlib.import_module(name) if name in names else real(name)
    )


def test_entry_has_what_the_ledger_promises(tmp_path):
    found = go(tmp_path)
    assert json.loads((tmp_path / "ledger" / "miniature_paper.json").read_text()) == found
    assert found["verdict"] == "holds" and found["plan"] == {"looks": [3], "level": 0.95, "seeds": [0, 1, 2]}
    row = found["comparisons"][0]
    sides = [
        [found["arms"][arm]["seeds"][str(s)]["metrics"]["accuracy"] for s in range(3)] for arm in ("method", "baseline")
    ]
    assert row["differences"] == pytest.approx([a - b for a, b in zip(*sides)])
    assert found["equal"]["steps"] == {
        "arms": {"method": 10.0, "baseline": 10.0, "control": 10.0},
        "equal": True,
        "required": True,
    }
    assert found["environment"]["threads"] == 1 and found["environment"]["torch"]
    assert found["beds"] == [{"name": "nothing", "digest": "0" * 64}]
    assert found["arms"]["method"]["seeds"]["0"]["metrics"]["threads"] == 1
    assert found["store"]["entries"] == 1 and found["store"]["hits"] == 8  # nine units, one made the table


def test_same_seeds_same_numbers(tmp_path):
    first, again = go(tmp_path), go(tmp_path, fresh=True)
    pick = [
        {n: arm["seeds"][s]["metrics"] for n, arm in e["arms"].items() for s in arm["seeds"]} for e in (first, again)
    ]
    assert pick[0] == pick[1]


def test_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    calls = []
    real = units_module.execute

    def counting(unit, exchange=None):
        calls.append(unit)
        if len(calls) == 5:
            raise RuntimeError("cut off")
        return real(unit, exchange)

    monkeypatch.setattr("limbeck.experiments.backends.execute", counting)
    with pytest.raises(RuntimeError):
        go(tmp_path)
    assert not (tmp_path / "ledger" / "miniature_paper.json").exists()
    go(tmp_path)
    assert len(calls) == 5 + 5  # four of nine were kept
    go(tmp_path)
    assert len(calls) == 10
    go(tmp_path, seeds=4)
    assert len(calls) == 13


def test_changed_source_starts_anew(monkeypatch):
    before = fingerprint("miniature_paper")
    import miniature_paper

    monkeypatch.setattr(miniature_paper.NoBed, "digest", lambda self: "1" * 64)
    assert fingerprint("miniature_paper") != before


def test_tuning_uses_validation_and_other_seeds_and_is_told(tmp_path):
    found = go(tmp_path, "tuned_paper")
    method, baseline, control = (found["arms"][name]["tuning"] for name in ("method", "baseline", "control"))
    assert method["settings"] == 2 and baseline["settings"] == 3 and control == {"settings": 1}
    assert method["chosen"] == {"rate": 0.3} and baseline["chosen"] == {"rate": 0.3}
    assert method["split"] == "validation" and method["seeds"] == [1000]
    assert found["arms"]["method"]["settings"] == {"gain": 1.0, "rate": 0.3}
    assert all(int(seed) < 1000 for seed in found["arms"]["method"]["seeds"])


def test_unequal_arms_are_refused():
    results = {
        (arm, 0): {"costs": {"steps": steps}} for arm, steps in (("method", 10), ("baseline", 20), ("control", 10))
    }
    with pytest.raises(UsageError, match=r"differ in steps \(method 10, baseline 20, control 10\)"):
        check_equal(load_paper("miniature_paper"), results)


def test_method_may_not_choose_among_more_settings_than_the_baseline():
    import miniature_paper as m

    with pytest.raises(UsageError, match="at least as many"):
        Paper(
            2,
            "t",
            "c",
            "x",
            Arm(m.arm, tune={"gain": (0.0, 1.0)}),
            Arm(m.arm),
            Arm(m.arm),
            Miniature((m.NoBed(),)),
            "accuracy",
        )


def test_sequential_plan_splits_the_error_and_stops_early(tmp_path, monkeypatch):
    import dataclasses

    import miniature_paper as m

    plan = Plan.of(dataclasses.replace(m.paper, miniature=Miniature((m.NoBed(),), Sequential((3, 6)))), None)
    assert plan.looks == (3, 6) and plan.level == pytest.approx(0.975)
    monkeypatch.setattr(m, "paper", dataclasses.replace(m.paper, miniature=Miniature((m.NoBed(),), Sequential((3, 6)))))
    found = go(tmp_path)
    assert found["plan"]["seeds"] == [0, 1, 2] and found["comparisons"][0]["level"] == pytest.approx(0.975)


def test_lower_is_better_turns_the_sign():
    results = {("method", s): {"metrics": {"loss": 1.0 + 0.01 * s}} for s in range(3)}
    results |= {("baseline", s): {"metrics": {"loss": 2.0}} for s in range(3)}
    row = judge(Comparison("loss", better="lower"), results, range(3), 0.95)
    assert row["mean"] == pytest.approx(0.99) and row["verdict"] == "holds"


def test_arm_without_the_metric_and_arm_that_fails(tmp_path):
    with pytest.raises(LimbeckError, match="no 'loss', only accuracy"):
        judge(Comparison("loss", better="lower"), {("method", 0): {"metrics": {"accuracy": 1.0}}}, [0], 0.95)
    with pytest.raises(RuntimeError, match="fails"):
        execute(Unit("miniature_paper", "method", 0, "test", {"fail": True}))


def test_not_a_number_is_refused(monkeypatch):
    import dataclasses

    import miniature_paper as m

    monkeypatch.setattr(m, "paper", dataclasses.replace(m.paper, method=Arm(lambda run: {"accuracy": float("nan")})))
    with pytest.raises(LimbeckError, match="seed 0: accuracy is nan"):
        execute(Unit("miniature_paper", "method", 0, "test", {}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"better": "more"}, "higher"),
        ({"others": {"baseline": Arm(print)}}, "own sides"),
        ({"comparisons": (Comparison(against="nobody"),)}, "'nobody'"),
    ],
)
def test_paper_refuses(change, words):
    import dataclasses

    import miniature_paper as m

    with pytest.raises(UsageError, match=words):
        dataclasses.replace(m.paper, **change)


def test_other_refusals(tmp_path):
    with pytest.raises(UsageError, match="no paper 'nkdd'"):
        run_papers(["nkdd"], progress=False)
    with pytest.raises(UsageError, match=r"no module 'nolab\.papers\.method'"):
        run_papers(["nolab.papers.method"], progress=False)
    with pytest.raises(UsageError, match="no `paper"):
        run_papers(["json.decoder"], progress=False)
    with pytest.raises(UsageError, match="backend='slurm'"):
        go(tmp_path, backend="slurm")
    with pytest.raises(UsageError, match="looks"):
        Sequential((3, 3))
    with pytest.raises(UsageError, match="beds is empty"):
        Miniature(())
    with pytest.raises(UsageError, match="both fixed and tuned"):
        Arm(print, {"a": 1}, {"a": (1, 2)})
    with pytest.raises(UsageError, match="two arms"):
        Comparison(method="a", against="a")


def test_the_store_saves_an_entry_once_per_unit_and_nothing_in_the_unit_that_made_it():
    made = {"digest": "a", "hit": False, "seconds": 5.0}
    found = {"digest": "a", "hit": True, "seconds": 5.0}
    assert savings([{"store": [made, found, found]}, {"store": [found, found]}, {"store": []}]) == (1, 5.0)
