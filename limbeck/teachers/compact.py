"""Compact answers: logits as their k largest entries and what the rest weighs together.

    logits (..., C)  ->  values (..., k) float16     z_i - max z of the k largest classes
                         classes (..., k)            which they are: uint8, uint16 or int32 by C; absent for k = C
                         top (..., 1) float32        max z; values are relative to it, so they are finest where it matters
                         rest (..., 1) float32       T (log sum_{i not in k} exp(z_i / T) - log(C - k)); absent for k = C

Decoding gives each class of the rest the value `rest`, so the probability of the whole rest at temperature T is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.errors import UsageError

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def class_dtype(classes: int) -> torch.dtype:
    """The smallest type that holds the indices of so many classes."""
    return torch.uint8 if classes <= 1 << 8 else torch.uint16 if classes <= 1 << 16 else torch.int32


def encode(
    logits: Tensor, top_k: int | None = None, temperature: float = 1.0, dtype: str = "float16"
) -> dict[str, Tensor]:
    """Logits (..., C) to the entries above; with dtype "float32" the values are the logits themselves and `top` is absent."""
    z = logits.detach().float()
    count, whole = z.shape[-1], top_k is None or top_k >= z.shape[-1]
    values, classes = (z, None) if whole else z.topk(top_k, dim=-1)
    out = {}
    if dtype == "float32":
        out["values"] = values
    else:
        out["top"] = values.amax(dim=-1, keepdim=True)
        out["values"] = (values - out["top"]).clamp(min=torch.finfo(DTYPES[dtype]).min).to(DTYPES[dtype])
    if classes is not None:
        others = z.scatter(-1, classes, -math.inf) / temperature
        rest = temperature * (others.logsumexp(dim=-1, keepdim=True) - math.log(count - top_k))
        out |= {"classes": classes.to(class_dtype(count)), "rest": rest}
    return {name: value.contiguous() for name, value in out.items()}


def decode(entries: Mapping[str, Tensor], count: int) -> Tensor:
    """The entries of `encode` back to logits (..., C) in float32."""
    values = part(entries, "values")
    if "classes" not in entries:
        return values
    logits = entries["rest"].expand(*values.shape[:-1], count).clone()
    return logits.scatter_(-1, entries["classes"].long(), values)


def part(entries: Mapping[str, Tensor], name: str) -> Tensor:
    """What decoding starts from: `values` (..., k) as logits in float32, their `classes` (..., k), the `rest` (..., 1) of the others."""
    if name == "classes":
        return entries["classes"].long()
    found = entries[name].float()
    return found + entries["top"] if name == "values" and "top" in entries else found


def encode_feature(name: str, feature: Tensor, dtype: str) -> Tensor:
    """A hidden state in the stored type. Raises UsageError where it is not finite or does not fit."""
    stored = feature.detach().to(DTYPES[dtype])
    if not bool(stored.isfinite().all()):
        raise UsageError(
            f"the teacher's signal {name!r} has values that are not finite in {dtype} (largest "
            f"{float(feature.detach().abs().max()):.3g}): use dtype='float32', or look at the teacher"
        )
    return stored.contiguous()
