import dataclasses
import math

import pytest

from limbeck.beds.language import LanguageBed
from limbeck.experiments import Run, Store
from limbeck.objectives import ExcessTargets
from limbeck.papers import adaspec


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_text):
    bed = LanguageBed(dataset=tiny_text, length=24, blocks=4, batch_size=4, teacher_steps=4)
    monkeypatch.setattr(adaspec, "BED", bed)
    monkeypatch.setattr(adaspec, "DRAFT", {"depth": 1, "width": 8, "heads": 2})
    for name, value in {"START": 2, "PROMPT": 8, "NEW": 4, "PROMPTS": 3}.items():
        monkeypatch.setattr(adaspec, name, value)
    return lambda: Run(0, "validation", Store(tmp_path / "store"))


@pytest.mark.parametrize("name", list(adaspec.paper.arms))
def test_every_arm_runs_and_spends_alike(small, name):
    run = small()
    arm = adaspec.paper.arms[name]
    found = arm.run(run, **{**arm.candidates()[0], "steps": 3})
    assert {"acceptance", "acceptance_rate", "block_efficiency", "perplexity", "loss"} == set(found)
    assert all(math.isfinite(value) for value in found.values())
    assert 0 < found["acceptance"] < 1
    assert run.costs == {"steps": 3, "samples": 12}


def test_the_composition_is_the_papers():
    objective = ExcessTargets()
    assert (objective.keep, objective.temperature) == (0.4, 1.0)
    assert dataclasses.is_dataclass(adaspec.RandomShare(keep=0.4))
    assert adaspec.RandomShare(keep=0.4).reads == objective.reads
