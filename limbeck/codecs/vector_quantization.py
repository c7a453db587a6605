"""Vector quantization: a vector becomes the number of its nearest code; codes follow the vectors they stand for.

    x (..., H, D)  --nearest-->  indices (..., H) in 0..M-1  --look up-->  codes (..., H, D)

H codebooks of M codes each work side by side on H vectors (H = 1: the usual quantizer; H parts of one vector: a product
quantizer). An index costs log2(M) bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError

SCORES = {"cpu": 2**18}  # distances that are held at a time


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """The index of the code nearest to each vector, in Euclidean distance, the first one of equals.

    Shapes: x (N, H, D), codes (H, M, D); returns (N, H). Computed in float32 as |c|^2 - 2 <x, c>, of so many vectors at a time that
    the scores stay in the processor's cache (ten times faster for many short vectors) or, elsewhere, within 256 MB.
    """
    x, codes = x.float().transpose(0, 1), codes.float()
    lengths, turned = codes.square().sum(-1).unsqueeze(1), codes.transpose(1, 2)
    at_once = max(1, SCORES.get(x.device.type, 2**26) // (codes.shape[0] * codes.shape[1]))
    with torch.autocast(x.device.type, enabled=False):
        found = [torch.baddbmm(lengths, part, turned, alpha=-2).min(-1).indices for part in x.split(at_once, 1)]
    return torch.cat(found, 1).transpose(0, 1)


def look_up(indices: Tensor, codes: Tensor) -> Tensor:
    """The codes at indices (..., H) of codes (H, M, D): (..., H, D)."""
    return codes[torch.arange(codes.shape[0], device=indices.device), indices]


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The quantized value with the gradient of the identity to x."""
    return x + (quantized - x).detach()


def kmeans(x: Tensor, count: int, iterations: int = 10, generator: torch.Generator | None = None) -> Tensor:
    """Lloyd's algorithm: `count` centres of x (N, D), from different random examples; a centre without examples moves to one.

    Returns (count, D). Raises UsageError for more centres than examples.
    """
    if not 1 <= count <= len(x):
        raise UsageError(f"kmeans: count={count} centres cannot be made from {len(x)} examples")
    centres = x[torch.randperm(len(x), generator=generator)[:count].to(x.device)].float()
    for _ in range(iterations):
        at = nearest(x.unsqueeze(1), centres.unsqueeze(0))[:, 0]
        sizes = torch.bincount(at, minlength=count).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, at, x.float())
        other = x[torch.randint(len(x), (count,), generator=generator).to(x.device)].float()
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), other)
    return centres


@dataclass(frozen=True)
class Quantized:
    """values (..., H, D) with the straight-through gradient, indices (..., H), and the commitment loss: the mean squared
    distance from x to its code, whose gradient goes to x alone. With codes learned by gradient, `codebook` is the same
    distance with its gradient to the codes alone; else it is 0."""

    values: Tensor
    indices: Tensor
    commitment: Tensor
    codebook: Tensor


class VectorQuantizer(nn.Module):
    """Codebooks that are learned by moving averages (the default) or by gradient.

        N_i <- g N_i + (1 - g) n_i      m_i <- g m_i + (1 - g) sum of the vectors nearest to i      code_i = m_i / N_i

    size: codes per codebook M. width: D. heads: codebooks H. decay: g; None: codes are parameters and learn from
    `Quantized.codebook`. least_use: a code whose moving count N_i falls below it is replaced by a random vector of the
    batch; 0 replaces none. Codes move in train mode only; `frozen` stops them for good. The first batch in train mode sets
    the codes: k-means where it has at least M vectors, else they stay as drawn.

    Source: van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, eq. 1 to 3 and appendix A.1.
    Deviations: no Laplace smoothing of the counts; a code that nothing uses keeps its place until it is replaced.
    """

    def __init__(
        self,
        size: int,
        width: int,
        heads: int = 1,
        decay: float | None = 0.99,
        least_use: float = 0.0,
        initial: str = "kmeans",
    ):
        super().__init__()
        for name, value in (("size", size), ("width", width), ("heads", heads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"VectorQuantizer: {name}={value!r} must be a whole number of at least 1")
        if decay is not None and not 0 <= decay < 1:
            raise UsageError(
                f"VectorQuantizer: decay={decay!r} must lie in [0, 1), or be None for codes learned by gradient"
            )
        if least_use < 0:
            raise UsageError(f"VectorQuantizer: least_use={least_use!r} must be 0 or more")
        if initial not in ("kmeans", "random"):
            raise UsageError(f"VectorQuantizer: initial={initial!r} must be 'kmeans' or 'random'")
        self.size, self.width, self.heads, self.decay, self.least_use = size, width, heads, decay, least_use
        codes = torch.randn(heads, size, width) / math.sqrt(width)
        if decay is None:
            self.codes = nn.Parameter(codes)
        else:
            self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(heads, size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("started", torch.tensor(initial == "random"))
        self.register_buffer("frozen", torch.tensor(False))

    @property
    def bits(self) -> float:
        """Bits per input of H vectors, without entropy coding."""
        return self.heads * math.log2(self.size)

    def encode(self, x: Tensor) -> Tensor:
        """(..., H, D) -> indices (..., H)."""
        if x.dim() < 2 or x.shape[-2:] != (self.heads, self.width):
            raise UsageError(f"VectorQuantizer: expected (..., {self.heads}, {self.width}), got {tuple(x.shape)}")
        return nearest(x.reshape(-1, self.heads, self.width), self.codes).reshape(x.shape[:-1])

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (..., H) -> (..., H, D)."""
        return look_up(indices, self.codes)

    def forward(self, x: Tensor) -> Quantized:
        moving = self.training and not bool(self.frozen)
        if moving and not bool(self.started):
            self._start(x.detach().reshape(-1, self.heads, self.width))
        indices = self.encode(x)
        values = self.decode(indices).to(x.dtype)
        commitment = F.mse_loss(x.float(), values.detach().float())
        codebook = F.mse_loss(values.float(), x.detach().float()) if self.decay is None else commitment.new_zeros(())
        result = Quantized(straight_through(x, values), indices, commitment, codebook)
        if moving:
            self._move(x.detach().reshape(-1, self.heads, self.width), indices.reshape(-1, self.heads))
        return result

    def freeze(self) -> VectorQuantizer:
        """Stop the codes for good; returns self."""
        self.frozen.fill_(True)
        self.codes.requires_grad_(False)
        return self

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        if len(x) >= self.size:
            self.codes.copy_(torch.stack([kmeans(x[:, head], self.size) for head in range(self.heads)]))
        self.counts.fill_(max(1.0, len(x) / self.size))
        self.sums.copy_(self.codes * self.counts.unsqueeze(-1))
        self.started.fill_(True)

    @torch.no_grad()
    def _move(self, x: Tensor, indices: Tensor) -> None:
        flat = indices + self.size * torch.arange(self.heads, device=indices.device)
        used = torch.bincount(flat.flatten(), minlength=self.heads * self.size).to(self.counts).view_as(self.counts)
        sums = torch.zeros_like(self.sums).flatten(0, 1).index_add_(0, flat.flatten(), x.flatten(0, 1).to(self.sums))
        decay = 0.99 if self.decay is None else self.decay
        self.counts.mul_(decay).add_(used, alpha=1 - decay)
        if self.decay is not None:
            self.sums.mul_(decay).add_(sums.view_as(self.sums), alpha=1 - decay)
            alive = (self.counts > 1e-6).unsqueeze(-1)
            self.codes.copy_(torch.where(alive, self.sums / self.counts.clamp_min(1e-6).unsqueeze(-1), self.codes))
        self._replace(x)

    def _replace(self, x: Tensor) -> None:
        dead = self.counts < self.least_use
        if not bool(dead.any()):
            return
        for head in dead.any(1).nonzero().flatten().tolist():
            at = dead[head].nonzero().flatten()
            fresh = x[torch.randint(len(x), (len(at),), device=x.device), head].to(self.sums)
            self.codes[head, at] = fresh
            self.counts[head, at] = start = max(1.0, self.least_use)
            self.sums[head, at] = fresh * start
