"""What a computation holds in tensors at its peak, counted, not sampled: the same number on every run and every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counter(TorchDispatchMode):
    """Adds the bytes of every storage that an operation makes, takes them off when it dies, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = 0, 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                if id(storage) not in given and id(storage) not in self._alive:
                    self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        size, key = storage.nbytes(), id(storage)

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self.held -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)


def peak_tensor_bytes(run: Callable[[], Any]) -> int:
    """Bytes that one call adds at its peak in tensors: activations, gradients, temporaries between operations.

    On the CPU every tensor that an operation returns is counted, the backward pass included; what an operation needs inside itself
    and gives back is not. On a CUDA device it is the allocator's own peak.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    counter = _Counter()
    with counter:
        run()
    return counter.peak
