"""A state-space token mixer (discrete Mamba-2): attention without the softmax, whose memory is a state of fixed size.

    h_t = a_t h_{t-1} + b_t x_t^T        y_t = h_t^T c_t + d x_t          one such recurrence per head
    y = M x,   M_ts = (c_t . b_s) a_{s+1} ... a_t  for s <= t             the same as one lower triangular matrix

The matrix form trains in parallel and can be compared with attention maps; the recurrence runs token by token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError


def decay_matrix(log_decay: Tensor) -> Tensor:
    """prod_{s < k <= t} a_k for s <= t, else 0.  log a (B, H, L) -> (B, H, L, L)

    Each entry is the exponential of a difference of sums in double precision, so that no long product is divided by another one.
    """
    total = log_decay.double().cumsum(-1)
    later = torch.ones(2 * log_decay.shape[-1:], dtype=torch.bool, device=log_decay.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp().float()


def transfer_matrix(log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """M with M_ts = (c_t . b_s) prod_{s < k <= t} a_k, and d added on the diagonal.

    Shapes: log_decay (B, L, H), b and c (B, L, H, N), d (H,) -> (B, H, L, L). Float32.
    """
    scores = c.float().transpose(1, 2) @ b.float().permute(0, 2, 3, 1)
    matrix = scores * decay_matrix(log_decay.transpose(1, 2))
    return matrix + d.float()[:, None, None] * torch.eye(matrix.shape[-1], device=matrix.device)


def recurrence(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """What `transfer_matrix(...) @ x` yields, token by token with a state (B, H, N, P).

    Shapes: x (B, L, H, P), the others as in `transfer_matrix` -> (B, L, H, P).
    """
    state = x.new_zeros(x.shape[0], x.shape[2], b.shape[-1], x.shape[-1], dtype=torch.float32)
    out = []
    for t in range(x.shape[1]):
        state = log_decay[:, t].float().exp()[..., None, None] * state
        state = state + b[:, t].float()[..., None] * x[:, t].float()[..., None, :]
        out.append((c[:, t].float()[..., None] * state).sum(-2) + d.float()[:, None] * x[:, t].float())
    return torch.stack(out, 1).to(x.dtype)


class StateSpaceMixer(nn.Module):
    """Takes the place of causal attention.  (B, L, width) -> (B, L, width)

        x, b, c = convolution(project(u));  y = M(b, c, a) x;  output(y * silu(gate(u)))      a = exp(-softplus(decay(u)))

    The convolution is causal, one filter of `kernel` tokens per channel, without activation. Every head has its own b and c of
    size `state`. `matrix` is a module, so that a Tap can capture M (B, heads, L, L), the counterpart of attention maps.
    A mask and a cache are accepted where attention takes them: the mixer is causal by itself, reads every earlier token (padding
    too, so pad at the end only), and refuses a cache.

    retention: the share of the state that a token leaves at first, a in the middle of its range: Mamba-2 begins between 0.9 and 0.999. None:
    about one half, as in the authors' code below, where what a state is to hold for tens of tokens is out of the gradient's sight.

    Source: Dao and Gu, "Transformers are SSMs", 2024; this variant: Bick et al., "Transformers to SSMs: Distilling Quadratic
    Knowledge to Subquadratic Models", 2024, appendix on Phi-Mamba. Their code divides the input by softplus(decay), which undoes
    the factor that the usual kernel puts there; the formulas above have neither. Deviation: M is built whole, L^2 numbers per head.
    """

    def __init__(self, width: int, heads: int, state: int = 16, kernel: int = 4, retention: float | None = None):
        super().__init__()
        for name, value in (("heads", heads), ("state", state), ("kernel", kernel)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"StateSpaceMixer: {name}={value!r} must be a whole number of at least 1")
        if width % heads:
            raise UsageError(f"StateSpaceMixer: heads must divide width; {heads} does not divide {width}")
        if retention is not None and not 0 < retention < 1:
            raise UsageError(f"StateSpaceMixer: retention={retention!r} must lie in (0, 1), or be None")
        self.heads, self.state = heads, state
        channels = width + 2 * heads * state
        self.project = nn.Linear(width, channels, bias=False)
        self.gate = nn.Linear(width, width)
        self.decay = nn.Linear(width, heads)
        self.convolution = nn.Conv1d(channels, channels, kernel, groups=channels, padding=kernel - 1)
        self.skip = nn.Parameter(torch.ones(heads))
        self.matrix = nn.Identity()
        self.output = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.gate.bias)
        if retention is not None:  # exp(-softplus(bias)) = retention
            nn.init.constant_(self.decay.bias, math.log(math.expm1(-math.log(retention))))

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, L, H, P), log a (B, L, H), b and c (B, L, H, N) of the input (B, L, width)."""
        mixed = self.convolution(self.project(u).transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        x, b, c = mixed.split([u.shape[-1], self.heads * self.state, self.heads * self.state], -1)
        x, b, c = (part.unflatten(-1, (self.heads, -1)) for part in (x, b, c))
        return x, -F.softplus(self.decay(u).float()), b, c

    def forward(self, u: Tensor, mask: Tensor | None = None, cache: object = None) -> Tensor:
        if cache is not None:
            raise UsageError("StateSpaceMixer keeps a state, not keys and values: run the whole text, without cache=")
        x, log_decay, b, c = self.parts(u)
        matrix = self.matrix(transfer_matrix(log_decay, b, c, self.skip))
        return self._finish(u, (matrix.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2))

    def recurrent(self, u: Tensor) -> Tensor:
        """The same output, computed token by token."""
        x, log_decay, b, c = self.parts(u)
        return self._finish(u, recurrence(x, log_decay, b, c, self.skip))

    def _finish(self, u: Tensor, y: Tensor) -> Tensor:
        return self.output(y.flatten(2) * F.silu(self.gate(u)))
