"""Quantized caches for the decoders of transformers, and their `generate`.

cache = quantized_cache(model, QuantizedEntries(bits=2))
model.generate(ids, past_key_values=cache)
cache_bytes(cache)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.inference.kv_cache.quantized import QuantizedEntries


@functools.cache
def layer_class() -> type:
    """The class of a layer; made when it is first needed, because its base is in transformers."""
    from transformers.cache_utils import DynamicLayer

    class QuantizedLayer(DynamicLayer):
        """Packed pieces of older tokens and dense recent ones. A piece is stored once and never rounded again."""

        def __init__(self, settings: QuantizedEntries):
            super().__init__()
            self.settings, self.pieces, self.length = settings, [], 0

        def get_seq_length(self) -> int:
            """How many tokens are held."""
            return self.length

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """All keys and values so far, the new ones as they came; afterwards what is no longer recent is packed."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
            self.length += key_states.shape[-2]
            recent = [torch.cat(pair, -2) for pair in ((self.keys, key_states), (self.values, value_states))]
            parts = [piece.unpack() for piece in self.pieces] + [tuple(recent)]
            count = self.settings.settled(recent[0].shape[-2])
            if count:
                self.pieces.append(self.settings.pack(*(side[..., :count, :] for side in recent)))
            self.keys, self.values = (side[..., count:, :].contiguous() for side in recent)
            return tuple(torch.cat(side, -2) for side in zip(*parts))

        def reorder_cache(self, beam_idx: Tensor) -> None:
            """The sequences of a beam search in another order."""
            self._pick(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> None:
            """Keep these sequences."""
            self._pick(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            """Every sequence so many times."""
            if self.is_initialized:
                self._pick(torch.arange(len(self.keys)).repeat_interleave(repeats))

        def _pick(self, rows: Tensor) -> None:
            if self.is_initialized:
                rows = torch.as_tensor(rows)
                self.pieces = [piece.select(rows) for piece in self.pieces]
                self.keys, self.values = (x.index_select(0, rows.to(x.device)) for x in (self.keys, self.values))

        def crop(self, tokens_to_remove: int) -> None:
            """Drop the last tokens. Raises UsageError where packed ones would have to go."""
            if tokens_to_remove > self.keys.shape[-2]:
                raise UsageError(
                    f"{tokens_to_remove} tokens cannot be taken back: all but the last {self.keys.shape[-2]} are packed; use a larger `recent`"
                )
            left = self.keys.shape[-2] - tokens_to_remove
            self.keys, self.values = (x[..., :left, :] for x in (self.keys, self.values))
            self.length -= tokens_to_remove

        def reset(self) -> None:
            """Forget everything."""
            super().reset()
            self.pieces, self.length, self.is_initialized = [], 0, False

        @property
        def nbytes(self) -> int:
            """Bytes of what is held."""
            held = [tensor for piece in self.pieces for tensor in piece.tensors()]
            held += [self.keys, self.values] if self.is_initialized else []
            return sum(tensor.numel() * tensor.element_size() for tensor in held)

    return QuantizedLayer


def quantized_cache(model: nn.Module, settings: QuantizedEntries | None = None) -> Any:
    """An empty `transformers.Cache` for a decoder of transformers, one quantized layer for each of its own.

    Keys are held as attention reads them, after their position embedding. Raises UsageError for a model without a transformers
    configuration that says how many layers it has, or with layers whose cache is not of keys and values of all tokens.
    """
    from transformers import Cache

    configuration = getattr(model, "config", None)
    depth = getattr(configuration, "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise UsageError(f"{type(model).__name__} is no decoder of transformers: its config names no num_hidden_layers")
    kinds = set(getattr(configuration, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise UsageError(f"layers of the kinds {sorted(kinds)} keep another cache than keys and values of all tokens")
    settings = settings or QuantizedEntries()
    return Cache(layers=[layer_class()(settings) for _ in range(depth)])


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache of transformers holds: packed and dense."""
    total = 0
    for layer in cache.layers:
        if hasattr(layer, "nbytes"):
            total += layer.nbytes
        elif layer.is_initialized:
            total += sum(x.numel() * x.element_size() for x in (layer.keys, layer.values))
    return total
