"""Inference: getting a model's answers with less work."""

from limbeck.inference.speculative import Speculation, acceptance, expected_acceptance, residual, speculate, verify

__all__ = ["Speculation", "acceptance", "expected_acceptance", "residual", "speculate", "verify"]
"""Inference: what is compressed or skipped while a model runs (caches, tokens)."""

from limbeck.inference import kv_cache

__all__ = ["kv_cache"]
