"""Names and fields in recipes."""

import pytest

from limbeck import vocabulary
from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.pruning import Prune, Taylor
from limbeck.steps import Change, Distill, describe_step, parse_step
from limbeck.training import TrainingConfig


def test_a_spec_builds_and_describes_itself():
    made = vocabulary.construct({"class": "SoftTargets", "temperature": 2.0}, "objective")
    assert made == SoftTargets(temperature=2.0)
    assert vocabulary.describe(made) == {"class": "SoftTargets", "temperature": 2.0}


def test_a_list_of_objectives_is_their_weighted_sum_and_back():
    spec = [{"class": "CrossEntropy", "weight": 0.1}, {"class": "Hint", "student": "layer1", "teacher": "layer2"}]
    made = vocabulary.objective(spec)
    assert made.terms == ((CrossEntropy(), 0.1), (Hint(student="layer1", teacher="layer2"), 1.0))
    assert vocabulary.objective(vocabulary.describe(made)).terms == made.terms


def test_nested_specs_are_built():
    step = parse_step({"prune": {"keep": 0.5, "scorer": {"class": "Taylor"}}}, "steps[0]")
    assert isinstance(step, Change) and isinstance(step.transform, Prune) and isinstance(step.transform.scorer, Taylor)


@pytest.mark.parametrize(
    ("spec", "role", "words"),
    [
        ("SoftTarget", "objective", ["SoftTargets"]),
        ({"class": "SoftTargets", "temprature": 2}, "objective", ["temprature", "temperature"]),
        ({"class": "resnet"}, "model", ["depth"]),
        ({"temperature": 2}, "objective", ["class"]),
        ({"class": "SoftTargets", "temperature": -1}, "objective", ["temperature", "-1"]),
        ("os:remove", "model", ["--trust os"]),
        ("subprocess:run", "task", ["--trust subprocess"]),
    ],
)
def test_mistakes_name_the_place_and_what_is_near(spec, role, words):
    with pytest.raises(UsageError) as caught:
        vocabulary.construct(spec, role, "here")
    assert str(caught.value).startswith("here") and all(word in str(caught.value) for word in words)


def test_ones_own_class_by_dotted_path_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_package_of_test.py").write_text(
        "from dataclasses import dataclass\nfrom limbeck.objectives import SoftTargets\n"
        "@dataclass(frozen=True)\nclass Softer(SoftTargets):\n    extra: float = 0.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"class": "own_package_of_test:Softer", "temperature": 8.0}
    with pytest.raises(UsageError, match="trust"):
        vocabulary.construct(spec, "objective")
    made = vocabulary.construct(spec, "objective", trust=["own_package_of_test"])
    assert type(made).__name__ == "Softer" and vocabulary.describe(made) == spec


STEPS = [
    {"distill": {"objective": [{"class": "SoftTargets", "temperature": 2.0}], "train": {"epochs": 2}}},
    {"train": {"train": {"epochs": 1, "milestones": [0.5]}}},
    {"prune": {"keep": 0.5}},
    {"quantize": {"bits": 4}},
    {"quantization_aware": {"quantize": {"bits": 8}, "train": {"steps": 5}}},
    {"fold_batch_norm": None},
]


@pytest.mark.parametrize("spec", STEPS, ids=[next(iter(step)) for step in STEPS])
def test_steps_describe_themselves_as_recipes_write_them(spec):
    step = parse_step(spec, "steps[0]")
    assert parse_step(describe_step(step), "again") == step


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"distil": {}}, ["steps[0]", "distill"]),
        ({"prune": {}, "quantize": {}}, ["one verb"]),
        ({"distill": {"train": {"epochs": 1}}}, ["steps[0].distill", "objective"]),
        ({"distill": {"objective": "SoftTargets", "train": {"epoch": 1}}}, ["train", "epochs"]),
        ({"distill": {"objective": [], "train": {"epochs": 1}}}, ["objective", "empty"]),
        (
            {"distill": {"objective": "SoftTargets", "train": {"epochs": 1}, "teacher": "nobody"}},
            ["teacher", "average"],
        ),
    ],
)
def test_mistakes_in_steps(spec, words):
    with pytest.raises(UsageError) as caught:
        parse_step(spec, "steps[0]")
    assert all(word in str(caught.value) for word in words)


def test_a_transform_is_a_step_as_it_is():
    assert parse_step(Prune(keep=0.5), "x").transform == Prune(keep=0.5)
    step = Distill(SoftTargets(), TrainingConfig(epochs=1))
    assert parse_step(step, "x") is step
