"""A discrete key-value bottleneck on the features of a frozen encoder: keys are fixed, only the fetched values learn.

features (B, D) or (B, L, D)  --fixed projections-->  H heads (.., H, d)  --nearest key-->  values (.., H, V)  --mean-->  (B, V)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.codecs.vector_quantization import VectorQuantizer, look_up
from limbeck.errors import UsageError


class KeyValueBottleneck(nn.Module):
    """`forward(features)`: (B, D), or (B, L, D) averaged over L, -> (B, V). With V the number of classes these are logits: the
    decoder is then a softmax without parameters.

    The gradient reaches the values that were fetched and nothing else, so what one example teaches changes the answers
    only where its keys are fetched again. `place_keys` puts the keys where inputs are, without labels; they then stay.
    Source: Traeuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio and Schoelkopf, "Discrete Key-Value Bottleneck", ICML 2023, section 2.
    """

    def __init__(self, width: int, classes: int, heads: int, head_width: int, keys: int, decay: float):
        super().__init__()
        self.register_buffer("projections", torch.randn(width, heads, head_width) / math.sqrt(width))
        self.keys = VectorQuantizer(keys, head_width, heads, decay, least_use=0.1)
        self.values = nn.Parameter(torch.zeros(heads, keys, classes))

    def heads_of(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., H, d), without gradient."""
        return torch.einsum("...w,whd->...hd", features.detach().float(), self.projections)

    def fetched(self, features: Tensor) -> Tensor:
        """The indices of the keys that features (..., D) fetch: (..., H)."""
        return self.keys.encode(self.heads_of(features))

    def place_keys(self, features: Iterable[Tensor]) -> KeyValueBottleneck:
        """Learn the keys from batches of features (..., D) by moving averages, then freeze them; returns self."""
        self.keys.train()
        with torch.no_grad():
            for batch in features:
                self.keys(self.heads_of(batch).flatten(0, -3))
        self.keys.freeze()
        return self

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() not in (2, 3) or features.shape[-1] != self.projections.shape[0]:
            expected = self.projections.shape[0]
            raise UsageError(
                f"key_value_bottleneck: features must be (B, {expected}) or (B, L, {expected}), not {tuple(features.shape)}"
            )
        found = look_up(self.fetched(features), self.values).mean(-2)
        return found.mean(1) if found.dim() == 3 else found


def key_value_bottleneck(
    width: int, classes: int, heads: int = 32, head_width: int = 8, keys: int = 128, decay: float = 0.9
) -> KeyValueBottleneck:
    """A bottleneck for features of `width`: `heads` codebooks of `keys` keys of `head_width`, and a value of `classes`
    numbers for each key, 0 at first. `decay`: of the moving averages that place the keys. Raises UsageError for sizes below one."""
    sizes = {"width": width, "classes": classes, "heads": heads, "head_width": head_width, "keys": keys}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"key_value_bottleneck: {name}={value!r} must be a whole number of at least 1")
    model = KeyValueBottleneck(**sizes, decay=decay)
    return with_lineage(
        model, Factory("limbeck.models.key_value_bottleneck:key_value_bottleneck", {**sizes, "decay": decay})
    )
