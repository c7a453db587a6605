"""Key/value caches of decoder models: what is kept of the tokens so far, in how many numbers."""

from limbeck.inference.kv_cache.averaged import LayerAverage
from limbeck.inference.kv_cache.base import Compressor, KeyValueCache, Prefix
from limbeck.inference.kv_cache.generation import cache_bytes, quantized_cache
from limbeck.inference.kv_cache.low_rank import SharedLowRank
from limbeck.inference.kv_cache.quantized import QuantizedEntries

__all__ = [
    "Compressor",
    "KeyValueCache",
    "LayerAverage",
    "Prefix",
    "QuantizedEntries",
    "SharedLowRank",
    "cache_bytes",
    "quantized_cache",
]
