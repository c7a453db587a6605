"""Looking at an objective before training with it: the scales of its terms, and what a step costs beside other objectives."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping
from typing import Any

import torch

from limbeck.measure.base import Measurement
from limbeck.measure.tensors import peak_tensor_bytes
from limbeck.objectives.base import Loss, terms_of
from limbeck.signals import to_device
from limbeck.training.balance import gradient_norms
from limbeck.training.batches import Feed, part
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Distil, State
from limbeck.training.randomness import derived_seed, restored_generators, seed_everything
from limbeck.training.trainer import EXAMPLES, Trainer
from limbeck.training.update import Updater

WARM = 1  # rounds that are not counted


class _Enough(Exception):
    """Ends a run that has been looked at."""


class _Watched(Distil):
    """A Distil that notes the terms of its first steps, and then stops."""

    def __init__(self, procedure: Distil, steps: int):
        super().__init__(copy.deepcopy(procedure.student), procedure.teacher, procedure.objective, procedure.balance)
        self.steps, self.rows = steps, []

    def combine(self, losses: Mapping[int, Loss], state: State) -> Loss:
        norms = gradient_norms([loss.value for loss in losses.values()], self.student.parameters())
        total = super().combine(losses, state)
        factors = [float(v) for name, v in total.parts.items() if name.startswith("balance(")] or [1.0] * len(losses)
        for (index, loss), norm, factor in zip(losses.items(), norms.tolist(), factors):
            parts = {name: float(value) for name, value in loss.parts.items()}
            self.rows.append((index, float(loss.value.detach()), norm, factor, parts))
        return total

    def after_step(self, state: State) -> None:
        super().after_step(state)
        if state.step + 1 >= self.steps:
            raise _Enough


def loss_scales(
    procedure: Distil, task: Any, config: TrainingConfig, seed: int = 0, steps: int = 10
) -> list[dict[str, Any]]:
    """How large each term of a procedure's objective is over the first steps of a training run, which a copy of the student makes.

    One entry per term: `name`, `weight`, `value` (mean of the unweighted loss), `gradient_norm` (mean 2-norm of its gradient with
    respect to the student), `factor` (of the balance), `share` (of the sum of weight x factor x gradient norm: how much of the pull is
    this term's) and `parts` (mean value of each named part).
    """
    watched = _Watched(procedure, steps)
    with contextlib.suppress(_Enough):
        Trainer(config, None, seed, progress=False).run(watched, task)
    made = []
    for index, (term, weight) in enumerate(terms_of(procedure.objective)):
        rows = [row for row in watched.rows if row[0] == index]
        if not rows:
            continue
        value, norm, factor = (sum(row[i] for row in rows) / len(rows) for i in (1, 2, 3))
        parts = {name: sum(row[4][name] for row in rows) / len(rows) for name in rows[0][4]}
        made.append(
            {
                "name": term.name,
                "weight": weight,
                "value": value,
                "gradient_norm": norm,
                "factor": factor,
                "parts": parts,
            }
        )
    whole = sum(abs(row["weight"]) * row["factor"] * row["gradient_norm"] for row in made)
    for row in made:
        pull = abs(row["weight"]) * row["factor"] * row["gradient_norm"]
        row["share"] = pull / whole if whole else 0.0
    return made


def step_costs(
    procedures: Mapping[str, Distil], task: Any, config: TrainingConfig, seed: int = 0, rounds: int = 5
) -> dict[str, dict[str, Measurement]]:
    """Time and memory of one training step of each procedure, on one batch of the config, on copies of the students.

    `step_time`: seconds of forward, backward and update, teacher included; the procedures take turns, round by round, so that a
    machine's drift falls on all alike; median and quartiles. `step_memory`: bytes in tensors at the peak of forward and backward.
    """
    from accelerate import Accelerator

    accelerator = Accelerator()
    device = accelerator.device
    feed = Feed(task, config, seed)
    batch = feed.first()
    ready = {}
    with restored_generators():
        for name, procedure in procedures.items():
            own = Distil(copy.deepcopy(procedure.student), procedure.teacher, procedure.objective, procedure.balance)
            own.student.to(device)
            seed_everything(derived_seed(seed, "prepare"))
            own.prepare(to_device(part(batch, 0, EXAMPLES), device), device)
            for module in own.modules.values():
                module.to(device).train()
            ready[name] = (own, Updater(own, config, accelerator))
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        state = State(0, config.total_steps(feed.examples), 0.0, seed, device)
        for number in range(WARM + rounds):
            for name, (own, updater) in ready.items():
                seed_everything(seed)
                started = time.perf_counter()
                updater.compute(batch, state)
                updater.move(0.0)
                own.after_step(state)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= WARM:
                    seconds[name].append(time.perf_counter() - started)
        memory = {name: peak_tensor_bytes(lambda u=u: u.compute(batch, state)) for name, (_, u) in ready.items()}
    settings = {"batch_size": config.batch_size, "precision": config.precision}
    where = f"torch, {device}, {torch.get_num_threads()} threads"
    shared = {"where": where, "settings": settings}
    return {
        name: {
            "step_time": Measurement.of_runs("step_time", seconds[name], unit="seconds", **shared),
            "step_memory": Measurement.of_runs("step_memory", [memory[name]], unit="bytes", **shared),
        }
        for name in ready
    }
