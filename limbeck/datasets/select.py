"""Which examples of a pool to learn from: the ones a teacher is surest of, and none that are copies of others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import UsageError


def highest_per_class(scores: Tensor, count: int) -> Tensor:
    """Positions, rising, of the `count` examples with the highest score of each class: scores (N, C) to (at most C count,).

    An example that is among the highest of two classes is named once. Raises UsageError for a count below 1.
    Source: Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones" (SSLD), 2021,
    where the scores are a teacher's probabilities and the pool is unlabelled.
    """
    if scores.dim() != 2 or isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(
            f"highest_per_class: count={count!r} of scores {tuple(scores.shape)}: give 1 or more of (examples, classes)"
        )
    return scores.topk(min(count, len(scores)), dim=0).indices.flatten().unique()


def without_copies(examples: Tensor, references: Tensor, similarity: float = 0.95, chunk: int = 4096) -> Tensor:
    """Positions, rising, of the examples (N, ...) that are no near copy of a reference (M, ...).

    A near copy has a correlation above `similarity` with a reference, over all of its numbers (pixels, or features of an encoder). It
    keeps what a model is measured on out of what it learns from. Raises UsageError for other shapes or a similarity outside (0, 1].
    """
    if examples.shape[1:] != references.shape[1:] or not 0 < similarity <= 1:
        raise UsageError(
            f"without_copies: examples {tuple(examples.shape)}, references {tuple(references.shape)}, similarity="
            f"{similarity!r}: both must have the same numbers per example, and similarity lie in (0, 1]"
        )

    def centred(x: Tensor) -> Tensor:
        x = x.flatten(1).float()
        return F.normalize(x - x.mean(1, keepdim=True), dim=1)

    known = centred(references)
    kept = [(centred(part) @ known.T).amax(1) <= similarity for part in examples.split(chunk)]
    return torch.cat(kept).nonzero()[:, 0]
