import pytest
from arms import assert_calibrates, small_characters

from limbeck.papers import decoupleq as module
from limbeck.quantization import AffineGrid, Quantize


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(tmp_path, monkeypatch, name):
    arm = module.paper.arms[name]
    assert_calibrates(arm, small_characters(module, tmp_path, monkeypatch))


def test_the_composition_is_the_papers():
    assert module.GROUP == 64
    assert Quantize(bits=2, weights=64, grid="affine", activations=None).specification.quantizer.grid == AffineGrid(2)
