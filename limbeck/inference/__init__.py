"""Inference: what is compressed or skipped while a model runs (caches, tokens)."""

from limbeck.inference import kv_cache

__all__ = ["kv_cache"]
