"""A multilayer perceptron that denoises: small data, any shape.

    h = W x + b;   per block: h = h + W2 silu(W1 (norm(h) (1 + scale(c)) + shift(c)));   out = W norm(h)
    c = silu(time features + class embedding), at most 64 numbers

The last linear of each block and of the network start at 0, so that an untrained network answers 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError


class Block(nn.Module):
    """A residual block modulated by the condition. (B, width), (B, narrow) -> (B, width)"""

    def __init__(self, width: int, narrow: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(narrow, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, -1)
        inner = self.inner(self.norm(h) * (1 + scale) + shift)
        return h + self.outer(F.silu(inner))


class DenoisingMLP(nn.Module):
    """`forward(noisy, timestep, condition)`: (B, *shape), (B,), (B,) or None -> (B, *shape). `blocks.N` are the places to tap."""

    def __init__(self, shape: tuple[int, ...], width: int, blocks: int, classes: int, steps: int):
        super().__init__()
        size = math.prod(shape)
        self.steps, self.classes = steps, classes
        self.inlet = nn.Linear(size, width)
        narrow = min(width, 64)
        self.time = nn.Sequential(nn.Linear(narrow, narrow), nn.SiLU(), nn.Linear(narrow, narrow))
        self.label = nn.Embedding(classes + 1, narrow)  # the last row: unconditional
        self.blocks = nn.ModuleList(Block(width, narrow) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.outlet = nn.Linear(width, size)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)
        self.register_buffer("frequencies", torch.logspace(0, 2, narrow // 2), persistent=False)

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        angle = (timestep.float() / self.steps)[:, None] * self.frequencies
        if condition is None:
            condition = torch.full_like(timestep, -1)
        c = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], -1)) + self.label(condition % (self.classes + 1)))
        h = self.inlet(noisy.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.outlet(self.norm(h)).reshape(noisy.shape)


def denoising_mlp(
    shape: Sequence[int], width: int = 128, blocks: int = 3, classes: int = 0, steps: int = 1000
) -> DenoisingMLP:
    """A residual MLP for data of `shape`. classes: condition numbers 0 .. classes - 1; -1 or None is unconditional. steps: of the
    noise schedule.

    Raises UsageError for a size that is not positive or a width that is odd.
    """
    for name, value, least in (
        ("width", width, 2),
        ("blocks", blocks, 1),
        ("classes", classes, 0),
        ("steps", steps, 2),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"denoising_mlp: {name}={value!r} must be a whole number of at least {least}")
    if width % 2:
        raise UsageError(
            f"denoising_mlp: width={width} must be even: half of the time features are sines, half cosines"
        )
    shape = tuple(shape)
    if not shape or min(shape) < 1:
        raise UsageError(f"denoising_mlp: shape={shape!r} must be one or more positive sizes")
    arguments = {"shape": list(shape), "width": width, "blocks": blocks, "classes": classes, "steps": steps}
    model = DenoisingMLP(shape, width, blocks, classes, steps)
    return with_lineage(model, Factory("limbeck.models.denoising_mlp:denoising_mlp", arguments))
