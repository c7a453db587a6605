import pytest
from arms import assert_calibrates, small_characters

from limbeck.papers import jlcm as module
from limbeck.quantization import CodebookGrid, PerRows, Quantize


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(tmp_path, monkeypatch, name):
    arm = module.paper.arms[name]
    few = {"steps": 2} if arm.run is module.learned else {}
    assert_calibrates(arm, small_characters(module, tmp_path, monkeypatch), **few)


def test_the_composition_is_the_papers():
    quantizer = Quantize(bits=2, weights=module.ROWS, grid="kmeans", activations=None).specification.quantizer
    assert quantizer.grid == CodebookGrid(2) and quantizer.granularity == PerRows(32)
    settings = {name: arm.settings for name, arm in module.paper.arms.items()}
    assert settings["control"] == {"proximal": False} and settings["baseline"] == module.TENSOR
