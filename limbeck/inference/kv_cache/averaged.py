"""Caches in which neighbouring layers share one direction per token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.inference.kv_cache.base import KeyValueCache, groups, split_heads


@dataclass(frozen=True)
class LayerAverage:
    """Neighbouring layers share, for each token, the direction of their mean; each keeps its own lengths.

    For the token's vectors x_1 ... x_G of a group of layers (all heads side by side): e = mean_l x_l / |x_l|, and layer l reads
    |x_l| e / |e|. The `keep` share of tokens whose vectors agree least (smallest |e|) keep their own vectors in every layer.

    Source: Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", 2024, eq. 1 to 3: with
    group=2 the direction of the mean is the spherical interpolation at t = 0.5. Deviations: groups of any size; kept tokens
    are a share, not those above a threshold between the smallest and the largest angle; they are the least similar ones, as the
    paper states (a public re-implementation keeps the most similar).
    """

    group: int = 2
    keep: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 2:
            raise UsageError(f"LayerAverage: group={self.group!r} must be a whole number of at least 2 layers")
        if not 0 <= self.keep < 1:
            raise UsageError(f"LayerAverage: keep={self.keep!r} must be a share of tokens in [0, 1)")

    @staticmethod
    def within(share: float, cache: KeyValueCache, group: int = 2) -> LayerAverage:
        """The most own vectors that stay within `share` of the numbers of a dense cache. Raises UsageError where the directions
        and lengths alone are more."""
        length, width = cache.stacked(0, 1)[0].shape[-2:]
        least = (width + group) / (group * width)
        if share < least:
            raise UsageError(
                f"LayerAverage: share={share!r} is too small; groups of {group} layers of width {width} take at least {least:.4g}"
            )
        kept = int((share - least) * length * group * width / (group * width + 1))
        return LayerAverage(group, min(kept / length, 1 - 1 / length))

    @torch.no_grad()
    def compress(self, cache: KeyValueCache) -> KeyValueCache:
        """See `limbeck.inference.kv_cache.Compressor`. Raises UsageError for layers of different widths."""
        return KeyValueCache(cache.depth, AveragedPrefix.of(cache, self))


def merge(x: Tensor, kept: int) -> dict[str, Tensor]:
    """What is stored of a group.  x (B, G, L, D) -> direction (B, L, D), length (B, G, L), rows (B, kept), own (B, G, kept, D)."""
    unit, length = F.normalize(x, dim=-1), x.norm(dim=-1)
    mean = unit.mean(1)
    rows = mean.norm(dim=-1).topk(kept, largest=False).indices
    index = rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
    return {
        "direction": F.normalize(mean, dim=-1),
        "length": length,
        "rows": rows.int(),
        "own": x.gather(2, index),
    }


def restore(stored: dict[str, Tensor], layer: int) -> Tensor:
    """The vectors of one layer of a group, from what `merge` stored: (B, L, D)."""
    x = stored["direction"] * stored["length"][:, layer, :, None]
    own = stored["own"][:, layer]
    return x.scatter(1, stored["rows"].long()[..., None].expand_as(own), own)


class AveragedPrefix:
    """What `merge` stored of the keys and the values of each group of layers."""

    def __init__(self, stored: list[list[dict[str, Tensor]]], heads: int, group: int):
        self.stored, self.heads, self.group = stored, heads, group
        self.length = stored[0][0]["direction"].shape[-2]

    @staticmethod
    def of(cache: KeyValueCache, settings: LayerAverage) -> AveragedPrefix:
        shapes = {cache.layer(index)[0].shape for index in range(cache.depth)}
        if len(shapes) > 1:
            raise UsageError(
                f"LayerAverage: layers must be alike to share directions, not {sorted(map(tuple, shapes))}"
            )
        kept = round(settings.keep * cache.length)
        stored = []
        for first, after in groups(cache.depth, settings.group):
            sides = [side.unflatten(-1, (after - first, -1)).transpose(1, 2) for side in cache.stacked(first, after)]
            stored.append([merge(side, kept) for side in sides])
        return AveragedPrefix(stored, shapes.pop()[1], settings.group)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        group, place = divmod(index, self.group)
        return tuple(split_heads(restore(side, place), self.heads) for side in self.stored[group])

    def tensors(self) -> Iterable[Tensor]:
        return [tensor for group in self.stored for side in group for tensor in side.values()]
