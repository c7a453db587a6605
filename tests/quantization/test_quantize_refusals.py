"""Settings, models, data and plans that cannot be quantized."""

import copy

import pytest
from small_models import Examples, perceptron
from torch import nn

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.plan import Plan, apply
from limbeck.quantization import Quantize


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activations": "int8"}, "activations='int8'"),
        ({"weights": "row"}, "weights='row'"),
        ({"weights": 1}, "group size 1"),
        ({"bits": 9}, "bits=9"),
        ({"method": "best"}, "method='best'"),
        ({"calibration": "max"}, "calibration='max'"),
        ({"percentile": 101}, "percentile=101"),
        ({"examples": 0}, "examples=0"),
        ({"symmetric": False}, "asymmetric weights"),
        ({"compute": "float16"}, "compute='float16'"),
        ({"compute": "bfloat16"}, "weight-only"),
        ({"scale_type": "float64"}, "scale_type='float64'"),
        ({"activation_bits": 32, "activations": "dynamic"}, "activation_bits=32"),
        ({"activation_bits": 9, "activations": "dynamic"}, "bits=9"),
    ],
)
def test_settings_that_cannot_be_right(settings, words):
    with pytest.raises(UsageError, match=words):
        Quantize(**settings)


def test_models_and_data_that_cannot_be_quantized():
    model = perceptron()
    with pytest.raises(UsageError, match="no task was given"):
        Quantize().plan(model)
    with pytest.raises(UsageError, match="no module is named 'nine'"):
        Quantize(ignore="nine", activations=None).plan(model)
    with pytest.raises(UsageError, match="wrap it in nn"):
        Quantize(activations=None).plan(nn.Linear(4, 4))
    with pytest.raises(UsageError, match="nothing in Sequential"):
        Quantize(activations=None).plan(nn.Sequential(nn.LayerNorm(4)))
    with pytest.raises(DataError, match="no batch"):
        Quantize().plan(model, Examples(64, count=0))
    bad = Examples(64)
    bad.x[3, 3] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        Quantize().plan(model, bad)
    quantized = apply(copy.deepcopy(model), Quantize(activations=None).plan(model))
    with pytest.raises(UsageError, match="quantized already"):
        Quantize(activations=None).plan(quantized)


def test_plans_that_do_not_fit_are_refused():
    model = perceptron()
    plan = Quantize(activations=None).plan(model).to_json()
    for change, words in (
        (lambda d: d["modules"].update(nine=d["modules"]["0"]), "'nine'"),
        (lambda d: d["modules"].update({"1": d["modules"]["0"]}), "expects a Linear at '1'"),
        (lambda d: d["modules"]["0"]["weight"].pop("bits"), "cannot be read"),
        (lambda d: d["modules"]["0"]["weight"].update(bits=77), "cannot be read"),
        (lambda d: d["modules"]["0"].update(input={"bits": 8, "scale": -1, "zero_point": 0}), "cannot be read"),
        (lambda d: d["modules"]["0"]["weight"].update(scale=[1.0]), "1 learned scales"),
    ):
        changed = copy.deepcopy(plan)
        change(changed["decisions"])
        with pytest.raises(ArtifactError, match=words):
            apply(copy.deepcopy(model), Plan.from_json(changed))
