import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.beds.sequences import SequenceBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.papers import encoder_decoder

TINY = SequenceBed(source=12, target=4, batch_size=4)


@pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")
def test_the_arms_run_with_as_many_parameters(tmp_path):
    store, sizes = Store(tmp_path), []
    teacher = dataclasses.replace(CHARACTERS, length=16, batch_size=4, teacher_steps=2)
    for arm in (encoder_decoder.paper.method, encoder_decoder.paper.control):
        run = Run(0, "validation", store)
        more = {"teacher": teacher, "depth": 1, "width": 8, "heads": 1} if arm.settings.get("distil") else {}
        found = arm.run(run, **arm.settings, steps=2, bed=TINY, runs=3, **more)
        assert all(math.isfinite(value) for value in found.values()) and run.costs["steps"] == 2
        sizes.append(run.costs["parameters"])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_objective_is_the_papers():
    terms = {type(term): weight for term, weight in encoder_decoder.OBJECTIVE.terms}
    assert terms == {SoftTargets: 0.9, CrossEntropy: 0.1}
