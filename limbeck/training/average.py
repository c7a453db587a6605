"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from limbeck.training.checkpoints import module_tensors


class Average:
    """a <- d a + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) at the n-th update (from 0).

    The ramp lets a short run forget its random start. Running statistics are averaged like weights; whole numbers
    (counters) are copied. Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        self.decay = decay
        self._current = {}
        for name, tensor in module_tensors(modules).items():
            if not any(tensor is other for other in self._current.values()):
                self._current[name] = tensor
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._current.items()}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the current weights; `count` is the number of updates before."""
        keep = min(self.decay, (1 + count) / (10 + count))
        averaged, current = [], []
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                current.append(self._current[name])
            else:
                tensor.copy_(self._current[name])
        torch._foreach_lerp_(averaged, current, 1 - keep)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back stored averages."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def write(self) -> None:
        """Put the averages into the modules."""
        for name, tensor in self.tensors.items():
            self._current[name].copy_(tensor)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The modules carry the averages inside the block and their own weights again after it."""
        own = {name: tensor.detach().clone() for name, tensor in self._current.items()}
        self.write()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in own.items():
                    self._current[name].copy_(tensor)
