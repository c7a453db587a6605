"""Communication: student and teacher exchange messages, so that the teacher answers what the student saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Loss, Objective
from limbeck.objectives.connectors import width
from limbeck.signals import Signals, Tap, capture, injected
from limbeck.teachers.frozen import FrozenTeacher
from limbeck.training.procedures import Losses, Procedure, State, describe, describe_teacher

READS = ("message", "input")


class Communication(Procedure):
    """Train a student on an objective and on what the teacher answers to its messages.

        student  h_s --E_s--> m_s ------------------+        h_s, H_s: the student's states at `low` and `high`
        teacher            D_t(m_s) --upper layers--> H'_t --E_t--> m_t        (its `low` is replaced by D_t(m_s))
        student  H_s  <- interaction ->  D_s(m_t)

        L = L_objective + i d(H_s, D_s(m_t)) + c mean over depths of d(E_s(x_s), E_t(x_t))
                        + s mean over models and depths of d(D(E(x)), x)

    Each model has one encoder E and one decoder D between its hidden states x (at both depths) and messages of `message`
    features; they are trained with the student, the teacher's own weights are not. d is the mean squared error over tokens
    that count. c is message consistency (both models' messages about the same input agree), s state consistency. With
    `rounds` > 1 the student speaks again, about D_s(m_t), and the interaction is averaged over the rounds.

    student_layers, teacher_layers: module paths (low, high), of vectors (B, D) or sequences (B, L, D) of the same tokens.
    objective: what the student learns from its own signals, such as CrossEntropy(); it may not read a teacher.
    reads: "message", or "input" for a teacher that runs on the input itself: then its answer does not depend on what
    the student said, and the interaction is a hint through an encoder and a decoder.

    Source: Zhao et al., "Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication",
    2023; read: the abstract only (the three terms and the rounds are second-hand). Ours, for want of its text: squared
    errors, perceptrons of one hidden layer for E and D, one pair per model for both depths, what a second round speaks about.
    Raises UsageError for other layouts, for no round, and for weights below 0.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        objective: Objective,
        student_layers: tuple[str, str],
        teacher_layers: tuple[str, str],
        *,
        message: int = 64,
        rounds: int = 1,
        interaction: float = 1.0,
        message_consistency: float = 1.0,
        state_consistency: float = 1.0,
        reads: str = "message",
    ):
        if teacher is student:
            raise UsageError("teacher and student are the same module: copy one of them (copy.deepcopy) first")
        if objective.reads.teacher:
            raise UsageError(
                f"Communication: {objective.name} reads a teacher; add such an objective with Distil instead"
            )
        for name, value in (("message", message), ("rounds", rounds)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"Communication: {name}={value!r} must be a whole number of at least 1")
        weights = {"interaction": interaction, "message": message_consistency, "state": state_consistency}
        for name, value in weights.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise UsageError(f"Communication: the weight {name}={value!r} must be a finite number of at least 0")
        if reads not in READS:
            raise UsageError(f"Communication: reads={reads!r} must be one of {', '.join(READS)}")
        self.student, self.objective, self.weights, self.reads = student, objective, weights, reads
        self.teacher, self.student_layers, self.teacher_layers = FrozenTeacher(teacher), student_layers, teacher_layers
        self.message, self.rounds = message, rounds
        self.modules = {"student": student}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.teacher.to(device)
        modes = {module: module.training for module in self.student.modules()}
        self.student.eval()
        try:
            with torch.no_grad():
                own = capture(self.student, batch, self.student_layers)
        finally:
            for module, mode in modes.items():
                module.training = mode
        theirs = self.teacher.signals(batch, frozenset(self.teacher_layers))
        for owner, signals, layers in (("student", own, self.student_layers), ("teacher", theirs, self.teacher_layers)):
            low, high = (signals[name] for name in layers)
            if low.dim() not in (2, 3) or low.shape != high.shape:
                raise UsageError(
                    f"Communication: the {owner}'s states at {layers[0]!r} and {layers[1]!r} have the shapes {tuple(low.shape)} "
                    f"and {tuple(high.shape)}; they must be the same, (B, D) or (B, L, D)"
                )
            self.modules |= {
                f"{owner}_encoder": _translator(width(low), self.message).to(device),
                f"{owner}_decoder": _translator(self.message, width(low)).to(device),
            }

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        with Tap(self.student, {*self.objective.reads.student, *self.student_layers}) as tap:
            own = tap(batch)
        theirs = self.teacher.signals(batch, frozenset(self.teacher_layers))
        task = self.objective(own, Signals({}), batch)
        ours = [own[name] for name in self.student_layers]
        known = [theirs[name] for name in self.teacher_layers]
        counts = positions.weights(batch, ours[0].shape[:-1], labels=False)

        def distance(x: Tensor, y: Tensor) -> Tensor:
            return positions.mean(
                divergences.mean_squared_error(positions.blank(x, counts), positions.blank(y, counts)), counts
            )

        parts = {
            "interaction": self._interaction(batch, ours, known, distance),
            "message": _mean(distance(self._say("student", s), self._say("teacher", t)) for s, t in zip(ours, known)),
            "state": _mean(
                distance(self._hear(owner, self._say(owner, x)), x)
                for owner, states in (("student", ours), ("teacher", known))
                for x in states
            ),
        }
        total = task.value + sum(weight * parts[name] for name, weight in self.weights.items() if weight)
        return {"main": Loss(total, {**task.parts, **{name: part.detach() for name, part in parts.items()}})}

    def _interaction(self, batch: Mapping[str, Any], ours: list[Tensor], known: list[Tensor], distance) -> Tensor:
        """The student's upper state against every decoded answer."""
        spoken, found = ours[0], []
        for _ in range(self.rounds):
            answer = self._hear(
                "student", self._say("teacher", self._answer(batch, self._say("student", spoken), known))
            )
            found.append(distance(ours[1], answer))
            spoken = answer
        return _mean(found)

    def _answer(self, batch: Mapping[str, Any], message: Tensor, known: list[Tensor]) -> Tensor:
        """The teacher's upper state after it has heard a message."""
        if self.reads == "input":
            return known[1]
        low, high = self.teacher_layers
        with (
            injected(self.teacher.model, {low: self._hear("teacher", message)}),
            Tap(self.teacher.model, {high}) as tap,
        ):
            return tap(batch)[high]

    def _say(self, owner: str, state: Tensor) -> Tensor:
        return self.modules[f"{owner}_encoder"](positions.precise(state))

    def _hear(self, owner: str, message: Tensor) -> Tensor:
        return self.modules[f"{owner}_decoder"](message)

    def model(self) -> nn.Module:
        return self.student

    def describe(self) -> Any:
        settings = {
            name: getattr(self, name) for name in ("student_layers", "teacher_layers", "message", "rounds", "reads")
        }
        return {
            "procedure": type(self).__name__,
            "objective": describe(self.objective),
            "teacher": describe_teacher(self.teacher),
            "settings": describe({**settings, "weights": self.weights}),
        }


def _translator(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, max(width, outputs)), nn.ReLU(), nn.Linear(max(width, outputs), outputs))


def _mean(values) -> Tensor:
    return torch.stack(list(values)).mean()
