"""Moving what a unit needs to the machine it runs on: entries of the store, and data, each checked by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from limbeck.errors import ArtifactError, DataError
from limbeck.files import file_digest, locked, write_bytes
from limbeck.folders import replacing_folder


class Desk:
    """The side that has things: serves the files of a store folder and of a data folder by name, and takes new store entries.

    Names are checked: a plain file name for the store, `collection/path` without `..` for data.
    """

    def __init__(self, store: Path | str, data: Path | str):
        self.store, self.data = Path(store), Path(data)

    def get(self, name: str) -> bytes | None:
        """The bytes of a store entry's file; None when it is not there."""
        path = self.store / _plain(name)
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, data: bytes) -> None:
        """Keep a store entry's file that a worker made."""
        write_bytes(self.store / _plain(name), data)

    def manifest(self, collection: str) -> dict[str, str] | None:
        """Relative path to SHA-256 of every file of a data collection; None when it is not here."""
        root = self.data / _plain(collection)
        if not root.is_dir():
            return None
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {path.relative_to(root).as_posix(): file_digest(path) for path in files}

    def file(self, collection: str, name: str) -> bytes:
        """The bytes of one file of a collection."""
        return (self.data / _plain(collection) / _inside(name)).read_bytes()


def _plain(name: str) -> str:
    if not name or name != PurePosixPath(name).name or name in (".", ".."):
        raise ArtifactError(f"{name!r} is not a plain file name")
    return name


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{name!r} leaves its folder")
    return path


class RayDesk:
    """A Desk that lives in a Ray actor beside the driver, seen from a worker: the same methods."""

    def __init__(self, actor: Any):
        self.actor = actor

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments))

    def get(self, name: str) -> bytes | None:
        return self._ask("get", name)

    def put(self, name: str, data: bytes) -> None:
        self._ask("put", name, data)

    def manifest(self, collection: str) -> dict[str, str] | None:
        return self._ask("manifest", collection)

    def file(self, collection: str, name: str) -> bytes:
        return self._ask("file", collection, name)


def bring_data(paper: Any, exchange: Any) -> list[str]:
    """Copy the collections that a paper's beds read and this machine lacks from the desk; returns the names copied.

    Raises DataError when neither side has one, ArtifactError when a file arrives with another digest.
    """
    if exchange is None:
        return []
    from limbeck.datasets.load import data_folder

    brought = []
    for name in sorted({collection for bed in paper.miniature.beds for collection in bed.collections()}):
        root = data_folder() / name
        if root.is_dir():
            continue
        listed = exchange.manifest(name)
        if listed is None:
            raise DataError(
                f"the data {name!r} is neither on this machine nor where the run was started. Run: make data"
            )
        with locked(root.parent / f".{name}.lock", None):
            if root.is_dir():
                continue
            with replacing_folder(root) as folder:
                for relative, wanted in listed.items():
                    data = exchange.file(name, relative)
                    if hashlib.sha256(data).hexdigest() != wanted:
                        raise ArtifactError(f"{name}/{relative}: arrived damaged (its SHA-256 differs)")
                    write_bytes(folder / _inside(relative), data)
        brought.append(name)
    return brought
