import dataclasses
import math

import pytest

from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers import xkv

TINY = dataclasses.replace(xkv.BED, length=64, teacher_steps=2)
SIZES = {"depth": 3, "width": 16, "prompt": 56, "count": 4}


@pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")
def test_the_arms_run_and_store_alike(tmp_path):
    store, found = Store(tmp_path), {}
    for name, arm, settings in (
        ("method", xkv.low_rank, {"group": 3}),
        ("baseline", xkv.low_rank, {"group": 1}),
        ("control", xkv.averaged, {"group": 3}),
        ("whole", xkv.low_rank, {"group": 1, "share": 1.0, "key_share": 0.5}),
    ):
        run = Run(0, "validation", store)
        found[name] = arm(run, bed=TINY, share=settings.pop("share", 0.5), **settings, **SIZES)
        assert all(math.isfinite(value) for value in found[name].values())
        assert run.costs["bytes"] == 4 * run.costs["numbers"] > 0
    assert all(0.4 < found[name]["share"] <= 0.5 for name in ("method", "baseline", "control"))
    assert found["whole"]["error"] < found["baseline"]["error"]
    assert 0 <= found["method"]["overlap"] <= 1


def test_the_composition():
    assert xkv.paper.baseline.settings["group"] == 1 and min(xkv.paper.method.tune["group"]) > 1
    assert xkv.paper.miniature.equal == ("numbers",)
