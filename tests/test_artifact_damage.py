"""Artifacts that are damaged, altered, newer or dangerous are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from artifact_models import HERE, REPORT, conv, edit, resign, rewrite_manifest
from torch import nn

from limbeck import artifact, manifest
from limbeck.artifact import load, save
from limbeck.errors import ArtifactError
from limbeck.weights import weights_digest


@pytest.fixture
def folder(tmp_path):
    return save(conv(), tmp_path / "a", report=REPORT)


def test_newer_versions_name_file_and_both_versions(folder):
    edit(folder, format=7, limbeck="9.9")
    with pytest.raises(ArtifactError, match=rf"architecture.json has format 7.*'9.9'.*{manifest.version()}.*format 1"):
        load(folder, trust=[HERE])
    rewrite_manifest(folder, format=7, limbeck="9.9")
    with pytest.raises(ArtifactError, match=r"manifest.json has format 7.*'9.9'.*format 1"):
        load(folder, trust=[HERE])
    with pytest.raises(ArtifactError, match=r"manifest.json has format 7"):
        artifact.info(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "architecture.json", "report.json", "README.md", "manifest.json"]
)
def test_a_missing_or_linked_or_changed_file_is_named(folder, name, tmp_path):
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing"):
        load(folder, trust=[HERE])
    (tmp_path / "elsewhere").write_bytes(data)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=rf"{name} .*symbolic link"):
        load(folder, trust=[HERE])
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ArtifactError, match=rf"{name} .*not a file"):
        load(folder, trust=[HERE])
    (folder / name).rmdir()
    (folder / name).write_bytes(data[:-3])
    with pytest.raises(ArtifactError, match=rf"{name} "):
        load(folder, trust=[HERE])
    (folder / name).write_bytes(data)
    load(folder, trust=[HERE])


def test_a_linked_folder_inside_is_refused(tmp_path):
    folder = save(conv(), tmp_path / "a", extra_files={"exports/x": b"1"})
    shutil.move(folder / "exports", tmp_path / "outside")
    (folder / "exports").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="symbolic link"):
        load(folder, trust=[HERE])
    with pytest.raises(ArtifactError, match="symbolic link"):
        artifact.add_files(folder, {"exports/y": b"1"})


def test_a_manifest_that_points_outside_is_refused(folder):
    entry = json.loads((folder / "manifest.json").read_text())["files"]
    for name in ("../../etc/passwd", "/etc/passwd", "exports/../../x"):
        rewrite_manifest(folder, files={**entry, name: {"bytes": 1, "sha256": "0" * 64}})
        with pytest.raises(ArtifactError, match="not a file inside the artifact"):
            load(folder, trust=[HERE])


def test_an_edited_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1,', '"format": 1, '))
    load(folder, trust=[HERE])  # spaces say nothing
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "limbeck": "0.0"}))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged or was changed"):
        load(folder, trust=[HERE])
    del content["files"]["report.json"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged or was changed"):
        load(folder, trust=[HERE])


def test_bombs_are_bounded(folder, monkeypatch):
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(folder, trust=[HERE])
    (folder / "manifest.json").write_text('{"format": ' + "9" * 100_000 + "}")
    with pytest.raises(ArtifactError, match=r"manifest.json"):
        load(folder, trust=[HERE])
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "MAX_JSON", 1000)
        (folder / "manifest.json").write_text(" " * 2000)
        with pytest.raises(ArtifactError, match="at most 1000"):
            load(folder, trust=[HERE])


def test_a_weights_file_with_a_huge_header_is_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    for length in (2**63, 10**8, 0):
        (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
        resign(folder)
        with pytest.raises(ArtifactError, match=r"model.safetensors is damaged: its header claims"):
            load(folder, trust=[HERE])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"factory": {"target": "os:system", "arguments": {}}}, "trust="),
        ({"factory": {"target": "limbeck.models:os", "arguments": {}}}, "no public"),
        ({"factory": {"target": f"{HERE}:os", "arguments": {}}}, "cannot be built"),
        ({"factory": {"target": f"{HERE}:make_conv", "arguments": {"width": 10**15}}}, "cannot be built"),
        ({"factory": {"target": f"{HERE}:make_conv", "arguments": {"width": "x"}}}, "cannot be built"),
        ({"factory": {"target": f"{HERE}:make_conv", "arguments": {"depth": 1}}}, "cannot be built"),
        ({"factory": 3}, "factory"),
        ({"plans": {}}, "plans must be a list"),
        ({"plans": [1]}, "plan must have"),
        ({"plans": [{"kind": "prune_layers", "version": 99, "decisions": {}}]}, "version 99"),
        ({"tensors": {}}, "tensors"),
        ({"weights": "0"}, "does not hold the weights"),
        ({"more": 1}, "exactly the keys"),
    ],
)
def test_an_edited_architecture_is_refused(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(ArtifactError, match=reason):
        load(folder, trust=[HERE])


@pytest.mark.parametrize(
    "changes",
    [
        {"shared": {"head.bias": "head.weight"}},
        {"shared": {"nothing": "head.weight"}},
        {"shared": {"a": "nothing"}},
        {"strides": {"head.weight": [1]}},
        {"strides": {"head.weight": [0, 0]}},
        {"strides": {"head.weight": [10**12, 1]}},
        {"strides": {"head.weight": [-8, 1]}},
        {"dtypes": {"head.weight": "float64"}},
        {"dtypes": {"head.weight": "load"}},
        {"constants": ["nothing"]},
        {"constants": ["head.weight"]},
        {"constants": 3},
    ],
)
def test_an_edited_description_is_refused(folder, changes):
    tensors = json.loads((folder / "architecture.json").read_text())["tensors"]
    edit(folder, tensors={**tensors, **changes})
    with pytest.raises(ArtifactError, match=r"architecture.json"):
        load(folder, trust=[HERE])


def test_weights_digest_sees_names_types_shapes_and_bytes():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}

    def digest(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    known = digest(**base)
    assert digest(b=base["b"], a=base["a"]) == known  # the order of registration does not matter
    assert digest(**{**base, "a": base["a"].t().contiguous().t()}) == known  # nor does the memory order
    others = [
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].double()},
        {**base, "b": torch.tensor([0.0, -0.0])},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    assert len({known, *(digest(**other) for other in others)}) == len(others) + 1
