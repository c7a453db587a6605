"""Recipes: reading, mistakes, the published schema."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from limbeck.errors import UsageError
from limbeck.jobs import from_recipe
from limbeck.recipe import Recipe, schema

RECIPES = sorted(
    path
    for path in (Path(__file__).parent.parent / "recipes").rglob("*.yaml")
    if not path.stem.startswith("objectives")
)
TEMPLATE = Path(__file__).parent.parent / "limbeck" / "recipe_template.yaml"
SMALL = {
    "name": "small",
    "task": {"class": "ImageClassification", "dataset": "digits"},
    "teacher": {"model": {"class": "resnet", "depth": 8, "channels": 1}, "train": {"epochs": 1}},
    "student": {"class": "resnet", "depth": 8, "channels": 1, "width": 8},
    "steps": [{"distill": {"objective": "SoftTargets", "train": {"epochs": 1}}}],
}


def changed(**fields):
    return {**SMALL, **fields}


def test_round_trip_through_yaml(tmp_path):
    recipe = Recipe.parse(SMALL)
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (changed(techer={}), ["techer", "teacher"]),
        (changed(steps=[]), ["steps"]),
        ({k: v for k, v in SMALL.items() if k != "task"}, ["task", "missing"]),
        (changed(seed=-1), ["seed", "-1"]),
        (changed(exports=["onx"]), ["exports", "onx"]),
        (changed(exports=[{"form": "gguf", "requantise": "q8_0"}]), ["exports.0.requantise", "requantize"]),
        (changed(exports=["onnx", {"form": "gguf", "requantize": "q8"}]), ["exports.1.requantize", "q8_0"]),
        (changed(measure={"thread": 2}), ["thread", "threads"]),
        (changed(name="../../etc"), ["name"]),
        (changed(teacher={"modle": "resnet"}), ["teacher.modle", "model"]),
        (changed(teacher=[{"modle": "resnet"}]), ["teacher.0.modle", "model"]),
        ([1, 2], ["mapping"]),
    ],
)
def test_mistakes_are_found_when_reading(value, words):
    with pytest.raises(UsageError) as caught:
        Recipe.parse(value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (changed(task="ImageClasification"), ["task", "ImageClassification"]),
        (changed(task={"class": "ImageClassification", "datset": "digits"}), ["datset", "dataset"]),
        (changed(student={"class": "resnet", "dept": 8}), ["student", "dept", "depth"]),
        (changed(student={"path": "x", "depth": 8}), ["student", "depth"]),
        (changed(teacher=None), ["teacher"]),
        (changed(teacher=None, student=None), ["no model"]),
        (changed(budget={"size": 3}), ["budget", "size", "bytes"]),
    ],
)
def test_mistakes_in_names_are_found_before_anything_runs(value, words):
    with pytest.raises(UsageError) as caught:
        from_recipe(Recipe.parse(value))
    assert all(word in str(caught.value) for word in words)


def test_unreadable_recipes(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(UsageError, match="not YAML"):
        Recipe.load(tmp_path / "bad.yaml")
    (tmp_path / "object.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(UsageError, match="not YAML"):
        Recipe.load(tmp_path / "object.yaml")


def test_the_published_schema_is_the_schema():
    published = Path(__file__).parent.parent / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == schema(), "run: limbeck schema --out docs/recipe.schema.json"


def test_the_schema_accepts_every_recipe_of_the_project():
    checker = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    assert RECIPES
    for path in [*RECIPES, TEMPLATE]:
        problems = [problem.message for problem in checker.iter_errors(yaml.safe_load(path.read_text()))]
        assert not problems, f"{path.name}: {problems[:3]}"


@pytest.mark.parametrize(
    "value",
    [
        changed(techer=1),
        changed(steps=[{"distil": {}}]),
        changed(steps=[{"distill": {"train": {"epoch": 1}}}]),
        changed(task={"class": "ImageClassification", "datset": "x"}),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(value):
    assert not jsonschema.Draft202012Validator(schema()).is_valid(value)


@pytest.mark.parametrize("path", [*RECIPES, TEMPLATE], ids=lambda path: path.stem)
def test_the_projects_recipes_parse(path):
    Recipe.load(path)
