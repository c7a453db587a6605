"""Weights of an objective's terms from what training left of them: a term that is still large gets a larger weight.

    w_i -> w_i n r_i / sum_j r_j      over the n chosen terms,  r_i: the mean value of term i over training examples

The sum of the factors is n, so terms with equal residuals keep their weights. GPUSQ-ViT weighs its distillation of features in this way:
what the pruned model could not imitate, the quantized one tries hardest.

Source: Yu et al., "Boost Vision Transformer with GPU-Friendly Sparsity and Quantization", CVPR 2023 (residuals of the first stage weigh the
second; the abstract and a reading note were read, there is no public code, and that the factors are normalized to mean 1 is a choice here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from limbeck.errors import DataError, UsageError
from limbeck.measure.latency import evaluating
from limbeck.objectives.base import Objective, Sum, terms_of
from limbeck.signals import Tap, to_device
from limbeck.training.procedures import Distil


def residuals(procedure: Distil, task: Any, examples: int = 512, batch_size: int = 64) -> tuple[float, ...]:
    """The mean unweighted value of every term of a procedure's objective after a run, over examples of the train split, without
    augmentation and in evaluation mode. A term of weight 0 is not computed; its value is 0.

    Connectors are those that the run trained. Raises UsageError for a procedure that was not prepared where it needs them, DataError
    where the split is empty.
    """
    terms, objective = terms_of(procedure.objective), procedure.objective
    sums, count = [0.0] * len(terms), 0
    device = next((p.device for p in procedure.student.parameters()), torch.device("cpu"))
    with evaluating(procedure.student):
        if procedure.teacher is not None:
            procedure.teacher.to(device)
        for given in task.batches("train", batch_size, limit=examples):
            batch = to_device(given, device)
            teacher = procedure._teacher_signals(batch)
            with Tap(procedure.student, objective.reads.student) as tap:
                student = tap(batch)
            size = len(next(iter(batch.values())))
            for index, loss in objective.losses(student, teacher, batch, procedure.connectors).items():
                sums[index] += float(loss.value) * size
            count += size
    if not count:
        raise DataError("the train split gave no batch to measure the residuals on")
    return tuple(value / count for value in sums)


def reweighted(objective: Objective, values: Sequence[float], chosen: type | tuple[type, ...]) -> Sum:
    """The objective with the weights of its terms of the types `chosen` multiplied as the module says; values: one per term.

    Raises UsageError where the number of values is not that of the terms, a value is negative or not finite, or no term is chosen.
    """
    terms = terms_of(objective)
    if len(values) != len(terms):
        raise UsageError(f"reweighted: {len(values)} values for an objective of {len(terms)} terms")
    places = [index for index, (term, weight) in enumerate(terms) if isinstance(term, chosen) and weight]
    if not places:
        raise UsageError(f"reweighted: no term of {[term.name for term, _ in terms]} is one of {chosen}")
    left = [float(values[index]) for index in places]
    if not all(0 <= value < float("inf") for value in left):
        raise UsageError(f"reweighted: residuals {left} must be finite and at least 0")
    total = sum(left)
    factors = dict.fromkeys(range(len(terms)), 1.0)
    factors |= {index: len(places) * value / total for index, value in zip(places, left) if total}
    return Sum(tuple((term, weight * factors[index]) for index, (term, weight) in enumerate(terms)))
