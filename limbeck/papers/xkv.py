"""xKV: neighbouring layers share one low-rank basis over the tokens of their key/value caches.

    [K_1 ... K_G] ~ (U_r S_r) [V_1^T ... V_G^T]      the same for values, found per sequence by a truncated SVD after the prompt

Layers differ, but the leading left singular vectors (which tokens vary together) are nearly the same ones, so G layers can
share U_r S_r where a decomposition per layer stores it G times.

Source: Chang et al., 2025, section 4: prompt only, keys before the position embedding, later tokens dense. The authors' code was
read: it multiplies the factors back in place (nothing is saved) and agrees with the formula; the pieces here store the factors.
Run beside the authors' code on random keys, the truncated product agrees to 3e-7.
Miniature: a six-layer character model with rotary positions reads 448 characters of unseen Shakespeare; the cache is compressed
to a quarter of its numbers (25.12 %, where the ranks of every group size come out nearly whole); the loss on the next 64
characters and the relative reconstruction error are measured. Baseline: the same decomposition per layer, its share for keys chosen
among three; the method chooses its group size among three. Control: one mean direction per token over all six layers
(MiniCache, in the only group size that fits the share). A seed is another set of 20 sequences; the model is one.

Deviations: float32 and a model of width 64, whose layers have far fewer channels (64) than the prompt has tokens, as published.

Found: the layers do share their token basis (overlap of the leading eight directions 0.84; 0.02 by chance), and sharing it halves the
reconstruction error (0.044 against 0.098). But at this model's size a quarter of the numbers loses nothing either way (0.0000 and
0.001 nats), so the loss does not tell the two apart: inconclusive. Averaging directions loses 0.09 nats. Tried: one share, the
settings above. A harder share would decide it; it was not looked for after the fact.
"""

from __future__ import annotations

import torch

from limbeck.beds.language import LanguageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.inference.kv_cache import Compressor, KeyValueCache, LayerAverage, SharedLowRank
from limbeck.inference.kv_cache.low_rank import subspace_overlap
from limbeck.tasks.base import cross_entropy

BED = LanguageBed(length=512, batch_size=4, teacher_steps=600)
MODEL = {"depth": 6, "width": 64, "heads": 2, "rotary": True}
PROMPT = 448


def low_rank(
    run: Run, group: int, key_share: float = 0.4, share: float = 0.2512, bed: LanguageBed = BED, **sizes: int
) -> dict[str, float]:
    """A basis per `group` layers."""
    return measured(run, lambda cache: SharedLowRank.within(share, cache, group, key_share), bed, **sizes)


def averaged(run: Run, group: int = 6, share: float = 0.2512, bed: LanguageBed = BED, **sizes: int) -> dict[str, float]:
    """A direction per token and `group` layers; the numbers that are left keep the least similar tokens whole."""
    return measured(run, lambda cache: LayerAverage.within(share, cache, group), bed, **sizes)


@torch.no_grad()
def measured(
    run: Run, settings, bed: LanguageBed, prompt: int = PROMPT, count: int = 20, **sizes: int
) -> dict[str, float]:
    """Compress the cache of the prompt by what `settings(cache)` says, and go on after it."""
    model = bed.teacher(run, **{**MODEL, **sizes})
    blocks = bed.task.size(run.split) - 1  # the last one is short
    place = run.seed % (blocks // count)  # every seed has its own blocks
    batch = next(bed.task.batches(run.split, count, seed=0, limit=blocks, skip=place))
    dense = KeyValueCache(len(model.blocks))
    model(batch["input_ids"][:, :prompt], cache=dense)
    compressor: Compressor = settings(dense)
    small = compressor.compress(dense)
    run.record(numbers=small.numbers, bytes=small.nbytes)
    pairs = [pair for index in range(dense.depth) for pair in zip(small.layer(index), dense.layer(index))]
    error = sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)
    overlap = subspace_overlap(*(dense.stacked(i, i + 1)[0] for i in (dense.depth // 2 - 1, dense.depth // 2)), rank=8)
    share = small.numbers / dense.numbers
    following, labels = batch["input_ids"][:, prompt:], batch["labels"][:, prompt:]
    loss, whole = (float(cross_entropy(model(following, cache=cache), labels)) for cache in (small, dense))
    return {"loss": loss, "added_loss": loss - whole, "error": error, "share": share, "overlap": overlap}


paper = Paper(
    id=28,
    title="xKV: Cross-Layer SVD for KV-Cache Compression",
    claim="At equal stored numbers one low-rank token basis per group of layers beats a basis per layer and merged layers",
    composition="KeyValueCache + SharedLowRank(group > 1) after the prompt",
    method=Arm(low_rank, tune={"group": (2, 3, 6)}, about="one basis per group of layers"),
    baseline=Arm(low_rank, {"group": 1}, {"key_share": (0.3, 0.4, 0.5)}, about="one basis per layer"),
    control=Arm(averaged, about="one direction per token for six layers, least similar tokens whole"),
    metric="loss",
    better="lower",
    miniature=Miniature(beds=(BED,), seeds=5, equal=("numbers",)),
    comparisons=(
        Comparison(),
        Comparison(against="control"),
        Comparison(metric="error"),
        Comparison(metric="error", against="control"),
    ),
    left_out="latent attention (MLA); reconstruction of only the tokens a query needs, and the randomised decomposition (later version)",
)
