"""A paper that costs nothing: its arms answer with numbers that follow from the seed."""

from __future__ import annotations

import torch

from limbeck.beds.base import Bed
from limbeck.experiments import Arm, Comparison, Miniature, Paper


class NoBed(Bed):
    name = "nothing"

    def digest(self) -> str:
        return "0" * 64


def arm(run, gain=0.0, noise=0.01, steps=10, fail=False):
    if fail:
        raise RuntimeError("this arm fails")
    table = run.tensors({"what": "table", "version": 1}, lambda: {"table": torch.arange(4.0)})
    run.record(steps=steps, samples=steps * 2)
    draw = float(torch.randn(1, generator=run.generator("noise")))
    return {"accuracy": float(table["table"][1]) + gain + noise * draw, "threads": torch.get_num_threads()}


def tuned(run, gain=0.0, rate=1.0):
    run.record(steps=10, samples=20)
    best = 0.3 if run.split == "validation" else 0.0
    return {"accuracy": gain - abs(rate - best) * (run.split == "validation") + 0.001 * run.seed * (1 + gain)}


paper = Paper(
    id=2,
    title="A method",
    claim="The method is better.",
    composition="nothing",
    method=Arm(arm, {"gain": 1.0}),
    baseline=Arm(arm, {"gain": 0.0}),
    control=Arm(arm, {"gain": 0.0, "noise": 0.02}),
    comparisons=(Comparison(), Comparison(method="control", against="baseline", decisive=False)),
    miniature=Miniature(beds=(NoBed(),), seeds=3),
    metric="accuracy",
)
