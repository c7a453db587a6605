"""FrozenTeacher: a trained model that only answers."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.signals import Signals, capture
from limbeck.teachers.base import Unchanging

PRECISIONS = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}


class FrozenTeacher(Unchanging):
    """A model in evaluation mode, run without gradient, capturing only the named signals.

    precision: "fp32" or "bf16" (autocast) for the teacher's own forward pass; None leaves it as its surroundings have it.
    partial: run the model only as far as the deepest signal that is asked for, see `limbeck.signals.Tap`.
    The model is put into evaluation mode; nothing else about it is changed.
    """

    def __init__(self, model: nn.Module, precision: str | None = None, partial: bool = False):
        if not isinstance(model, nn.Module):
            raise UsageError(f"FrozenTeacher needs a torch module, not {type(model).__name__}")
        if precision not in PRECISIONS:
            raise UsageError(f"FrozenTeacher: precision={precision!r} is unknown; allowed: None, 'fp32', 'bf16'")
        self.model, self.precision, self.partial = model.eval(), precision, partial

    @torch.no_grad()
    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        """The named signals of one forward pass, detached. Raises UsageError for a name that is no module of the model."""
        if not names:
            return Signals({})
        if self.model.training:
            self.model.eval()
        with self._autocast(batch):
            return capture(self.model, batch, names, self.partial).detach()

    def _autocast(self, batch: Mapping[str, Any]):
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return contextlib.nullcontext()
        device = next((v.device.type for v in batch.values() if isinstance(v, torch.Tensor)), "cpu")
        return torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16)

    def to(self, device: Any) -> None:
        self.model.to(device)

    def digest(self) -> str:
        """Names this teacher's answers: its architecture, every weight and buffer, and its precision."""
        return digest({"kind": "frozen", "model": model_digest(self.model), "precision": self.precision})


def model_digest(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of a model's module tree (as it prints) and of every parameter and buffer."""
    state = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "0x", repr(model)).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda entry: entry[0]):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
