"""Tensors inside plain JSON: their bytes as base64 text, little endian; float32 unless another type is asked for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ArtifactError


def to_text(values: Tensor, kind: torch.dtype = torch.float32) -> str:
    """A tensor of any shape as text; shape and type are not part of it."""
    raw = values.detach().to("cpu", kind).contiguous().flatten().view(torch.uint8)
    return base64.b64encode(raw.numpy().tobytes()).decode()


def from_text(text: Any, shape: Sequence[int], what: str, kind: torch.dtype = torch.float32) -> Tensor:
    """The tensor of this shape and type behind a text. Raises ArtifactError, naming `what`, where the text is damaged or of another size."""
    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).copy()
        return torch.from_numpy(raw).view(kind).reshape(tuple(shape))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{what} is damaged or has another size: {error}") from error
