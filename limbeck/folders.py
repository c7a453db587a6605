"""Folders that are whole or absent: made beside their place, flushed, and swapped in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from limbeck.errors import LimbeckError


@contextlib.contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; put it in its place on success, delete it on any failure.

    What was there before is gone only once the new folder stands: whether it may go is the caller's to decide. On Linux
    the two are swapped in one step; elsewhere a kill between two renames leaves the old one as `.NAME-*.old`.
    Raises LimbeckError when the place cannot be written or the disk is full.
    """
    folder = Path(folder)
    made: Path | None = None
    old: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
        yield made
        made.chmod(0o755)
        flush(made)
        if not (folder.exists() and any(folder.iterdir())):
            os.rename(made, folder)
        elif exchange(made, folder):
            old = made
        else:
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".old", dir=folder.parent))
            os.rename(folder, old)
            try:
                os.rename(made, folder)
            except OSError:
                os.rename(old, folder)
                old = None
                raise
        made = None
    except OSError as error:
        reason = error.strerror or error
        raise LimbeckError(f"cannot write {folder}: {reason}. Nothing was changed there.") from error
    finally:
        for leftover in (made, old):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step, so that not even a kill finds none (Linux's renameat2); False where that is not known."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, swap_both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap(here, os.fsencode(a), here, os.fsencode(b), swap_both) == 0


def flush(folder: Path) -> None:
    """Push every file and folder below to the disk."""
    for root, _, names in os.walk(folder):
        for path in [*(Path(root) / name for name in names), Path(root)]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def store_folder() -> Path:
    """Where what was trained once is kept for everybody who asks for the same: `$LIMBECK_STORE`, else ~/.cache/limbeck/store."""
    return Path(os.environ.get("LIMBECK_STORE") or Path.home() / ".cache" / "limbeck" / "store")
