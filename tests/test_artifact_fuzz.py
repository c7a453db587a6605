"""Random damage to every file of an artifact: refused with ArtifactError, or the same outputs. Nothing else."""

from __future__ import annotations

import random
import shutil

import artifact_models as models
import pytest
import torch

from limbeck import artifact
from limbeck.errors import ArtifactError


def damage(data: bytes, draw: random.Random) -> bytes:
    """One to three byte changes, a cut, an insertion, a repetition, or nothing left."""
    kind = draw.choice(("flip", "flip", "flip", "bit", "cut", "insert", "repeat", "empty"))
    changed = bytearray(data)
    at = draw.randrange(len(data))
    if kind == "flip":
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    elif kind == "bit":
        changed[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = draw.randbytes(draw.randint(1, 9))
    elif kind == "repeat":
        changed += changed[at:]
    else:
        changed.clear()
    return bytes(changed)


def fuzz(tmp_path, cases: int, resigned: bool) -> tuple[int, int]:
    model = models.tied(4)
    pristine = artifact.save(
        model, tmp_path / "pristine", report=models.REPORT, recipe={"seed": 1}, extra_files={"exports/x": b"12345"}
    )
    names = sorted(path.relative_to(pristine).as_posix() for path in pristine.rglob("*") if path.is_file())
    if resigned:
        names = ["architecture.json", "model.safetensors"]
    folder = tmp_path / "damaged"
    shutil.copytree(pristine, folder)
    with torch.no_grad():
        expected = model(models.TOKENS)
    refused = 0
    draw = random.Random(20)
    for case in range(cases):
        name = names[case % len(names)]
        data = (pristine / name).read_bytes()
        (folder / name).write_bytes(damage(data, draw))
        if resigned:
            models.resign(folder)
        try:
            loaded = artifact.load(folder, trust=[models.HERE])
        except ArtifactError as error:
            refused += 1
            assert str(error)
        else:
            with torch.no_grad():
                assert torch.equal(loaded(models.TOKENS), expected), f"case {case}: {name} changed the model silently"
        (folder / name).write_bytes(data)
        shutil.copy(pristine / "manifest.json", folder / "manifest.json")
    return refused, cases


def test_random_damage_is_refused_or_harmless(tmp_path):
    refused, cases = fuzz(tmp_path, 300, resigned=False)
    assert refused >= 0.95 * cases


def test_random_damage_with_a_matching_manifest_is_refused_or_harmless(tmp_path):
    refused, cases = fuzz(tmp_path, 100, resigned=True)
    assert refused >= 0.8 * cases


@pytest.mark.slow
@pytest.mark.parametrize("resigned", [False, True])
def test_random_damage_many_times(tmp_path, resigned):
    fuzz(tmp_path, 2000, resigned)
