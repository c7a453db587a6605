"""Randomness as a function of (seed, purpose, step), so that no generator state has to be stored."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy
import torch


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2**32) that depends on all the parts and on nothing else."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python: dropout and user code draw from them.

    `torch.manual_seed` would cost half a millisecond wherever an accelerator's runtime is not started: it records a
    stack for each of them.
    """
    torch.default_generator.manual_seed(seed)
    for device in (torch.cuda, torch.xpu):
        if device.is_initialized():
            device.manual_seed(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def restored_generators() -> Iterator[None]:
    """Give the global generators of torch, numpy and Python their states back at the end."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
