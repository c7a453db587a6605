"""compare: what is trained, what is paired, what is shown, and what is never read."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import yaml

import limbeck as lb
from limbeck.choices import named_objectives, split_outside
from limbeck.comparison import compare
from limbeck.errors import TrainingError, UsageError
from limbeck.experiments.statistics import paired_difference
from limbeck.objectives import CrossEntropy, Hint, SoftTargets, Sum
from limbeck.pipeline import Run, from_recipe
from limbeck.recipe import Recipe
from limbeck.report.comparison import comparison_page, comparison_table, scales_table

SHORT = {"batch_size": 64, "optimizer": "sgd", "learning_rate": 0.05}
RECIPE = Recipe.parse(
    {
        "name": "tiny",
        "seed": 3,
        "task": {"class": "ImageClassification", "dataset": "digits"},
        "teacher": {
            "model": {"class": "resnet", "depth": 8, "channels": 1, "width": 8},
            "train": {"steps": 4, **SHORT},
        },
        "student": {"class": "resnet", "depth": 8, "channels": 1, "width": 4},
        "steps": [
            {
                "distill": {
                    "objective": [
                        {"class": "CrossEntropy", "weight": 0.1},
                        {"class": "SoftTargets", "temperature": 4, "weight": 0.9},
                    ],
                    "train": {"steps": 3, **SHORT},
                }
            },
            {"quantize": {"bits": 8}},
        ],
        "measure": {"limit": 100},
    }
)
THREE = "recipe, CrossEntropy, hint=CrossEntropy + 0.5*Hint{student: layer2}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    patch = pytest.MonkeyPatch()
    patch.setenv("LIMBECK_STORE", str(folder / "store"))
    batches, read = lb.tasks.ImageClassification.batches, set()

    def watched(task, split, *args, **settings):
        read.add(split)
        return batches(task, split, *args, **settings)

    patch.setattr(lb.tasks.ImageClassification, "batches", watched)
    yield folder, compare(RECIPE, THREE, folder / "out", seeds=2, steps=2, rounds=2, progress=False), read
    patch.undo()


def test_the_test_split_is_never_read(made):
    assert made[2] == {"train", "validation"}


def test_every_objective_has_its_numbers(made):
    folder, found, _ = made
    assert [row["name"] for row in found["objectives"]] == ["recipe", "CrossEntropy", "hint"]
    assert found["seeds"] == [3, 4] and found["split"] == "validation" and found["against"] == "recipe"
    assert json.loads((folder / "out" / "comparison.json").read_text()) == found
    for row in found["objectives"]:
        assert len(row["metrics"]["accuracy"]["values"]) == 2 and "calibration_error" in row["metrics"]
        assert row["costs"]["step_time"]["runs"] == 2 and row["costs"]["step_memory"]["value"] > 1000
    own, alone, hint = (row["scales"] for row in found["objectives"])
    assert [scale["weight"] for scale in own] == [0.1, 0.9] and [scale["name"] for scale in alone] == ["CrossEntropy"]
    assert sum(scale["share"] for scale in hint) == pytest.approx(1.0)
    assert not (folder / "out" / "work").exists()


def test_differences_are_paired_by_seed(made):
    _, found, _ = made
    rows = {row["name"]: row["metrics"] for row in found["objectives"]}
    assert len(found["comparisons"]) == 4
    for row in found["comparisons"]:
        assert row["better"] == ("higher" if row["metric"] == "accuracy" else "lower")
        sides = [rows[name][row["metric"]]["values"] for name in (row["objective"], "recipe")]
        wanted = paired_difference(*sides, row["better"])
        assert row["differences"] == list(wanted.differences) and row["low"] == wanted.low


def test_the_recipes_own_student_is_the_one_of_compress_and_the_teacher_is_shared(made, tmp_path):
    folder, _, _ = made
    names = {path.name for path in (folder / "out" / "steps").iterdir()}
    assert len(names) == 6  # three objectives, two seeds, and no quantized model
    job = from_recipe(RECIPE)
    stages = Run(job, tmp_path, False)
    stages.job = job.__class__(**{**job.__dict__, "steps": job.steps[:1]})
    assert stages.stages()[-1].folder.name in names
    assert len(list((folder / "store" / "models").glob("00-teacher-*"))) == 1


def test_a_second_call_trains_and_measures_nothing(made, monkeypatch):
    folder, found, _ = made

    def refused(*_, **__):
        raise AssertionError("something was done again")

    monkeypatch.setattr("limbeck.pipeline.Trainer.run", refused)
    monkeypatch.setattr("limbeck.comparison.quality_torch", refused)
    monkeypatch.setattr("limbeck.comparison.step_costs", refused)
    again = compare(RECIPE, THREE, folder / "out", seeds=2, steps=2, rounds=2, progress=False)
    assert again["objectives"] == found["objectives"] and again["comparisons"] == found["comparisons"]


def test_it_is_shown(made):
    from rich.console import Console

    _, found, _ = made
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(comparison_table(found))
    console.print(scales_table(found))
    words = console.export_text()
    assert "hint" in words and "Hint(layer2)" in words and "calibration" in words.lower() and "[" in words
    page = comparison_page(found)
    for row in found["comparisons"]:
        factor, decimals = (100, 2) if row["metric"] in ("accuracy", "calibration_error") else (1, 4)
        assert f"{abs(factor * row['mean']):.{decimals}f} [" in page
    assert page.count("<svg") == 2 and "tiny: objectives compared" in page and "Hint(layer2)" in page


def test_one_seed_has_no_differences_and_failures_name_the_objective(made, tmp_path):
    lr = {"recipe": "recipe", "hint": Hint("layer2")}
    found = compare(RECIPE, lr, tmp_path, seeds=1, steps=1, rounds=1, progress=False, against="hint")
    assert found["comparisons"] == [] and found["against"] == "hint"
    comparison_page(found), comparison_table(found)
    with pytest.raises(TrainingError, match=r"objective 'wild', seed 3.*inf"):
        compare(RECIPE, "recipe,wild=1e38*CrossEntropy", tmp_path, seeds=1, steps=1, rounds=1, progress=False)


def test_two_at_a_time_gives_the_same_students(made, tmp_path):
    folder, found, _ = made
    shutil.copytree(folder / "store", tmp_path / "store")
    own = "recipe,CrossEntropy"
    again = compare(RECIPE, own, tmp_path / "out", seeds=2, steps=2, rounds=2, jobs=2, progress=False)
    for mine, other in zip(again["objectives"], found["objectives"]):
        for metric, value in mine["metrics"].items():
            assert value["values"] == pytest.approx(other["metrics"][metric]["values"], abs=1e-6)
    with pytest.raises(UsageError, match="jobs=0"):
        compare(RECIPE, own, tmp_path / "other", jobs=0, progress=False)


def test_names_of_objectives(tmp_path):
    own = CrossEntropy()
    (tmp_path / "soft.yaml").write_text(yaml.safe_dump([{"class": "SoftTargets", "temperature": 3, "weight": 0.5}]))
    text = (
        f'recipe, SoftTargets{{"temperature":2,"positions":"all"}}, {tmp_path}/soft.yaml, b=recipe+2*Hint{{student: a}}'
    )
    found = named_objectives(text, own)
    assert list(found) == ["recipe", 'SoftTargets{"temperature":2,"positions":"all"}', "soft", "b"]
    made = list(found.values())
    assert made[0] is own and made[1] == SoftTargets(temperature=2, positions="all")
    assert made[2] == 0.5 * SoftTargets(temperature=3) and made[3] == own + 2 * Hint("a")
    assert named_objectives({"x": "1e-3*CrossEntropy{weight: 2}"}, own)["x"] == Sum(((CrossEntropy(), 2e-3),))
    assert list(named_objectives([SoftTargets(), {"class": "CrossEntropy"}], own)) == ["SoftTargets", "CrossEntropy"]
    assert split_outside("a{b,c},'d,e'", ",") == ["a{b,c}", "'d,e'"]


def test_a_file_may_hold_several_objectives(tmp_path):
    file = tmp_path / "several.yaml"
    file.write_text("labels: CrossEntropy\nsoft:\n  - {class: SoftTargets, temperature: 3, weight: 0.5}\n")
    found = named_objectives(str(file), CrossEntropy())
    assert found == {"labels": CrossEntropy(), "soft": 0.5 * SoftTargets(temperature=3)}
    file.write_text("class: SoftTargets\ntemperature: 3\n")
    assert named_objectives(str(file), CrossEntropy()) == {"several": SoftTargets(temperature=3)}
    file.write_text("a: SoftTarget\n")
    with pytest.raises(UsageError, match="SoftTargets"):
        named_objectives(str(file), CrossEntropy())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe", "1 objective given"),
        ("recipe,SoftTarget", "SoftTargets"),
        ("recipe,SoftTargets{temprature: 2}", "temperature"),
        ("recipe,SoftTargets{temperature: 2", "do not close"),
        ("recipe,recipe", "two are called 'recipe'"),
        ("recipe,", "between two commas"),
        ("recipe,none.yaml", "none.yaml"),
        ("recipe,Soft Targets", "cannot be read"),
        ("recipe,SoftTargets{temperature: [}", "do not close|not JSON or YAML"),
    ],
)
def test_mistakes_are_named_before_anything_runs(text, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        compare(RECIPE, text, tmp_path, progress=False)
    assert not (tmp_path / "steps").exists()


def test_other_refusals(tmp_path):
    with pytest.raises(UsageError, match="no objective is called"):
        compare(RECIPE, "recipe,CrossEntropy", tmp_path, against="CrossEntrpy", progress=False)
    with pytest.raises(UsageError, match="no distill step"):
        steps = [{"train": {"train": {"steps": 1}}}]
        compare(RECIPE.model_copy(update={"steps": steps}), "recipe,CrossEntropy", tmp_path, progress=False)
    with pytest.raises(UsageError, match="seeds=0"):
        compare(RECIPE, "recipe,CrossEntropy", tmp_path, seeds=0, progress=False)
