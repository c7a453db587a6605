"""What tests of paper files share: every arm run for a few steps on a tiny bed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Arm, Paper, Run, Store


def run_arms(paper: Paper, folder: Path, **how) -> dict[str, tuple[dict[str, float], Run]]:
    """Every arm with the first of its settings: name -> (what it measured, its run). how: further arguments of every arm."""
    found = {}
    for name, arm in paper.arms.items():
        run = Run(0, "validation", Store(folder))
        found[name] = arm.run(run, **arm.candidates()[0], **how), run
    return found


def assert_alike(paper: Paper, results: dict[str, tuple[dict[str, float], Run]], *costs: str) -> None:
    """Every arm measured finite numbers, what is compared among them, and spent as much as the others."""
    for found, _ in results.values():
        assert all(math.isfinite(value) for value in found.values())
        assert all(row.metric in found for row in paper.compared)
    for cost in costs or ("steps", "samples", "parameters"):
        assert len({run.costs[cost] for _, run in results.values()}) == 1, cost


def small_characters(module: Any, folder: Path, monkeypatch) -> Run:
    """A run of a paper file whose bed of characters is replaced by a tiny one."""
    monkeypatch.setattr(module, "BED", replace(CHARACTERS, blocks=4, teacher_steps=2, length=32))
    return Run(0, "validation", Store(folder))


def assert_calibrates(arm: Arm, run: Run, examples: int = 16, **few) -> None:
    """An arm that quantizes measures finite numbers and sees as many examples as it was given. few: steps, where it trains."""
    found = arm.run(run, **{**arm.candidates()[-1], "examples": examples, **few})
    assert all(math.isfinite(value) for value in found.values())
    assert run.costs["examples"] == examples


def tiny_patches(bed: Any, **changes: Any) -> Any:
    """A bed of images cut into patches, small enough for a few steps: scikit-learn's digits, two steps of either training."""
    few = {"train": 300, "labelled": 100, "validation": 50, "test": 50, "masked_steps": 2}
    small = {"name": "tiny", "dataset": "digits", "size": 8, "patch": 2, "teacher": (4, 16), "student": (3, 8)}
    return replace(bed, **few | small | changes)
