"""Both sides choose among settings."""

from __future__ import annotations

from miniature_paper import NoBed, tuned

from limbeck.experiments import Arm, Miniature, Paper

paper = Paper(
    id=2,
    title="A tuned method",
    claim="The method is better.",
    composition="nothing",
    method=Arm(tuned, {"gain": 1.0}, tune={"rate": (0.1, 0.3)}),
    baseline=Arm(tuned, {"gain": 0.0}, tune={"rate": (0.1, 0.3, 1.0)}),
    control=Arm(tuned, {"gain": -1.0}),
    miniature=Miniature(beds=(NoBed(),), seeds=3),
    metric="accuracy",
)
