"""The whole path on scikit-learn's digits: recipe in; artifact, exports, report and page out; the same in Python."""

import copy
import json

import pytest
import torch

import limbeck as lb
from limbeck import artifact
from limbeck.errors import DataError, LimbeckError, TrainingError, UsageError
from limbeck.jobs import from_recipe
from limbeck.pipeline import execute, run_recipe
from limbeck.recipe import Recipe
from limbeck.signals import call

TRAIN = {"steps": 30, "batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1}
RECIPE = {
    "name": "tiny digits",
    "seed": 3,
    "task": {"class": "ImageClassification", "dataset": "digits"},
    "teacher": {"model": {"class": "resnet", "depth": 8, "channels": 1}, "train": TRAIN},
    "student": {"class": "resnet", "depth": 8, "channels": 1, "width": 8},
    "steps": [
        {
            "distill": {
                "objective": [
                    {"class": "SoftTargets", "temperature": 4},
                    {"class": "Hint", "student": "layer3", "teacher": "layer3", "weight": 0.1},
                ],
                "train": TRAIN,
            }
        },
        {"prune": {"keep": 0.5}},
        {"fold_batch_norm": None},
        {"quantize": {"bits": 8, "activations": "static"}},
    ],
    "budget": {"bytes": "1 MB"},
    "exports": ["onnx"],
    "measure": {"rounds": 3, "throughput_batch_size": 8, "threads": 1},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def done(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return run_recipe(Recipe.parse(RECIPE), out, progress=False)


def test_everything_is_written(done):
    for name in (
        "artifact/model.safetensors",
        "artifact/report.json",
        "artifact/recipe.yaml",
        "artifact/README.md",
        "artifact/exports/model.onnx",
        "report.html",
    ):
        assert (done.folder / name).stat().st_size > 0, name
    assert not (done.folder / "work").exists()
    assert artifact.read_report(done.folder / "artifact") == done.report


def test_the_stages_are_those_of_the_recipe(done):
    names = [stage["name"] for stage in done.report["stages"]]
    assert names == ["teacher", "distill", "prune", "fold_batch_norm", "quantize"]
    assert [t["step"] for t in done.report["training"]] == ["teacher", "distill"]
    assert done.report["stages"][-1]["form"].startswith("onnxruntime int8")
    assert all(stage["form"].startswith("onnxruntime") for stage in done.report["stages"])


def test_the_numbers_say_what_happened(done):
    stages = {stage["name"]: stage["measurements"] for stage in done.report["stages"]}
    assert stages["teacher"]["accuracy"]["value"] > 0.5
    assert stages["distill"]["parameters"]["value"] == sum(
        p.numel() for p in lb.models.resnet(8, channels=1, width=8).parameters()
    )
    assert stages["prune"]["parameters"]["value"] < 0.75 * stages["distill"]["parameters"]["value"]
    assert stages["quantize"]["bytes"]["value"] < stages["fold_batch_norm"]["bytes"]["value"]
    assert stages["quantize"]["bytes"]["value"] == (done.folder / "artifact/exports/model.onnx").stat().st_size
    for found in stages.values():
        assert (
            found["latency"]["runs"] >= 3
            and found["latency"]["low"] <= found["latency"]["value"] <= found["latency"]["high"]
        )
    assert done.report["budget"] == [
        {
            "limit": "bytes",
            "allowed": 1e6,
            "measured": stages["quantize"]["bytes"]["value"],
            "met": True,
            "stage": "quantize",
        }
    ]


def test_the_artifact_reloads_to_the_same_outputs(done, tmp_path):
    done.save(tmp_path / "copy")
    batch = lb.tasks.ImageClassification("digits").example(4)
    with torch.no_grad():
        assert torch.equal(call(lb.load(tmp_path / "copy"), batch), call(done.model, batch))


def test_the_same_command_does_nothing_twice(done, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("measured, exported or trained again")

    monkeypatch.setattr("limbeck.stages.quality_onnx", fail)
    monkeypatch.setattr("limbeck.stages.export_model", fail)
    monkeypatch.setattr("limbeck.pipeline.Trainer.run", fail)
    again = run_recipe(Recipe.parse(RECIPE), done.folder, progress=False)
    assert artifact.weights_digest(again.model) == artifact.weights_digest(done.model)
    assert {**again.report, "created": ""} == {**done.report, "created": ""}


def test_a_changed_recipe_keeps_the_steps_it_shares(done, monkeypatch):
    trained = []
    original = lb.Trainer.run
    monkeypatch.setattr(
        "limbeck.training.Trainer.run", lambda self, *a: trained.append(self.title) or original(self, *a)
    )
    changed = copy.deepcopy(RECIPE)
    changed["steps"] = [changed["steps"][0], {"train": {"train": {**TRAIN, "steps": 2}}}]
    result = run_recipe(Recipe.parse(changed), done.folder, progress=False)
    assert trained == ["train"]
    assert [stage["name"] for stage in result.report["stages"]] == ["teacher", "distill", "train"]


def test_python_says_the_same_as_yaml(store, done, tmp_path):
    """The same steps from objects, with the trained teacher: the same weights after distillation."""
    job = from_recipe(Recipe.parse({**RECIPE, "steps": RECIPE["steps"][:1]}))
    first = stages_of(job, tmp_path / "yaml")
    student = job.student.build((), "student")
    objective = lb.objectives.SoftTargets(temperature=4) + 0.1 * lb.objectives.Hint(student="layer3", teacher="layer3")
    task = lb.tasks.ImageClassification("digits")
    from limbeck.jobs import from_python

    python = from_python(
        first[0].load(), task, [lb.Distill(objective, lb.TrainingConfig(**TRAIN))], student=student, seed=3
    )
    second = stages_of(python, tmp_path / "python")
    assert artifact.weights_digest(first[-1].load()) == artifact.weights_digest(second[-1].load())


def test_a_step_that_fails_leaves_what_was_done(store, tmp_path, monkeypatch):
    recipe = copy.deepcopy(RECIPE)
    recipe["steps"].insert(1, {"train": {"name": "explode", "train": {**TRAIN, "learning_rate": 1e30}}})
    with pytest.raises(TrainingError):
        run_recipe(Recipe.parse(recipe), tmp_path / "run", progress=False)
    kept = sorted(path.name for path in (tmp_path / "run" / "steps").iterdir())
    assert len(kept) == 1 and kept[0].startswith("00-distill") and not (tmp_path / "run" / "artifact").exists()


def test_teacher_and_student_with_different_classes(store, tmp_path):
    recipe = {**RECIPE, "student": {**RECIPE["student"], "classes": 7}}
    with pytest.raises(UsageError, match=r"10 classes.*student 7"):
        run_recipe(Recipe.parse(recipe), tmp_path / "run", progress=False)


def test_a_teacher_of_other_classes_through_a_mapping(store, tmp_path):
    """It teaches the classes that correspond, and is not measured on a task that is not its own."""
    artifact.save(lb.models.resnet(8, channels=1, classes=12, width=4), tmp_path / "teacher")
    recipe = copy.deepcopy(RECIPE) | {"teacher": {"model": {"path": str(tmp_path / "teacher")}}}

    def run(objective, folder, **step):
        recipe["steps"] = [{"distill": {"objective": objective, "train": {**TRAIN, "steps": 2}, **step}}]
        return stages_of(from_recipe(Recipe.parse(recipe)), tmp_path / folder)

    with pytest.raises(UsageError, match=r"teacher puts out 12 .*MappedClasses"):
        run("SoftTargets", "refused")
    mapped = {"class": "MappedClasses", "objective": {"class": "SoftTargets"}, "classes": [*range(9), [9, 11]]}
    assert [stage.name for stage in run(mapped, "mapped")] == ["distill"]
    assert [stage.name for stage in run("SortedTargets", "sorted")] == ["distill"]
    with pytest.raises(UsageError, match="tokenizers"):
        run(mapped, "tokens", tokenizers={"student": "here"})


def test_a_teacher_with_another_tokenizer(store, tmp_path):
    from limbeck.datasets.tokenize import save_tokenizer, train_tokenizer
    from limbeck.jobs import from_python
    from limbeck.pipeline import Run
    from limbeck.teachers import RetokenizedTeacher

    for kind in ("characters", "bpe"):
        save_tokenizer(train_tokenizer(["some text to learn from"], kind, 300), tmp_path / kind)
    names = {"student": str(tmp_path / "characters"), "teacher": str(tmp_path / "bpe")}
    objective = lb.objectives.SortedTargets(aligned="aligned")
    step = lb.Distill(objective, lb.TrainingConfig(steps=1), tokenizers=names)
    teacher = lb.models.gpt(300, 8, depth=1, width=8, heads=2)
    student = lb.models.gpt(20, 8, depth=1, width=8, heads=2)
    task = lb.tasks.ImageClassification("digits")  # whatever it is: a teacher of other tokens is not run on it
    run = Run(from_python(teacher, task, [step], student=student), tmp_path / "run", False)
    assert not run._task_fits_teacher()
    made = run.signals(step, [run._teacher(run.job.teachers[0], 0)], 0, tmp_path / "work")
    assert isinstance(made, RetokenizedTeacher)


def stages_of(job, folder):
    from limbeck.pipeline import Run

    return Run(job, folder, False).stages()


def test_several_teachers_teach_as_an_ensemble(store, tmp_path):
    few = {**TRAIN, "steps": 3}
    member = {"model": RECIPE["teacher"]["model"], "train": few}
    recipe = copy.deepcopy(RECIPE) | {"teacher": [{**member, "seed": 0}, {**member, "seed": 1}]}
    recipe["steps"] = [{"distill": {"objective": "SoftTargets", "train": few}}]
    made = stages_of(from_recipe(Recipe.parse(recipe)), tmp_path / "run")
    assert [stage.name for stage in made] == ["teacher-1", "teacher-2", "distill"]
    assert artifact.weights_digest(made[0].load()) != artifact.weights_digest(made[1].load())
    alone = {**recipe, "teacher": recipe["teacher"][0]}
    other = stages_of(from_recipe(Recipe.parse(alone)), tmp_path / "run")
    assert artifact.weights_digest(made[-1].load()) != artifact.weights_digest(other[-1].load())


def test_the_student_can_teach_itself(store, tmp_path):
    recipe = copy.deepcopy(RECIPE) | {"teacher": None}
    recipe["steps"] = [
        {
            "distill": {
                "objective": ["CrossEntropy", "SoftTargets"],
                "teacher": "average",
                "train": {**TRAIN, "steps": 3},
            }
        }
    ]
    assert [stage.name for stage in stages_of(from_recipe(Recipe.parse(recipe)), tmp_path / "run")] == ["distill"]


def test_zeros_stay_zeros_while_training_goes_on(store, tmp_path):
    recipe = copy.deepcopy(RECIPE) | {"teacher": None}
    recipe["steps"] = [{"sparsify": {"pattern": "2:4", "ignore": ["fc"]}}, {"train": {"train": {**TRAIN, "steps": 3}}}]
    masked, trained = stages_of(from_recipe(Recipe.parse(recipe)), tmp_path / "run")
    before, after = (stage.load().layer2[0].conv1.weight.detach() for stage in (masked, trained))
    assert torch.equal(before == 0, after == 0) and (before == 0).float().mean() == 0.5
    assert not torch.equal(before, after)


def test_any_module_may_teach(store, tmp_path):
    """A teacher that Limbeck did not build needs no factory; only what is saved does."""
    from torch import nn

    from limbeck.jobs import from_python

    task = lb.tasks.ImageClassification("digits")
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    step = lb.Distill(lb.objectives.SoftTargets(), lb.TrainingConfig(steps=2, batch_size=16))
    made = stages_of(
        from_python(teacher, task, [step], student=lb.models.resnet(8, channels=1, width=4)), tmp_path / "a"
    )
    assert [stage.name for stage in made] == ["teacher", "distill"] and made[0].folder is None
    with pytest.raises(UsageError, match="factory"):
        stages_of(
            from_python(teacher, task, [step], student=nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), tmp_path / "b"
        )


def test_a_data_set_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = {**RECIPE, "task": {"class": "ImageClassification", "dataset": "no/such-set"}}
    with pytest.raises(DataError, match="no/such-set"):
        from_recipe(Recipe.parse(recipe))


def test_an_out_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LimbeckError, match="cannot write"):
        execute(from_recipe(Recipe.parse(RECIPE)), tmp_path / "file" / "run", progress=False)


def test_two_runs_in_one_folder_are_refused(store, tmp_path):
    from limbeck.files import locked

    with locked(tmp_path / "run" / ".lock", None), pytest.raises(LimbeckError, match="another run"):
        run_recipe(Recipe.parse(RECIPE), tmp_path / "run", progress=False)


def test_reports_are_plain_json(done):
    assert json.loads(json.dumps(done.to_json(), allow_nan=False))["weights"] == artifact.weights_digest(done.model)
