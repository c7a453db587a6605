"""One optimizer step: pieces of a batch, backward passes, gradients put together, clipping, update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.signals import to_device
from limbeck.training.batches import split
from limbeck.training.config import TrainingConfig
from limbeck.training.optimizers import make_optimizer
from limbeck.training.procedures import Losses, Procedure, State


class Updater:
    """The optimizers of a procedure and how they move.

    A batch is cut into `gradient_accumulation` pieces per process. With w_i the positions of piece i (Procedure.weight),
    each optimizer follows the gradient of sum_i (w_i / sum_j w_j) loss_i: for a loss that is a mean over positions, the
    gradient of the whole batch. Processes sum their gradients in one buffer, so they all take the same step.
    """

    def __init__(self, procedure: Procedure, config: TrainingConfig, accelerator: Any):
        self.procedure, self.config, self.accelerator = procedure, config, accelerator
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, owned in procedure.optimizers.items():
            for module in owned:
                if module not in procedure.modules:
                    raise UsageError(
                        f"optimizer {name!r} names {module!r}, which is not in {sorted(procedure.modules)}"
                    )
            self.optimizers[name] = make_optimizer([procedure.modules[m] for m in owned], config, name)
        self.parameters: dict[str, list[nn.Parameter]] = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.optimizers.items()
        }

    def compute(self, batch: Mapping[str, Any], state: State) -> dict[str, Tensor]:
        """Forward and backward over a batch; returns the values of the step, gradients are left in the parameters.

        Values: "loss" (summed over optimizers), "parts.NAME", "gradient_norm" (before clipping).
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        moving: set[str] = set()
        for piece, share in self._pieces(batch, state):
            losses = self._losses(to_device(piece, state.device), state)
            moving.update(losses)
            self._backward(losses, share)
            self._collect(values, losses, share)
        self._share(values, state)
        norms = [norm for name in self.parameters if name in moving for norm in self._clip(name)]
        if not norms:
            raise UsageError(f"{type(self.procedure).__name__}.step gave no loss with a gradient to any optimizer")
        values["gradient_norm"] = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        return values

    def move(self, factor: float) -> None:
        """Let every optimizer that has gradients take its step at `factor` times its base learning rate."""
        scales = self.procedure.learning_rates
        for name, optimizer in self.optimizers.items():
            if all(parameter.grad is None for parameter in self.parameters[name]):
                continue
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * factor * scales.get(name, 1.0)
            optimizer.step()

    def _pieces(self, batch: Mapping[str, Any], state: State):
        count = self.config.gradient_accumulation
        if count * state.processes == 1:
            return [(batch, 1.0)]
        pieces = split(batch, count * state.processes)
        weights = [self.procedure.weight(piece) if piece else 0.0 for piece in pieces]
        total = sum(weights)
        mine = range(state.process * count, (state.process + 1) * count)
        counted = [(pieces[i], weights[i] / total) for i in mine if weights[i] > 0]
        return counted or [(next(piece for piece in pieces if piece), 0.0)]  # nothing for this process: keep in step

    def _losses(self, piece: Mapping[str, Any], state: State):
        # Without the cache of cast weights: in older torch a pass without gradient left it weights that have none.
        bf16 = self.config.precision == "bf16"
        with torch.autocast(state.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            losses = self.procedure.step(piece, state)
        unknown = set(losses) - set(self.optimizers)
        if unknown:
            raise UsageError(
                f"{type(self.procedure).__name__}.step gave losses for {sorted(unknown)}; its optimizers are "
                f"{sorted(self.optimizers)}"
            )
        return losses

    def _backward(self, losses, share: float) -> None:
        shared = together(losses)
        remaining = len(shared)
        for names, loss in shared:
            remaining -= 1
            name, value = names[0], loss.value if share == 1.0 else loss.value * share
            if not value.requires_grad or value.numel() != 1:
                raise UsageError(
                    f"the loss {name!r} of {type(self.procedure).__name__}.step must be one number that depends on what is "
                    f"trained; it has the shape {tuple(value.shape)} and requires_grad={value.requires_grad}"
                )
            own = [p for n in names for p in self.parameters[n]] if len(self.optimizers) > 1 else None
            value.backward(inputs=own, retain_graph=remaining > 0)

    def _collect(self, values: dict[str, Tensor], losses, share: float) -> None:
        for (name, *_), loss in together(losses):
            _add(values, "loss", loss.value.detach(), share)
            prefix = "parts." if len(self.optimizers) == 1 else f"parts.{name}."
            for part, value in loss.parts.items():
                _add(values, prefix + part, value.detach(), share)

    def _share(self, values: dict[str, Tensor], state: State) -> None:
        """Sum gradients and values over processes. A parameter that no process has a gradient for keeps none."""
        if state.processes == 1:
            return
        parameters = [p for name in self.parameters for p in self.parameters[name]]
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=state.device)
        gradients = [(p.grad if p.grad is not None else torch.zeros_like(p)).float().flatten() for p in parameters]
        names = sorted(values)
        numbers = torch.stack([values[name].float() for name in names])
        total = self.accelerator.reduce(torch.cat([*gradients, has, numbers]), "sum")
        offset = 0
        present = total[sum(g.numel() for g in gradients) :][: len(parameters)].tolist()
        for parameter, count in zip(parameters, present, strict=True):
            part = total[offset : offset + parameter.numel()]
            offset += parameter.numel()
            parameter.grad = part.view(parameter.shape).to(parameter.dtype) if count else None
        for index, name in enumerate(names):
            values[name] = total[offset + len(parameters) + index]

    def _clip(self, name: str) -> list[Tensor]:
        """Clip an optimizer's gradients; their norm before, or nothing where there are none."""
        gradients = [p.grad for p in self.parameters[name] if p.grad is not None]
        if not gradients:
            return []
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.gradient_clipping is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters[name], self.config.gradient_clipping, norm)
        return [norm]


def _add(values: dict[str, Tensor], name: str, value: Tensor, share: float) -> None:
    value = value if share == 1.0 else value * share
    values[name] = values[name] + value if name in values else value


def together(losses: Losses) -> list[tuple[list[str], Loss]]:
    """Optimizers that follow the very same loss, and that loss: they share one backward pass."""
    found: dict[int, tuple[list[str], Loss]] = {}
    for name, loss in losses.items():
        found.setdefault(id(loss), ([], loss))[0].append(name)
    return list(found.values())
