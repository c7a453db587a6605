"""Spiking neurons, and a vision transformer whose layers read nothing but spikes and whose attention has no softmax.

    leaky integrate and fire (LIF)   u_t = h_(t-1) + x_t,   s_t = 1[u_t >= 1],   h_t = leak u_t (1 - s_t)              T passes, s_t in {0, 1}
    information-enhanced LIF         s = floor(clip(T x, 0, T) + 1/2) / T                                               one pass, T + 1 levels

The second is trained on whole numbers of spikes; where it runs, a level k / T is k spikes among T steps (`unroll`), and as every layer between two
neurons is linear in each of its inputs, their mean over the steps is what training computed. Gradients: of the first, 1 where
|u_t - 1| < 1/2; of the second, 1 where 0 < T x < T; else 0.
Source: Qiu et al., "Quantized Spike-driven Transformer", ICLR 2025, sections 3 and 4; the neuron and the attention agree with the
authors' public code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import check_sizes

SCALE = 0.25


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, steps):
        scaled = x * steps
        ctx.save_for_backward((scaled > 0) & (scaled < steps))
        return torch.floor(scaled.clamp(0, steps) + 0.5) / steps

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


class _Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, excess):
        ctx.save_for_backward(excess.abs() < 0.5)
        return (excess >= 0).to(excess.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (near,) = ctx.saved_tensors
        return gradient * near


def unroll(levels: Tensor, steps: int) -> Tensor:
    """Levels k / T in 0 ... 1 as spikes: (...) -> (T, ...) of 0 and 1, the first k steps 1, whose mean over the steps is `levels`."""
    time = torch.arange(steps, device=levels.device).reshape(-1, *[1] * levels.dim())
    return (time < torch.round(levels * steps)).to(levels.dtype)


class InformationLIF(nn.Module):
    """gain times floor(clip(T x, 0, T) + 1/2) / T.  (...) -> (...)"""

    def __init__(self, steps: int = 4, gain: float = 1.0):
        super().__init__()
        self.steps, self.gain = steps, gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * _Levels.apply(x, self.steps)


class LIF(nn.Module):
    """gain times the spikes of neurons that leak, integrate and fire, over T steps laid out along the first axis: (T B, ...) -> (T B, ...)."""

    def __init__(self, steps: int = 4, gain: float = 1.0, leak: float = 0.5):
        super().__init__()
        self.steps, self.gain, self.leak = steps, gain, leak

    def forward(self, x: Tensor) -> Tensor:
        held: Tensor | float = 0.0
        fired = []
        for given in x.unflatten(0, (self.steps, -1)):
            potential = held + given
            spike = _Fire.apply(potential - 1.0)
            held = self.leak * potential * (1 - spike)
            fired.append(spike)
        return self.gain * torch.cat(fired)


class ClippedUnit(nn.Module):
    """gain times clip(x, 0, 1), what information-enhanced neurons become with many steps: the counterpart that does not spike."""

    def __init__(self, steps: int = 4, gain: float = 1.0):
        super().__init__()
        self.steps, self.gain = steps, gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.clamp(0, 1)


NEURONS: dict[str, Callable[..., nn.Module]] = {"information": InformationLIF, "lif": LIF, "clip": ClippedUnit}


class TokenNorm(nn.BatchNorm1d):
    """Batch normalization of every feature over all tokens.  (B, L, D) -> (B, L, D)"""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class SpikingAttention(nn.Module):
    """1/4 Q (K^T V) on spikes, head by head, then a neuron and a projection.  (B, L, width) -> (B, L, width)

    `query_spike`, `key_spike` and `value_spike` are the neurons whose outputs are Q, K and V.
    """

    def __init__(self, width: int, heads: int, neuron: Callable[..., nn.Module]):
        super().__init__()
        self.head_width = width // heads
        self.spike = neuron()
        for name in ("query", "key", "value"):
            self.add_module(name, nn.Linear(width, width, bias=False))
            self.add_module(f"{name}_norm", TokenNorm(width))
            self.add_module(f"{name}_spike", neuron())
        self.mixed_spike = neuron(gain=2.0)
        self.output = nn.Linear(width, width, bias=False)
        self.output_norm = TokenNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spike(x)
        query = self._heads(self.query_spike(self.query_norm(self.query(x))))
        key = self._heads(self.key_spike(self.key_norm(self.key(x))))
        value = self._heads(self.value_spike(self.value_norm(self.value(x))))
        mixed = SCALE * (query @ (key.transpose(-1, -2) @ value))
        return self.output_norm(self.output(self.mixed_spike(mixed.transpose(1, 2).flatten(2))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class SpikingBlock(nn.Module):
    """x + attention(x), then x + down(spikes(up(spikes(x)))), with batch normalization after every projection.  (B, L, D) -> (B, L, D)"""

    def __init__(self, width: int, heads: int, hidden: int, neuron: Callable[..., nn.Module]):
        super().__init__()
        self.attention = SpikingAttention(width, heads, neuron)
        self.spike = neuron()
        self.up = nn.Linear(width, hidden, bias=False)
        self.up_norm = TokenNorm(hidden)
        self.hidden_spike = neuron()
        self.down = nn.Linear(hidden, width, bias=False)
        self.down_norm = TokenNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        hidden = self.hidden_spike(self.up_norm(self.up(self.spike(x))))
        return x + self.down_norm(self.down(hidden))


class SpikingViT(nn.Module):
    """Patches by a strided convolution, learned positions, spiking blocks, a last neuron, the mean over tokens, a linear head.

    `forward(pixel_values)`: (B, channels, size, size) -> logits (B, classes). LIF neurons see the tokens of an image in each of T steps, along
    the first axis (T B); logits are means over the steps.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        classes: int,
        channels: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        neuron: str,
        steps: int,
    ):
        super().__init__()
        self.steps = steps if neuron == "lif" else 1

        def made(gain: float = 1.0) -> nn.Module:
            return NEURONS[neuron](steps, gain)

        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.patches_norm = TokenNorm(width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(SpikingBlock(width, heads, hidden, made) for _ in range(depth))
        self.spike = made()
        self.head = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches_norm(self.patches(pixel_values).flatten(2).transpose(1, 2)) + self.positions
        x = x.repeat(self.steps, 1, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.spike(x).mean(1)).unflatten(0, (self.steps, -1)).mean(0)


def spiking_vit(
    size: int = 32,
    patch: int = 4,
    classes: int = 10,
    channels: int = 3,
    depth: int = 4,
    width: int = 64,
    heads: int = 4,
    hidden: int | None = None,
    neuron: str = "information",
    steps: int = 4,
) -> SpikingViT:
    """A spike-driven vision transformer. neuron: "information", "lif", or "clip" for its counterpart without spikes; steps: T.

    Raises UsageError for bad sizes and unknown neurons.
    """
    hidden = 4 * width if hidden is None else hidden
    sizes = {"size": size, "patch": patch, "classes": classes, "channels": channels, "depth": depth, "hidden": hidden}
    check_sizes("spiking_vit", width, heads, 0.0, **sizes, steps=steps)
    if size % patch:
        raise UsageError(f"spiking_vit: patch must divide size; {patch} does not divide {size}")
    if neuron not in NEURONS:
        raise UsageError(f"spiking_vit: neuron={neuron!r}: allowed are {', '.join(map(repr, NEURONS))}")
    arguments = {**sizes, "width": width, "heads": heads, "neuron": neuron, "steps": steps}
    return with_lineage(SpikingViT(**arguments), Factory("limbeck.models.spiking:spiking_vit", arguments))
