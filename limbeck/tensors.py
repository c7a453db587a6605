"""Tensors inside plain JSON: float32 values, little endian, as base64 text."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ArtifactError


def to_text(values: Tensor) -> str:
    """A tensor of any shape as text; the shape is not part of it."""
    return base64.b64encode(values.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def from_text(text: str, shape: Sequence[int], what: str) -> Tensor:
    """The float32 tensor of this shape behind a text. Raises ArtifactError, naming `what`, where the text is damaged or of another size."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
        return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{what} is damaged or has another size: {error}") from error
