"""The manifest of an artifact: which files belong to it, how long each is and what its digest is.

`manifest.json` is `{"format": 1, "limbeck": "0.1.0", "files": {"model.safetensors": {"bytes": 1, "sha256": "..."}}, "digest": "..."}`;
`digest` is the SHA-256 of the canonical JSON of the rest. Everything that is read from an artifact is checked against it
first, so that a damaged or edited file is refused by name before anything looks inside. A digest proves that a folder is
as it was written, not who wrote it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from limbeck.errors import ArtifactError
from limbeck.files import digest, file_digest, write_json

FORMAT = 1
NAME = "manifest.json"
MAX_JSON = 64 << 20  # bytes of one JSON file
MAX_FILES = 10_000
MAX_DEPTH = 100
_SHA256 = re.compile(r"[0-9a-f]{64}")


def version() -> str:
    """The version of this Limbeck."""
    import importlib.metadata

    import limbeck

    own = getattr(limbeck, "__version__", None)
    if own is not None:
        return own
    try:
        return importlib.metadata.version("limbeck")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_name(name: Any, where: str = NAME) -> str:
    """A file name inside an artifact: relative, with forward slashes, staying inside. Raises ArtifactError otherwise."""
    ok = isinstance(name, str) and 0 < len(name) <= 500 and not re.search(r"[\x00-\x1f\\:]", name)
    if not ok or PurePosixPath(name).is_absolute() or any(part in ("", ".", "..") for part in name.split("/")):
        raise ArtifactError(
            f"{where}: {name!r} is not a file inside the artifact; only relative names without '..' are"
        )
    return name


def write(folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of the named files, which lie in `folder` already."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in sorted(names)
    }
    content = {"format": FORMAT, "limbeck": version(), "files": files}
    write_json(folder / NAME, {**content, "digest": digest(content)})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def parse(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from bytes: bounded in size and depth, finite numbers, no key twice. Raises ArtifactError."""
    if len(data) > MAX_JSON:
        raise ArtifactError(f"{name} has {len(data)} bytes; at most {MAX_JSON} are read")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is damaged: it is not JSON that Limbeck wrote ({error})") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} is damaged: it must hold one JSON object")
    return value


def check_format(value: dict[str, Any], name: str) -> None:
    """Raise ArtifactError unless `value["format"]` is one that this Limbeck reads."""
    found = value.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ArtifactError(f"{name} has no valid 'format': got {found!r}, a whole number from 1 is needed")
    if found > FORMAT:
        raise ArtifactError(
            f"{name} has format {found}, written by Limbeck {value.get('limbeck')!r}; this is Limbeck {version()}, "
            f"which reads format {FORMAT}. Install a newer Limbeck."
        )


def _regular(folder: Path, name: str) -> Path:
    """The path of a file of the artifact; neither it nor a folder on the way may be a link."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise ArtifactError(
                f"{name} in {folder} is or lies behind a symbolic link; an artifact holds real files only"
            )
    if not path.exists():
        raise ArtifactError(f"{name} is missing from {folder}")
    if not path.is_file():
        raise ArtifactError(f"{name} in {folder} is not a file")
    return path


def read(folder: Path | str) -> dict[str, Any]:
    """The manifest of an artifact, itself checked. Raises ArtifactError when the folder is no artifact."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; a Limbeck artifact is a folder with {NAME}")
    try:
        path = _regular(folder, NAME)
        size = path.stat().st_size
        if size > MAX_JSON:
            raise ArtifactError(f"{NAME} has {size} bytes; at most {MAX_JSON} are read")
        value = parse(path.read_bytes(), NAME)
    except OSError as error:
        raise ArtifactError(f"cannot read {NAME} in {folder}: {error.strerror or error}") from error
    check_format(value, NAME)
    if set(value) != {"format", "limbeck", "files", "digest"} or not isinstance(value["files"], dict):
        raise ArtifactError(f"{NAME} is damaged: it must have exactly the keys format, limbeck, files and digest")
    if digest({key: value[key] for key in ("format", "limbeck", "files")}) != value["digest"]:
        raise ArtifactError(f"{NAME} is damaged or was changed: its digest does not fit its content")
    if len(value["files"]) > MAX_FILES:
        raise ArtifactError(f"{NAME} lists {len(value['files'])} files; at most {MAX_FILES} are read")
    for name, entry in value["files"].items():
        check_name(name)
        valid = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"}
        if not valid or not isinstance(entry["bytes"], int) or not _SHA256.fullmatch(str(entry["sha256"])):
            raise ArtifactError(f"{NAME}: the entry of {name!r} must have 'bytes' and 'sha256'")
    return value


def verified(folder: Path | str, name: str, manifest: dict[str, Any]) -> Path:
    """The path of one file of the artifact, after its size and digest were checked. Raises ArtifactError."""
    entry = manifest["files"].get(name)
    if entry is None:
        raise ArtifactError(f"{name} is not part of the artifact {folder}: {NAME} does not list it")
    path = _regular(Path(folder), name)
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            word = "truncated" if size < entry["bytes"] else "longer than it was"
            raise ArtifactError(f"{name} in {folder} is {word}: {size} bytes, {entry['bytes']} were written")
        if file_digest(path) != entry["sha256"]:
            raise ArtifactError(f"{name} in {folder} is damaged or was changed: its SHA-256 differs from {NAME}'s")
    except OSError as error:
        raise ArtifactError(f"cannot read {name} in {folder}: {error.strerror or error}") from error
    return path


def read_json(folder: Path | str, name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """A JSON file of the artifact, verified and parsed."""
    path = verified(folder, name, manifest)
    if path.stat().st_size > MAX_JSON:
        raise ArtifactError(f"{name} has {path.stat().st_size} bytes; at most {MAX_JSON} are read")
    return parse(path.read_bytes(), name)


def unlisted(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files in the folder that do not belong to the artifact, by name."""
    found = []
    for root, _, names in os.walk(folder):
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in names]
    return sorted(set(found) - set(manifest["files"]) - {NAME})
