"""Artifacts: one folder that holds a model and says everything about it.

    model.safetensors   the weights
    architecture.json   how to build the model: a factory, then plans (`limbeck.build`, `limbeck.plan`)
    recipe.yaml         what made it (when known)
    report.json         what was measured (when known)
    README.md           the model card, with the numbers of the report
    exports/            files for other runtimes (when exported)
    manifest.json       size and SHA-256 of every file above

Loading builds the empty architecture, replays the plans and loads the weights strictly: same outputs, bit for bit. Nothing
is ever unpickled, and no code outside `limbeck.models` is imported unless the caller names its package as trusted.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError
from torch import nn

from limbeck import manifest
from limbeck.build import Factory, Lineage, lineage, with_lineage
from limbeck.card import model_card
from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.folders import replacing_folder
from limbeck.plan import Plan
from limbeck.weights import Description, collect, empty_model, fill, weights_digest

__all__ = ["add_files", "copy", "info", "is_artifact", "load", "read_report", "save", "weights_digest"]

WEIGHTS, ARCHITECTURE, RECIPE, REPORT, CARD = (
    "model.safetensors",
    "architecture.json",
    "recipe.yaml",
    "report.json",
    "README.md",
)
OWN = (WEIGHTS, ARCHITECTURE, RECIPE, REPORT, CARD, manifest.NAME)
MAX_HEADER = 64 << 20


def save(
    model: nn.Module,
    folder: Path | str,
    *,
    factory: Factory | None = None,
    plans: Iterable[Plan] = (),
    recipe: Mapping[str, Any] | str | None = None,
    report: Mapping[str, Any] | None = None,
    card: str | None = None,
    extra_files: Mapping[str, Path | str | bytes] | None = None,
) -> Path:
    """Write the model as an artifact, whole or not at all, and return the folder.

    model        carries its lineage when Limbeck built or loaded it; for any other, give `factory` (and `plans` applied since)
    recipe       the recipe as plain JSON or as YAML text; report: as in docs/architecture.md; card: replaces the model card
    extra_files  {name inside the artifact, e.g. "exports/model.onnx": a file or a folder to copy, or bytes}

    The artifact is made beside `folder` and renamed; an artifact that is already there is replaced. Raises UsageError when
    `folder` is anything else, or the model has no lineage; ArtifactError when its lineage does not rebuild it; LimbeckError
    when the place cannot be written. A failure leaves what was there before.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    past = _lineage(model, factory, tuple(plans))
    own_package = past.factory.target.partition(":")[0]
    empty = empty_model(past, trust=(own_package,))
    tensors, description = collect(model, empty)
    del empty
    texts = {
        ARCHITECTURE: _text(
            {
                "format": manifest.FORMAT,
                "limbeck": manifest.version(),
                "factory": past.factory.to_json(),
                "plans": [plan.to_json() for plan in past.plans],
                "tensors": description.to_json(),
                "weights": weights_digest(model, description.constants),
            },
            "the factory or a plan",
        )
    }
    if recipe is not None:
        texts[RECIPE] = recipe if isinstance(recipe, str) else _yaml(recipe)
    if report is not None:
        texts[REPORT] = _text(report, "the report")
    extra = _expand(extra_files)
    texts[CARD] = card if card is not None else model_card(past, tensors, report, exports=sorted(extra))

    try:
        with replacing_folder(folder) as at:
            safetensors.torch.save_file(tensors, at / WEIGHTS, metadata={"format": "pt"})
            (at / WEIGHTS).chmod(0o644)
            for name, text in texts.items():
                (at / name).write_text(text, encoding="utf-8")
            for name, source in extra.items():
                _copy(source, at / name)
            manifest.write(at, [WEIGHTS, *texts, *extra])
    except SafetensorError as error:
        raise LimbeckError(f"cannot write {folder / WEIGHTS}: {error}. Nothing was changed there.") from error
    return folder


def load(folder: Path | str, *, trust: Iterable[str] = (), device: str = "cpu") -> nn.Module:
    """The model of an artifact, in evaluation mode on `device`, with its lineage; outputs are those of the saved model.

    Every file's digest is checked first. `trust` names packages whose code may build the model. Raises ArtifactError, naming
    the file and the reason, for a folder that is damaged, incomplete, changed, of a newer version or of untrusted code.
    """
    folder = Path(folder)
    listing = manifest.read(folder)
    for name in listing["files"]:
        manifest.verified(folder, name, listing)
    past, description, digest = _architecture(folder, listing)
    path = folder / WEIGHTS
    if WEIGHTS not in listing["files"]:
        raise ArtifactError(f"{WEIGHTS} is not part of the artifact {folder}: {manifest.NAME} does not list it")
    _header(path)
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    try:
        model = fill(past, safetensors.torch.load_file(path), description, trust)
    except SafetensorError as error:
        raise ArtifactError(f"{WEIGHTS} in {folder} is damaged: {error}") from error
    except LimbeckError as error:
        raise ArtifactError(f"{ARCHITECTURE} in {folder} cannot be built: {error}") from error
    except (Exception, RecursionError) as error:
        raise ArtifactError(
            f"{ARCHITECTURE} in {folder} cannot be built: {type(error).__name__}: {error}. "
            "It needs the code and the library versions that it was saved with."
        ) from error
    if weights_digest(model, description.constants) != digest:
        raise ArtifactError(f"{WEIGHTS} in {folder} does not hold the weights that {ARCHITECTURE} names")
    return with_lineage(model.to(device).eval(), past.factory, past.plans)


def read_report(folder: Path | str) -> dict[str, Any]:
    """The report of an artifact. Raises ArtifactError when it has none or it was changed."""
    return manifest.read_json(folder, REPORT, manifest.read(folder))


def info(folder: Path | str) -> dict[str, Any]:
    """What an artifact says about itself, without building the model or reading the weights.

    Returns {"format", "limbeck", "factory", "plans": [kinds], "trust": package or None, "elements", "dtypes": {type: elements},
    "bytes", "weights": digest, "files": {name: bytes}, "recipe": bool, "report": bool}.
    "weights" is `weights_digest` of the model, its constants outside the state dict included where it has any.
    """
    folder = Path(folder)
    listing = manifest.read(folder)
    past, _, digest = _architecture(folder, listing)
    path = manifest.verified(folder, WEIGHTS, listing)
    dtypes: dict[str, int] = {}
    for name, entry in _header(path).items():
        if name == "__metadata__":
            continue
        elements = 1
        for size in entry["shape"]:
            elements *= size
        dtypes[entry["dtype"]] = dtypes.get(entry["dtype"], 0) + elements
    module = past.factory.target.partition(":")[0]
    files = {name: entry["bytes"] for name, entry in listing["files"].items()}
    return {
        "format": listing["format"],
        "limbeck": listing["limbeck"],
        "factory": past.factory.to_json(),
        "plans": [plan.kind for plan in past.plans],
        "trust": None if (module + ".").startswith("limbeck.models.") else module.split(".")[0],
        "elements": sum(dtypes.values()),
        "dtypes": dtypes,
        "bytes": sum(files.values()),
        "weights": digest,
        "files": files,
        "recipe": RECIPE in files,
        "report": REPORT in files,
    }


def add_files(folder: Path | str, files: Mapping[str, Path | str | bytes]) -> None:
    """Add files (such as later exports) to an artifact and list them in its manifest; a name that is there is replaced.

    The model's own files cannot be replaced. Every file is written whole before the manifest names it.
    """
    folder = Path(folder)
    listing = manifest.read(folder)
    for name in listing["files"]:
        manifest.verified(folder, name, listing)
    added = _expand(files)
    try:
        for name, source in added.items():
            for parent in [folder / name, *(folder / name).parents]:
                if parent != folder and folder in parent.parents and parent.is_symlink():
                    raise ArtifactError(f"{name} in {folder} lies behind a symbolic link; remove it")
            _copy(source, folder / name)
    except OSError as error:
        raise LimbeckError(f"cannot write into {folder}: {error.strerror or error}") from error
    manifest.write(folder, {*listing["files"], *added})


def copy(folder: Path | str, to: Path | str) -> Path:
    """Copy a sound artifact, whole or not at all, under the rules of `save` for what may be replaced; returns `to`."""
    folder, to = Path(folder), Path(to)
    listing = manifest.read(folder)
    paths = {name: manifest.verified(folder, name, listing) for name in listing["files"]}
    _check_replaceable(to)
    with replacing_folder(to) as at:
        for name, path in {**paths, manifest.NAME: folder / manifest.NAME}.items():
            _copy(path, at / name)
    return to


def is_artifact(folder: Path | str) -> bool:
    """Whether the folder holds an artifact of any version, sound or not."""
    folder = Path(folder)
    return (folder / manifest.NAME).is_file() and (folder / ARCHITECTURE).is_file()


def _lineage(model: nn.Module, factory: Factory | None, plans: tuple[Plan, ...]) -> Lineage:
    known = lineage(model)
    if factory is not None:
        return Lineage(factory, plans)
    if known is None:
        raise UsageError(
            f"this {type(model).__name__} was not built by Limbeck, so nothing says how to build it again without pickle. "
            "Name a function that makes it and its arguments: save(model, folder, factory=Factory('mypkg.models:make', "
            "{'width': 64})), and load it with load(folder, trust=['mypkg'])"
        )
    return known


def _architecture(folder: Path, listing: dict[str, Any]) -> tuple[Lineage, Description, str]:
    value = manifest.read_json(folder, ARCHITECTURE, listing)
    manifest.check_format(value, ARCHITECTURE)
    if set(value) != {"format", "limbeck", "factory", "plans", "tensors", "weights"}:
        raise ArtifactError(
            f"{ARCHITECTURE} in {folder} must have exactly the keys format, limbeck, factory, plans, tensors and weights"
        )
    if not isinstance(value["plans"], list):
        raise ArtifactError(f"{ARCHITECTURE} in {folder}: plans must be a list")
    try:
        past = Lineage(Factory.from_json(value["factory"]), tuple(Plan.from_json(plan) for plan in value["plans"]))
        return past, Description.from_json(value["tensors"]), str(value["weights"])
    except ArtifactError as error:
        raise ArtifactError(f"{ARCHITECTURE} in {folder}: {error}") from error


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, bounded. Raises ArtifactError for anything else."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
            raise ArtifactError(f"{path.name} is damaged: its header claims {length} bytes")
        header = manifest.parse(file.read(length), path.name)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or "dtype" not in entry:
            raise ArtifactError(f"{path.name} is damaged: its header describes {name!r} wrongly")
    return header


def _text(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} must be plain finite JSON: {error}") from error


def _yaml(value: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise UsageError(f"the recipe must be plain values: {error}") from error


def _expand(files: Mapping[str, Path | str | bytes] | None) -> dict[str, Path | bytes]:
    """Every file to add by its name, folders file by file. Raises ArtifactError or UsageError for names and sources."""
    found: dict[str, Path | bytes] = {}
    for name, source in (files or {}).items():
        manifest.check_name(name, "extra_files")
        if isinstance(source, bytes):
            found[name] = source
        elif Path(source).is_dir():
            inner = sorted(path for path in Path(source).rglob("*") if path.is_file())
            found.update({f"{name}/{path.relative_to(source).as_posix()}": path for path in inner})
        elif Path(source).is_file():
            found[name] = Path(source)
        else:
            raise UsageError(f"extra_files: {name!r} is to be copied from {source}, which is not there")
    for name in found:
        if manifest.check_name(name, "extra_files") in OWN:
            raise UsageError(f"extra_files: {name!r} is written by Limbeck itself; choose another name")
    return found


def _copy(source: Path | bytes, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=to.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            if isinstance(source, bytes):
                out.write(source)
            else:
                with open(source, "rb") as file:
                    shutil.copyfileobj(file, out)
        os.chmod(name, 0o644)
        os.replace(name, to)
    finally:
        Path(name).unlink(missing_ok=True)


def _check_replaceable(folder: Path) -> None:
    """Raise UsageError unless nothing, an empty folder or a whole artifact without foreign files is there."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is a file or a link; an artifact is written as a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_artifact(folder):
        raise UsageError(
            f"{folder} exists and is not a Limbeck artifact, so it is not replaced. Choose another folder."
        )
    try:
        foreign = manifest.unlisted(folder, manifest.read(folder))
    except ArtifactError as error:
        raise UsageError(f"{folder} holds an artifact that cannot be read, so it is not replaced: {error}") from error
    if foreign:
        raise UsageError(
            f"{folder} holds files that are not part of the artifact ({', '.join(foreign[:5])}) and would be lost. "
            "Move them or choose another folder."
        )
