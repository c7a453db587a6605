"""Low-rank caches whose token basis neighbouring layers share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.inference.kv_cache.base import KeyValueCache, groups, split_heads


def truncated(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of a rank, in the least-squares sense: x ~ basis @ loadings, basis = U_r S_r, loadings = V_r^T.

    Shapes: x (..., L, D) -> (..., L, r), (..., r, D) with r at most min(L, D). Float32 inside, the dtype of x outside.
    """
    u, s, v = torch.linalg.svd(x.float(), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]).to(x.dtype), v[..., :rank, :].to(x.dtype)


def rank_within(numbers: float, length: int, width: int) -> int:
    """The largest rank whose factors of an (L, D) matrix hold at most that many numbers, r (L + D) <= numbers; at least 1."""
    return max(1, int(numbers // (length + width)))


@dataclass(frozen=True)
class SharedLowRank:
    """Neighbouring layers share one low-rank basis over the tokens, for keys and for values.

    For a group of G layers X = [K_1 ... K_G] of shape (L, G d), all heads side by side and before the position embedding;
    X ~ (U_r S_r) V_r^T, of which the basis U_r S_r (L, r) is stored once and V_r^T as one block (r, d) per layer. Values
    likewise. Stored per group and side: r (L + G d) numbers in place of L G d. Found per sequence, when the prompt has been read.

    group: G; 1 is the usual decomposition layer by layer. key_rank, value_rank: r of a whole group, never above min(L, G d).

    Source: Chang et al., "xKV: Cross-Layer SVD for KV-Cache Compression", 2025, section 4. There G = 4 with ranks 512 and 768
    for layers of width 1024. The authors' code multiplies the factors back at once and splits S_r evenly between them: the
    same products, nothing saved.
    """

    key_rank: int
    value_rank: int
    group: int = 4

    def __post_init__(self) -> None:
        for name in ("key_rank", "value_rank", "group"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"SharedLowRank: {name}={value!r} must be a whole number of at least 1")

    @staticmethod
    def within(share: float, cache: KeyValueCache, group: int = 4, key_share: float = 0.4) -> SharedLowRank:
        """The ranks that store at most `share` of the numbers of a dense cache, `key_share` of them for keys (512 of the
        published 512 + 768 is 0.4)."""
        if not 0 < share <= 1 or not 0 < key_share < 1:
            raise UsageError(f"share={share!r}, key_share={key_share!r}: must lie between 0 and 1")
        key, _ = cache.stacked(0, min(group, cache.depth))
        length, width = key.shape[-2:]
        total = max(2, rank_within(share * 2 * length * width, length, width))
        key_rank = min(max(1, round(key_share * total)), total - 1)
        return SharedLowRank(key_rank, total - key_rank, group)

    @torch.no_grad()
    def compress(self, cache: KeyValueCache) -> KeyValueCache:
        """See `limbeck.inference.kv_cache.Compressor`."""
        return KeyValueCache(cache.depth, LowRankPrefix.of(cache, self))


class LowRankPrefix:
    """Per group of layers and side (keys, values): one basis (B, L, r); per layer a block of loadings (B, r, width)."""

    def __init__(self, bases: list[list[Tensor]], loadings: list[list[Tensor]], heads: list[int], group: int):
        self.bases, self.loadings, self.heads, self.group = bases, loadings, heads, group
        self.length = bases[0][0].shape[-2]

    @staticmethod
    def of(cache: KeyValueCache, settings: SharedLowRank) -> LowRankPrefix:
        heads = [cache.layer(index)[0].shape[1] for index in range(cache.depth)]
        bases, loadings = [], [[] for _ in range(cache.depth)]
        for first, after in groups(cache.depth, settings.group):
            bases.append([])
            for which, rank in enumerate((settings.key_rank, settings.value_rank)):
                basis, loading = truncated(cache.stacked(first, after)[which], rank)
                bases[-1].append(basis)
                widths = [cache.layer(i)[which].shape[1] * cache.layer(i)[which].shape[3] for i in range(first, after)]
                for index, block in zip(range(first, after), loading.split(widths, -1)):
                    loadings[index].append(block)
        return LowRankPrefix(bases, loadings, heads, settings.group)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        pairs = zip(self.bases[index // self.group], self.loadings[index])
        return tuple(split_heads(basis @ loading, self.heads[index]) for basis, loading in pairs)

    def tensors(self) -> Iterable[Tensor]:
        return [tensor for part in (*self.bases, *self.loadings) for tensor in part]


def subspace_overlap(a: Tensor, b: Tensor, rank: int) -> float:
    """How much the leading left singular subspaces of two (L, D) matrices have in common: |U_a^T U_b|_F^2 / rank, in [0, 1].

    1: the same token basis serves both; rank / L is what unrelated subspaces share.
    """
    left = [torch.linalg.svd(x.float(), full_matrices=False)[0][..., :rank] for x in (a, b)]
    return float((left[0].transpose(-1, -2) @ left[1]).square().sum((-1, -2)).mean() / rank)
