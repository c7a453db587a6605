"""The one way of loading data: Hugging Face `datasets`, from a folder in hub layout or from the hub.

A name is looked for as a folder of that path, then as `LIMBECK_DATA/<name>` (default ~/.cache/limbeck/data), then on the
hub; with HF_HUB_OFFLINE or HF_DATASETS_OFFLINE set, only among what the hub's library downloaded before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import DataError, did_you_mean

SPLITS = ("train", "validation", "test")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def data_folder() -> Path:
    """Where data sets are kept: the environment variable LIMBECK_DATA, else ~/.cache/limbeck/data."""
    return Path(os.environ.get("LIMBECK_DATA") or "~/.cache/limbeck/data").expanduser()


def find_folder(name: str) -> Path | None:
    """The folder a name stands for: itself, or the one under LIMBECK_DATA; None where neither exists."""
    for folder in (Path(name).expanduser(), data_folder() / name):
        if folder.is_dir():
            return folder
    return None


def load(name: str, config: str | None = None) -> dict[str, Any]:
    """Every split of a data set as a `datasets.Dataset`, by the split's name.

    Raises DataError when it is not found (saying where it was looked for), cannot be read, or needs a config.
    """
    import datasets

    folder = find_folder(name)
    if folder is None and not any(os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE") for v in OFFLINE):
        _ask_hub(name)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if folder is not None and (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder else name, config)
    except Exception as error:  # the library raises many kinds: its own, of pyarrow, of the network, of the file system
        reason = " ".join(str(error).split())
        if "Config name is missing" in reason or "BuilderConfig" in reason:
            raise DataError(f"data set {name!r}, config {config!r}: {reason}. Set config to one of them.") from error
        if "corresponds to no data" in reason:
            split = reason.partition('"')[2].partition('"')[0]
            raise DataError(f"split {split!r} of data set {name!r} is empty") from error
        if folder is None:
            raise _not_found(name, reason[:200]) from error
        raise DataError(f"data set {name!r} in {folder} cannot be read: {reason}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return dict(loaded)


def _ask_hub(name: str) -> None:
    """Raise DataError at once where the hub has no such data set or cannot be reached; loading would retry for long."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except Exception as error:  # of the hub's library or of the network below it
        if "RepositoryNotFound" in type(error).__name__ or "HFValidation" in type(error).__name__:
            raise _not_found(name, "it has no data set of this name") from error
        raise _not_found(name, f"not reached ({error}); what it gave before loads with HF_HUB_OFFLINE=1") from error


def _not_found(name: str, hub: str) -> DataError:
    root = data_folder()
    known = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    hint = f" {did_you_mean(name, known)}" if known else ""
    return DataError(
        f"data set {name!r} was not found. Looked for the folder {name!r}; for {root / name} (LIMBECK_DATA"
        f"{'' if os.environ.get('LIMBECK_DATA') else ' is not set; this is its default'}); on the hub: {hub}.{hint} "
        "Give the path of a folder in hub layout (parquet, csv or json files, one per split), put it under "
        "LIMBECK_DATA, or go online and use its hub name."
    )


def load_splits(
    name: str | Mapping[str, Any], config: str | None = None, splits: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The splits as a task needs them: train and test, and validation where the data set has one.

    name: as in `load`, or what it returns: a `datasets.Dataset` per split.

    `splits` renames, e.g. {"test": "validation"} where the labels of the test split are not public: that split then
    serves as test, and validation is missing unless it is named too. Raises DataError for a missing or empty split.
    """
    unknown = set(splits or ()) - set(SPLITS)
    if unknown:
        raise DataError(f"splits may name {', '.join(SPLITS)}, not {sorted(unknown)}")
    found = load(name, config) if isinstance(name, str) else dict(name)
    name = name if isinstance(name, str) else "given"
    wanted = dict(splits or {})
    for split in SPLITS:
        if split not in wanted and split in found and split not in wanted.values():
            wanted[split] = split
    made = {}
    for split in SPLITS:
        source = wanted.get(split)
        if source is None and split == "validation":
            continue
        if source is None or source not in found:
            raise DataError(
                f"data set {name!r} has no split {source or split!r}; it has {', '.join(map(repr, found)) or 'none'}. "
                f"Say which one to use: splits={{'{split}': ...}}"
            )
        if not len(found[source]):
            raise DataError(f"split {source!r} of data set {name!r} is empty")
        made[split] = found[source]
    return made


def column(dataset: Any, name: str, field: str, given: str | None, usual: tuple[str, ...], kind: str) -> str:
    """The column that holds the `field` of a task: the one given, the usual name, or the only one of that feature kind.

    Raises DataError when there is none or it is not clear which.
    """
    columns = list(dataset.column_names)
    if given is not None:
        if given not in columns:
            raise DataError(f"data set {name!r} has no column {given!r} ({field}). {did_you_mean(given, columns)}")
        return given
    of_kind = [c for c in columns if type(dataset.features[c]).__name__ == kind]
    candidates = [c for c in usual if c in columns and (not of_kind or c in of_kind)] or of_kind
    if len(candidates) != 1 and not (candidates and candidates[0] in usual):
        raise DataError(
            f"data set {name!r}: which column is the {field} is not clear; it has {', '.join(map(repr, columns))}. "
            f"Set {field}='...'"
        )
    return candidates[0]
