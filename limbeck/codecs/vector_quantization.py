"""Vector quantization: a vector is sent as the index of the nearest of a few code vectors.

Shared by learned image codecs, product-quantized indexes and discrete bottlenecks: `nearest` and `kmeans` are pure functions,
`VectorQuantizer` is the layer that learns its codebook with the network around it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError


def squared_distances(x: Tensor, codes: Tensor) -> Tensor:
    """|x_n - c_k|^2 of x (..., N, D) and codes (..., K, D): (..., N, K), never below 0."""
    inner = x @ codes.transpose(-1, -2)
    return (x.square().sum(-1, keepdim=True) - 2 * inner + codes.square().sum(-1).unsqueeze(-2)).clamp_min(0)


def nearest(x: Tensor, codes: Tensor, chunk: int = 8192) -> Tensor:
    """The index of the nearest code of every vector: x (N, D), codes (K, D) -> (N,) int64; the lower index wins a tie."""
    if x.dim() != 2 or codes.dim() != 2 or x.shape[1] != codes.shape[1]:
        raise UsageError(f"nearest: vectors {tuple(x.shape)} and codes {tuple(codes.shape)} must be (N, D) and (K, D)")
    half = 0.5 * codes.square().sum(-1)  # |x|^2 is the same for every code
    parts = [(half - rows @ codes.T).argmin(-1) for rows in x.split(chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)


def kmeans(
    x: Tensor, count: int, generator: torch.Generator | None = None, iterations: int = 25, weights: Tensor | None = None
) -> Tensor:
    """`count` centres (count, D) of the vectors x (N, D) that (locally) minimize sum_n w_n min_k |x_n - c_k|^2.

    k-means++ start, then Lloyd's steps until nothing moves; a centre that loses all its vectors moves to the vector that is
    farthest from its own centre. weights: (N,), at least 0. Source: Arthur and Vassilvitskii, "k-means++", 2007.
    Raises UsageError for more centres than vectors.
    """
    if x.dim() != 2 or not 1 <= count <= len(x):
        raise UsageError(
            f"kmeans: count={count} centres of vectors of shape {tuple(x.shape)}: need (N, D), 1 <= count <= N"
        )
    x = x.detach()
    w = torch.ones(len(x), dtype=x.dtype, device=x.device) if weights is None else weights.to(x.dtype)
    centres = _spread(x, count, w, generator)
    assigned = None
    for _ in range(iterations):
        before, assigned = assigned, nearest(x, centres)
        if before is not None and torch.equal(before, assigned):
            break
        mass = torch.zeros(count, dtype=x.dtype, device=x.device).index_add(0, assigned, w)
        sums = torch.zeros_like(centres).index_add(0, assigned, w[:, None] * x)
        centres = torch.where(mass[:, None] > 0, sums / mass.clamp_min(1e-30)[:, None], centres)
        empty = (mass == 0).nonzero().squeeze(1)
        if len(empty):
            error = w * (x - centres[assigned]).square().sum(-1)
            centres[empty] = x[error.topk(len(empty)).indices]
    return centres


def _spread(x: Tensor, count: int, w: Tensor, generator: torch.Generator | None) -> Tensor:
    """k-means++: each next centre is drawn with probability proportional to its squared distance to those chosen."""
    chosen = [int(torch.multinomial(w, 1, generator=generator))]
    distance = (x - x[chosen[0]]).square().sum(-1)
    for _ in range(count - 1):
        odds = w * distance
        odds = odds if float(odds.sum()) > 0 else w  # fewer different vectors than centres
        chosen.append(int(torch.multinomial(odds, 1, generator=generator)))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(-1))
    return x[chosen].clone()


class Quantized(NamedTuple):
    """vectors: the codes in place of the inputs, (..., D), with the gradient passed straight through; indices: (...);
    loss: what the layer itself wants minimized, a scalar."""

    vectors: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """A codebook of `count` vectors of width `width` between an encoder and a decoder.

    e = codes[argmin_k |z - c_k|];  forward value e, gradient to z as if e were z (straight-through)
    loss = |sg(e) - z|^2 commitment + (0 with `decay`, |e - sg(z)|^2 without), mean over vectors and features

    decay: the codes are exponential moving averages of the vectors they stand for, N_k <- decay N_k + (1 - decay) n_k and m_k
    likewise for sums, c_k = m_k / N_k, updated in each training forward; None: the codes learn by gradient. revive: with
    `decay`, a code whose average count is below it moves to a random vector of the batch. Inputs (..., width).
    Source: van den Oord et al., "Neural Discrete Representation Learning", 2017, eq. 3 and appendix A.1; defaults are theirs.
    Deviation: mean over features, not sum. Raises UsageError for sizes that cannot be.
    """

    def __init__(
        self, count: int, width: int, commitment: float = 0.25, decay: float | None = 0.99, revive: float = 0.0
    ):
        super().__init__()
        for name, value, least in (("count", count, 2), ("width", width, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"VectorQuantizer: {name}={value!r} must be a whole number of at least {least}")
        if decay is not None and not 0 <= decay < 1:
            raise UsageError(f"VectorQuantizer: decay={decay!r} must lie in [0, 1), or be None")
        if commitment < 0 or revive < 0:
            raise UsageError(f"VectorQuantizer: commitment={commitment!r}, revive={revive!r} must be at least 0")
        self.commitment, self.decay, self.revive = commitment, decay, revive
        codes = torch.randn(count, width)
        self.codes = nn.Parameter(codes, requires_grad=decay is None)
        if decay is not None:
            self.register_buffer("counts", torch.ones(count))
            self.register_buffer("sums", codes.clone())

    @property
    def count(self) -> int:
        """How many codes there are."""
        return len(self.codes)

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Take these codes (K, width) as the codebook; K may differ from before."""
        if codes.dim() != 2 or codes.shape[1] != self.codes.shape[1] or len(codes) < 2:
            raise UsageError(f"VectorQuantizer: codes {tuple(codes.shape)} must be (2 or more, {self.codes.shape[1]})")
        codes = codes.detach().to(self.codes)
        self.codes = nn.Parameter(codes.clone(), requires_grad=self.decay is None)
        if self.decay is not None:
            self.counts, self.sums = torch.ones_like(codes[:, 0]), codes.clone()

    def fit(self, x: Tensor, generator: torch.Generator | None = None, iterations: int = 25) -> None:
        """Start from the k-means centres of example vectors (..., width)."""
        self.set_codes(kmeans(x.detach().reshape(-1, x.shape[-1]), self.count, generator, iterations))

    def encode(self, x: Tensor) -> Tensor:
        """Indices (...) of the nearest codes of x (..., width)."""
        return nearest(x.reshape(-1, x.shape[-1]), self.codes).reshape(x.shape[:-1])

    def decode(self, indices: Tensor) -> Tensor:
        """The codes (..., width) of indices (...)."""
        return F.embedding(indices, self.codes)

    def forward(self, x: Tensor) -> Quantized:
        indices = self.encode(x.detach())
        chosen = self.decode(indices)
        loss = self.commitment * (x - chosen.detach()).square().mean()
        if self.decay is None:
            loss = loss + (chosen - x.detach()).square().mean()
        elif self.training:
            self._follow(x.detach().reshape(-1, x.shape[-1]), indices.reshape(-1))
        return Quantized(x + (chosen - x).detach(), indices, loss)

    @torch.no_grad()
    def _follow(self, x: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=self.count).to(x.dtype)
        sums = torch.zeros_like(self.sums).index_add(0, indices, x)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = (self.counts < self.revive).nonzero().squeeze(1)
        if len(dead):
            drawn = x[torch.randint(len(x), (len(dead),), device=x.device)]
            self.counts[dead], self.sums[dead] = 1.0, drawn
        self.codes.copy_(self.sums / self.counts.clamp_min(1e-5)[:, None])
