"""The CIFAR-100 recipes: they can be read, and every objective of theirs trains the networks they name."""

from pathlib import Path

import pytest
import torch

from limbeck import models
from limbeck.choices import named_objectives
from limbeck.objectives import CrossEntropy
from limbeck.recipe import Recipe
from limbeck.training import Distil
from limbeck.training.procedures import State

FOLDER = Path(__file__).parent.parent / "recipes" / "cifar100"
PAIRS = {
    "resnet": (lambda: models.resnet(8, classes=100), lambda: models.resnet(14, classes=100)),
    "wide": (lambda: models.wide_resnet(10, 1, classes=100), lambda: models.wide_resnet(10, 2, classes=100)),
}


@pytest.mark.parametrize("name", ["subset", "full", "wide"])
def test_recipes_can_be_read(name):
    recipe = Recipe.load(FOLDER / f"{name}.yaml")
    assert recipe.student["classes"] == 100
    assert recipe.teacher.seed == 0  # one teacher for all seeds


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("file", ["objectives.yaml", "objectives-full.yaml"])
def test_objectives_train(file, pair):
    objectives = named_objectives(str(FOLDER / file), CrossEntropy())
    assert set(objectives) >= {"alone", "kd", "dkd", "crd", "reviewkd", "nkd", "sinkd", "ofa"}
    torch.manual_seed(0)
    batch = {
        "pixel_values": torch.randn(4, 3, 32, 32),
        "labels": torch.randint(0, 100, (4,)),
        "index": torch.arange(4),
        "epoch": 1,
    }
    student, teacher = (make() for make in PAIRS[pair])
    for name, objective in objectives.items():
        procedure = Distil(student, teacher, objective)
        procedure.prepare(batch, torch.device("cpu"))
        loss = procedure.step(batch, State(0, 1, 1.0, 0, torch.device("cpu")))["main"].value
        slope = torch.autograd.grad(loss, student.conv1.weight)[0]
        assert torch.isfinite(loss) and slope.abs().max() > 0, name
