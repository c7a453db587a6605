"""Artifacts: saved and loaded models give the same outputs bit for bit; anything else is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pytest
import torch
from torch import nn

from limbeck import artifact, folders, manifest
from limbeck.artifact import load, save
from limbeck.build import Factory, lineage, with_lineage
from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.plan import KINDS, Plan
from limbeck.weights import weights_digest

HERE = "test_artifact"
REPORT = {
    "format": 1,
    "name": "small model",
    "seed": 3,
    "task": {"name": "image_classification", "dataset": "digits", "metric": "accuracy", "better": "higher"},
    "environment": {"torch": "2.13", "threads": 2},
    "stages": [
        {
            "name": "student",
            "form": "torch float32",
            "measurements": {
                "accuracy": {"name": "accuracy", "value": 0.9765, "unit": "", "runs": 1, "low": 0.9765, "high": 0.9765},
                "latency": {
                    "name": "latency",
                    "value": 0.0012,
                    "unit": "seconds",
                    "runs": 9,
                    "low": 0.001,
                    "high": 0.0015,
                },
            },
        }
    ],
}


class Tied(nn.Module):
    """A recurrent language model with tied embeddings, an own constant and a random one that no state dict holds."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.cell = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("angles", torch.arange(width) / width, persistent=False)
        self.register_buffer("noise", torch.randn(width), persistent=False)
        self.scale = torch.tensor([1.5])  # a plain attribute: only a real build makes it

    def forward(self, input_ids):
        return self.head(self.cell(self.embedding(input_ids) * self.angles + self.noise)[0]) * self.scale


class Conv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, groups=width),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).mean((2, 3)))


def make_tied(width: int) -> nn.Module:
    return Tied(width)


def make_conv(width: int) -> nn.Module:
    return Conv(width)


class Noise(nn.Module):
    """Random numbers before anything else, in no state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.rand(4), persistent=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.noise * self.scale


def make_noise() -> nn.Module:
    return Noise()


def make_bert(hidden: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_size=hidden,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=hidden,
            vocab_size=30,
            max_position_embeddings=16,
        )
    )


def apply_widen(model: nn.Module, plan: Plan) -> nn.Module:
    """A plan of the test: another number of outputs."""
    model.head = nn.Linear(model.head.in_features, plan.decisions["classes"])
    return model


def tied(width: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return with_lineage(Tied(width), Factory(f"{HERE}:make_tied", {"width": width})).eval()


def conv(width: int = 8) -> nn.Module:
    torch.manual_seed(2)
    model = with_lineage(Conv(width), Factory(f"{HERE}:make_conv", {"width": width}))
    model(torch.randn(16, 1, 8, 8))  # running statistics that are not the initial ones
    return model.eval()


TOKENS = torch.arange(10).reshape(2, 5)
PIXELS = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def same(model: nn.Module, folder, inputs) -> nn.Module:
    """Save, load, compare bit for bit; returns the loaded model."""
    save(model, folder)
    loaded = load(folder, trust=[HERE])
    with torch.no_grad():
        assert torch.equal(model(inputs), loaded(inputs))
    assert not loaded.training and weights_digest(loaded) == weights_digest(model)
    assert lineage(loaded) == lineage(model)
    return loaded


def test_tied_weights_stay_tied_and_constants_come_back(tmp_path):
    loaded = same(tied(), tmp_path / "a", TOKENS)
    assert loaded.head.weight is loaded.embedding.weight
    architecture = json.loads((tmp_path / "a" / "architecture.json").read_text())
    assert architecture["tensors"]["shared"] == {"head.weight": "embedding.weight"}
    assert architecture["tensors"]["constants"] == ["noise"]  # `angles` is made again by the factory


def test_a_changed_constant_is_refused_even_when_the_manifest_fits(tmp_path):
    folder = save(tied(), tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = artifact.safetensors.torch.load_file(path)
    artifact.safetensors.torch.save_file({**tensors, "noise": tensors["noise"] + 1}, path)
    resign(folder)
    with pytest.raises(ArtifactError, match="does not hold the weights"):
        load(folder, trust=[HERE])


@pytest.mark.parametrize("seed", [0, 7])
def test_numbers_that_a_constructor_draws_are_kept_whatever_the_seed(tmp_path, seed):
    torch.manual_seed(seed)
    model = with_lineage(Noise(), Factory(f"{HERE}:make_noise")).eval()
    torch.manual_seed(seed)
    save(model, tmp_path / "a")
    torch.manual_seed(seed + 1)
    assert torch.equal(load(tmp_path / "a", trust=[HERE])(torch.ones(4)), model(torch.ones(4)))


def test_untied_copy_of_a_tied_architecture_is_not_tied_again(tmp_path):
    model = tied()
    model.head.weight = nn.Parameter(model.embedding.weight.detach() + 1)
    loaded = same(model, tmp_path / "a", TOKENS)
    assert loaded.head.weight is not loaded.embedding.weight


def test_convolutions_in_every_memory_order(tmp_path):
    same(conv(), tmp_path / "a", PIXELS)
    model = conv().to(memory_format=torch.channels_last)
    loaded = same(model, tmp_path / "b", PIXELS)
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in model.parameters()]


def test_a_model_cast_after_it_was_built(tmp_path):
    loaded = same(conv().bfloat16(), tmp_path / "a", PIXELS.bfloat16())
    assert loaded.head.weight.dtype == torch.bfloat16
    same(tied().double(), tmp_path / "b", TOKENS)


def test_views_of_one_storage_are_saved_apart(tmp_path):
    model = conv()
    both = torch.randn(8, 8)
    model.head.weight = nn.Parameter(both[:4])
    model.register_parameter("unused", None)
    model.body[0].bias = nn.Parameter(both[2])
    same(model, tmp_path / "a", PIXELS)


def test_transformers_model_by_an_own_factory(tmp_path):
    torch.manual_seed(0)
    model = make_bert(8).eval()
    save(model, tmp_path / "a", factory=Factory(f"{HERE}:make_bert", {"hidden": 8}))
    loaded = load(tmp_path / "a", trust=[HERE])
    assert torch.equal(model(TOKENS).last_hidden_state, loaded(TOKENS).last_hidden_state)


def test_plans_are_replayed_before_the_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "widen", (1, f"{HERE}:apply_widen"))
    model = conv()
    plan = Plan("widen", {"classes": 9})
    apply_widen(model, plan)
    same(with_lineage(model, lineage(model).factory, [plan]), tmp_path / "a", PIXELS)
    monkeypatch.delitem(KINDS, "widen")
    with pytest.raises(ArtifactError, match="unknown kind of plan 'widen'"):
        load(tmp_path / "a", trust=[HERE])


def test_a_lineage_that_does_not_describe_the_model_is_refused_at_saving(tmp_path):
    model = conv()
    model.head = nn.Linear(8, 5)
    with pytest.raises(ArtifactError, match=r"'head.weight' is \(5, 8\).*has \(4, 8\)"):
        save(model, tmp_path / "a")
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"unexpected extra.bias, extra.weight"):
        save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_model_without_lineage_is_told_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"factory=Factory\('mypkg.models:make'.*trust=\['mypkg'\]"):
        save(nn.Linear(2, 2), tmp_path / "a")


def test_untrusted_code_is_not_imported(tmp_path):
    save(conv(), tmp_path / "a")
    with pytest.raises(ArtifactError, match="trust="):
        load(tmp_path / "a")
    assert artifact.info(tmp_path / "a")["trust"] == HERE
    load(tmp_path / "a", trust=HERE)


def test_loading_leaves_the_random_state_alone(tmp_path):
    save(tied(), tmp_path / "a")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "a", trust=[HERE])
    assert torch.equal(torch.rand(3), expected)
    model = tied()
    torch.manual_seed(5)
    save(model, tmp_path / "b")
    assert torch.equal(torch.rand(3), expected)


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


def resign(folder) -> None:
    """Make the manifest fit again, as someone who edits an artifact on purpose would."""
    listing = manifest.read(folder)
    manifest.write(folder, listing["files"])


def edit(folder, **changes) -> None:
    path = folder / "architecture.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    resign(folder)


def rewrite_manifest(folder, **changes) -> None:
    content = {k: v for k, v in json.loads((folder / "manifest.json").read_text()).items() if k != "digest"}
    content.update(changes)
    (folder / "manifest.json").write_text(json.dumps({**content, "digest": manifest.digest(content)}))


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
