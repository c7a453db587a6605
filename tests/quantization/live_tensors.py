"""Bytes of the tensors that are alive, counted at every operation: what a computation needs at its peak, whatever the allocator keeps."""

from collections.abc import Iterable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """`now` and `peak`: bytes of storages made inside the block that live, each counted once. What an operation needs inside is not seen."""

    def __init__(self, outside: Iterable[Tensor] = ()):
        super().__init__()
        self.outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.made = 0  # bytes in `storages`, some of them dead
        self.peak = 0

    @property
    def now(self) -> int:
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        self.made = sum(size for _, size in self.storages.values())
        return self.made

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.outside and storage._cdata not in self.storages:
                    self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.made += storage.nbytes()
        if self.made > self.peak:
            self.peak = max(self.peak, self.now)
        return out
