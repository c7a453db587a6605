"""Training on bucketed levels: the weights themselves, or where the levels lie.

    on_buckets(model, bits)                 weights are trained; the model computes with them on uniform levels (straight-through)
    on_buckets(model, bits, learn="levels") weights are fixed; each tensor's levels are trained, everything else rests
    train as usual, then store(model)       {path: Bucketed} of every such weight; the model is left with the decoded weights

Sources: Polino et al., "Model compression via distillation and quantization", 2018, algorithms 1 and 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.quantization.buckets import (
    Bucketed,
    BucketQuantizer,
    check,
    on_levels,
    quantile_levels,
    uniform_levels,
)
from limbeck.quantization.parametrized import finish_weights, on_weights, parametrized_weights
from limbeck.quantization.straight_through import straight_through


class OnLevels(nn.Module):
    """The parametrization of one weight: Q(w) forward; backward the straight-through gradient of w, or that of the levels."""

    def __init__(self, weight: Tensor, bits: int, size: int, learn: str):
        super().__init__()
        self.bits, self.size, self.learn = bits, size, learn
        if learn == "levels":
            self.levels = nn.Parameter(quantile_levels(weight.detach(), bits, size))
        else:
            self.register_buffer("levels", uniform_levels(bits))

    def forward(self, weight: Tensor) -> Tensor:
        found = on_levels(weight, self.levels, self.size).to(weight.dtype)
        return found if self.learn == "levels" else straight_through(weight, found)

    def quantizer(self) -> BucketQuantizer:
        """The quantizer of what this computes."""
        return BucketQuantizer(self.bits, self.size, tuple(self.levels.detach().sort().values.tolist()))


def on_buckets(model: nn.Module, bits: int, size: int = 256, learn: str = "weights") -> nn.Module:
    """Put the weight of every linear and convolution layer on bucketed levels, in place, and return the model.

    bits: 1 to 8. size: weights per bucket. learn: "weights" (quantized distillation) or "levels" (differentiable quantization, whose
    levels start at quantiles of the weights). Biases and normalizations stay float32. Raises UsageError for a model without such layers.
    """
    check(bits, size)
    if learn not in ("weights", "levels"):
        raise UsageError(f"learn={learn!r}: allowed are 'weights' and 'levels'")
    on_weights(model, lambda weight: OnLevels(weight, bits, size, learn))
    if learn == "levels":
        model.requires_grad_(False)
        for _, found, _ in parametrized_weights(model, OnLevels):
            found.requires_grad_(True)
    return model


def store(model: nn.Module) -> dict[str, Bucketed]:
    """What is stored of every bucketed weight, by the path of its parameter; the model ends with plain weights that were decoded
    from the bytes. Raises UsageError for a model that `on_buckets` did not prepare."""

    def stored(found: OnLevels, weight: Tensor) -> tuple[Bucketed, Tensor]:
        quantizer = found.quantizer()
        kept = quantizer.encode(weight)
        return kept, quantizer.decode(Bucketed.from_bytes(kept.to_bytes()))

    return finish_weights(model, OnLevels, stored, "on_buckets")


def stored_bytes(model: nn.Module, stored: dict[str, Bucketed]) -> int:
    """Bytes of a model whose bucketed weights are Huffman-coded and whose other parameters and buffers are stored as they are."""
    rest = {name: value for name, value in model.state_dict().items() if name not in stored}
    return sum(len(entry.to_bytes()) for entry in stored.values()) + sum(
        value.numel() * value.element_size() for value in rest.values()
    )
