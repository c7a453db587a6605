"""Inference: getting a model's answers with less work: what is drafted, compressed or skipped while it runs."""

from limbeck.inference import kv_cache
from limbeck.inference.speculative import Speculation, acceptance, expected_acceptance, residual, speculate, verify

__all__ = [
    "Speculation",
    "acceptance",
    "expected_acceptance",
    "kv_cache",
    "residual",
    "speculate",
    "verify",
]
