import pytest
from arms import assert_calibrates, small_characters

from limbeck.papers import nupes as module
from limbeck.quantization import Quantize, SearchedPowerGrid


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(tmp_path, monkeypatch, name):
    arm = module.paper.arms[name]
    few = {"steps": 2} if arm.run in (module.learned, module.uniform) else {}
    assert_calibrates(arm, small_characters(module, tmp_path, monkeypatch), **few)


def test_the_composition_is_the_papers():
    assert module.BITS == 3
    quantizer = Quantize(bits=3, grid=module.SEARCHED, activations=None).specification.quantizer
    assert quantizer.grid == SearchedPowerGrid(3) and quantizer.method == "minmax"
    settings = {name: arm.settings for name, arm in module.paper.arms.items()}
    assert settings["baseline"] == {"exponents": False, "reach": 1} and settings["whole_grid"] == {"exponents": False}
