"""An artifact as a folder: what stands in it, how it is replaced, and what a failure leaves behind."""

from __future__ import annotations

import os
import stat

import pytest
from artifact_models import HERE, REPORT, TOKENS, conv, same, tied

from limbeck import artifact, folders, manifest
from limbeck.artifact import load, save
from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.weights import weights_digest


def test_report_recipe_card_and_files(tmp_path):
    folder = tmp_path / "a"
    save(conv(), folder, report=REPORT, recipe={"seed": 3, "steps": []}, extra_files={"exports/model.onnx": b"onnx"})
    assert artifact.read_report(folder) == REPORT
    card = (folder / "README.md").read_text()
    assert "| student | torch float32 | 0.9765 | 1.2 ms [1, 1.5] |" in card and "exports/model.onnx" in card
    assert (folder / "recipe.yaml").read_text() == "seed: 3\nsteps: []\n"
    found = artifact.info(folder)
    assert found["files"]["exports/model.onnx"] == 4 and found["report"] and found["recipe"]
    assert found["elements"] == sum(t.numel() for t in conv().state_dict().values())
    assert found["bytes"] == sum(
        p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"
    )
    artifact.add_files(folder, {"exports/second.bin": b"12", "exports/model.onnx": b"newer"})
    load(folder, trust=[HERE])
    assert artifact.info(folder)["files"]["exports/model.onnx"] == 5
    with pytest.raises(ArtifactError, match=r"report.json is not part"):
        artifact.read_report(save(conv(), tmp_path / "b"))


def test_folders_are_added_file_by_file_and_artifacts_are_copied_whole(tmp_path):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a.txt").write_text("a")
    (tmp_path / "from" / "deep" / "b.txt").write_text("b")
    folder = save(conv(), tmp_path / "a", extra_files={"exports/all": tmp_path / "from"})
    assert {"exports/all/a.txt", "exports/all/deep/b.txt"} <= set(artifact.info(folder)["files"])
    artifact.copy(folder, tmp_path / "b")
    for path in folder.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / "b" / path.relative_to(folder)).read_bytes()
    load(tmp_path / "b", trust=[HERE])
    with pytest.raises(UsageError, match="not a Limbeck artifact"):
        artifact.copy(folder, tmp_path / "from")
    (folder / "README.md").write_text("other")
    with pytest.raises(ArtifactError, match=r"README.md .*was changed|README.md .* truncated"):
        artifact.copy(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "exports//x", "", "a\\b", "c:x", "exports/./x"])
def test_extra_files_stay_inside(tmp_path, name):
    with pytest.raises(ArtifactError, match="not a file inside the artifact"):
        save(conv(), tmp_path / "a", extra_files={name: b""})
    assert not list(tmp_path.iterdir())


def test_own_names_and_missing_sources_are_refused(tmp_path):
    with pytest.raises(UsageError, match="written by Limbeck itself"):
        save(conv(), tmp_path / "a", extra_files={"model.safetensors": b""})
    with pytest.raises(UsageError, match="which is not there"):
        save(conv(), tmp_path / "a", extra_files={"x": tmp_path / "absent"})
    with pytest.raises(UsageError, match="plain finite JSON"):
        save(conv(), tmp_path / "a", report={"x": float("nan")})


def test_an_artifact_is_replaced_whole_and_nothing_else_is(tmp_path):
    folder = tmp_path / "a"
    save(conv(), folder, extra_files={"exports/old": b"1"})
    save(tied(), folder)
    assert not (folder / "exports").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes.txt"):
        save(conv(), folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not a Limbeck artifact"):
        save(conv(), tmp_path / "b")
    assert (folder / "notes.txt").exists() and (tmp_path / "b" / "thesis.tex").exists()
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UsageError, match="file or a link"):
        save(conv(), tmp_path / "c")
    (tmp_path / "empty").mkdir()
    save(conv(), tmp_path / "empty")


def test_an_artifact_is_replaced_where_folders_cannot_be_swapped(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    save(conv(), tmp_path / "a")
    same(tied(), tmp_path / "a", TOKENS)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_while_writing_leaves_the_old_artifact(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    save(conv(), folder)
    before = weights_digest(load(folder, trust=[HERE]))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for module, name in ((artifact.safetensors.torch, "save_file"), (manifest, "write"), (folders, "flush")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(LimbeckError, match="No space left on device"):
                save(tied(), folder)
    renames = iter([os.rename, full, os.rename])
    with monkeypatch.context() as patch:
        patch.setattr(folders, "exchange", lambda *_: False)
        patch.setattr(os, "rename", lambda *a: next(renames)(*a))
        with pytest.raises(LimbeckError, match="No space left"):
            save(tied(), folder)
    assert weights_digest(load(folder, trust=[HERE])) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_read_only_place_is_a_clear_error(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(LimbeckError, match="Permission denied"):
            save(conv(), tmp_path / "a")
    finally:
        tmp_path.chmod(0o755)


def test_a_place_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="cannot write"):
        save(conv(), tmp_path / "file" / "a")
