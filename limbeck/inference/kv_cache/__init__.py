"""Key/value caches of decoder models: what is kept of the tokens so far, in how many numbers."""

from limbeck.inference.kv_cache.averaged import LayerAverage
from limbeck.inference.kv_cache.base import Compressor, KeyValueCache, Prefix
from limbeck.inference.kv_cache.low_rank import SharedLowRank

__all__ = ["Compressor", "KeyValueCache", "LayerAverage", "Prefix", "SharedLowRank"]
