"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def _trim():
    try:
        return ctypes.CDLL(None).malloc_trim  # of the GNU C library
    except (AttributeError, OSError):
        return lambda pad: 0


def give_back() -> None:
    """Return freed pages to the system. Between large tensors that come and go and small ones that stay, the C library keeps them: working
    through a model block by block would then take as much memory as the whole of it. Does nothing where there is no such call."""
    _trim()(0)
