import math

import pytest

from limbeck.beds.sequences import SequenceBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers import mrt5

TINY = SequenceBed("languages", source=24, target=1, batch_size=4)
SIZES = {"encoder_depth": 2, "decoder_depth": 1, "width": 8, "heads": 2}


@pytest.mark.skipif(find_folder("udhr") is None, reason="the data set is not on this machine")
def test_the_arms_run_and_delete_their_share(tmp_path, monkeypatch):
    monkeypatch.setattr(
        SequenceBed,
        "measure",
        lambda self, run, model: self.task.evaluate(
            lambda b: model.eval()(b["input_ids"], b["decoder_input_ids"]), run.split, limit=32
        ),
    )
    store, found = Store(tmp_path), {}
    for name, arm in mrt5.paper.arms.items():
        run = Run(0, "validation", store)
        found[name] = arm.run(run, **arm.settings, steps=2, base_steps=2, bed=TINY, runs=3, **SIZES)
        assert all(math.isfinite(value) for value in found[name].values())
        assert run.costs["steps"] == 2
    assert found["baseline"]["deleted"] == pytest.approx(0.75, abs=0.02) == found["control"]["deleted"]
    assert found["full"] == {**found["full"], "deleted": 0.0, "speedup": 1.0}
    assert all(row["without_text"] != row["loss"] for row in found.values())
    assert found["control"]["disagreement"] < 1e-5 and found["baseline"]["disagreement"] < 1e-5
    assert len({row["digest"] for row in store.used}) == 1, "all arms start from one model"


def test_the_composition():
    assert mrt5.paper.method.settings["gate"] == "learnt"
    assert {row.against for row in mrt5.paper.compared} == {"baseline", "control", "full"}
