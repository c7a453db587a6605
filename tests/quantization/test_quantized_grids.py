"""Modules on every grid: kernels against the plain path, stored bytes, artifacts, and what is refused."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import artifact_models
from safetensors.torch import load_file, save_file

from limbeck.artifact import load, save
from limbeck.build import lineage
from limbeck.errors import ArtifactError, DataError, ExportError, UsageError
from limbeck.models import vit
from limbeck.plan import Plan, apply
from limbeck.quantization import Quantize, kernel_table, plain_kernels
from limbeck.quantization.named_grids import named
from limbeck.quantization.specification import Specification
from limbeck.weights import weights_digest

BFLOAT16 = {"activations": None, "compute": "bfloat16"}
SETTINGS = {  # settings, the kernel of a linear layer of 64 x 32
    "nf4": ({"grid": "nf4", "weights": 32, "activations": None}, "dequantize"),
    "nf4_bfloat16": ({"grid": "nf4", "weights": 32, **BFLOAT16}, "dequantize"),
    "fp8": ({"grid": "fp8_e4m3", "activations": None}, "dequantize"),
    "fp4": ({"grid": "fp4", "weights": 32, "activations": None}, "dequantize"),
    "fp4_dynamic": ({"grid": "fp4", "activations": "dynamic"}, "int8 onednn"),
    "power_of_two": ({"grid": "power_of_two", "bits": 4, "activations": "dynamic"}, "int8 onednn"),
    "power": ({"grid": {"name": "power", "exponent": 0.7}, "bits": 4, "activations": None}, "dequantize"),
    "ternary": ({"grid": "ternary", "weights": "tensor", **BFLOAT16}, "int4 packed"),
    "ternary_group": ({"grid": "ternary", "weights": 32, "method": "twn", **BFLOAT16}, "int4 packed"),
    "ternary_dynamic": ({"grid": "ternary", "weights": "tensor", "activations": "dynamic"}, "int8 onednn"),
    "ternary_static": ({"grid": "ternary"}, "int8 onednn"),
    "binary": ({"grid": "binary", **BFLOAT16}, "int4 packed"),
    "binary_dynamic": ({"grid": "binary", "activations": "dynamic"}, "int8 onednn"),
    "int2": ({"bits": 2, "weights": 32, **BFLOAT16}, "int4 packed"),
    "int3_channel": ({"bits": 3, **BFLOAT16}, "int4 packed"),
    "int4_tensor": ({"bits": 4, "weights": "tensor", **BFLOAT16}, "int4 packed"),
    "affine4": ({"grid": "affine", "bits": 4, "weights": 32, **BFLOAT16}, "int4 packed"),
    "affine2": ({"grid": "affine", "bits": 2, "weights": 32, "scale_type": "float32", **BFLOAT16}, "int4 packed"),
    "affine3_channel": ({"grid": "affine", "bits": 3, **BFLOAT16}, "int4 packed"),
    "affine5": ({"grid": "affine", "bits": 5, "weights": 32, **BFLOAT16}, "dequantize"),
    "binaries": ({"grid": "binaries", "bits": 2, "weights": 32, "activations": None}, "dequantize"),
    "dual_binary": ({"grid": "dual_binary", "activations": None}, "dequantize"),
    "kmeans": ({"grid": "kmeans", "bits": 3, "weights": "tensor", "activations": None}, "dequantize"),
    "e8": ({"grid": "e8", "bits": 2, **BFLOAT16}, "int4 packed"),
    "e8_dynamic": ({"grid": "e8", "bits": 3, "activations": "dynamic"}, "int8 onednn"),
    "fourth_roots": ({"grid": "fourth_roots", "bits": 2, "weights": "tensor", "activations": None}, "dequantize"),
}
every = pytest.mark.parametrize("setting", SETTINGS)


class Examples:
    def __init__(self, *shape):
        self.x = torch.randn(24, *shape, generator=torch.Generator().manual_seed(5))

    def batches(self, split, batch_size, *, limit=None, **_):
        yield {"pixel_values": self.x}


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32)).eval()


def convolution():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2)).eval()


def made(setting, model, task, **more):
    plan = Quantize(**{**SETTINGS[setting][0], **more}).plan(model, task)
    return apply(copy.deepcopy(model), Plan.from_json(json.loads(json.dumps(plan.to_json()))))


@every
def test_a_linear_layer_runs_on_its_kernel_and_agrees_with_the_plain_path(setting):
    model, task = linear(), Examples(64)
    quantized = made(setting, model, task)
    assert kernel_table(quantized) == {"0": SETTINGS[setting][1]}
    with torch.no_grad():
        fast = torch.cat([quantized(part) for part in task.x.split(4)])  # few rows
        with plain_kernels():
            plain = quantized(task.x)
        weight = Quantize(**SETTINGS[setting][0]).specification
        naive = weight.quantizer.decode(weight.quantizer.encode(model[0].weight))
        exact = task.x @ naive.T + model[0].bias
    assert torch.allclose(quantized[0].weight, naive)
    assert (fast - plain).abs().max() < 0.02 * plain.abs().max()
    assert (plain - exact).abs().max() < 0.03 * exact.abs().max()  # the inputs' grid, and bfloat16


@every
def test_a_convolution_agrees_with_the_plain_path(setting):
    model, task = convolution(), Examples(4, 6, 6)
    if setting == "fourth_roots" or "weights" in SETTINGS[setting][0]:
        quantized = made(setting, model, task, **({} if setting == "fourth_roots" else {"weights": "channel"}))
    else:
        quantized = made(setting, model, task)
    with torch.no_grad():
        fast = quantized(task.x)
        with plain_kernels():
            plain = quantized(task.x)
        naive = nn.functional.conv2d(task.x, quantized[0].weight, model[0].bias, padding=1, groups=2)
    assert (fast - plain).abs().max() < 0.01 * plain.abs().max()
    assert (plain - naive).abs().max() < 0.03 * naive.abs().max()


@every
def test_the_bytes_are_those_of_the_buffers(setting):
    quantized = made(setting, linear(), Examples(64))[0]
    packed = quantized.packed
    inputs = 5 if setting == "ternary_static" else 0
    assert quantized.nbytes == packed.nbytes + 32 * 4 + inputs
    assert packed.codes.numel() <= 64 * 32 * quantized.bits / 8 + 32
    assert quantized.bits == (1.6 if "ternary" in setting else quantized.bits)
    assert set(quantized.state_dict()) >= {f"weight_{name}" for name in packed.tensors}


@every
def test_artifacts_keep_every_grid(setting, tmp_path):
    torch.manual_seed(1)
    model = vit(8, 4, 2, depth=1, width=32, heads=2).eval()
    settings = {**SETTINGS[setting][0], "examples": 8}
    quantized = apply(model, Quantize(**settings).plan(model, Examples(3, 8, 8))).eval()
    if setting == "fourth_roots":
        assert kernel_table(quantized)
    save(quantized, tmp_path / "a")
    found = load(tmp_path / "a")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(x), quantized(x))
    assert weights_digest(found) == weights_digest(quantized) and lineage(found) == lineage(quantized)
    assert not [path for path in (tmp_path / "a").rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("ternary", "weight_codes", 250),
        ("fp8", "weight_codes", 0x7F),
        ("fp8", "weight_codes", 0x80),
        ("power_of_two", "weight_codes", 0xFF),
        ("ternary", "weight_scale", float("nan")),
        ("nf4", "weight_scale", -1.0),
        ("kmeans", "weight_codebook", float("inf")),
        ("int2", "weight_zero_point", 77),
    ],
)
def test_a_forged_artifact_with_codes_off_the_grid_is_refused(setting, name, value, tmp_path):
    """Even when every digest was made to match."""
    torch.manual_seed(1)
    model = vit(8, 4, 2, depth=1, width=32, heads=2).eval()
    settings = {**SETTINGS[setting][0], "examples": 8}
    quantized = apply(model, Quantize(**settings).plan(model, Examples(3, 8, 8)))
    folder = save(quantized, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    path = next(key for key in tensors if key.endswith(name))
    tensors[path].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors")
    quantized.get_buffer(path).view(-1)[0] = value
    artifact_models.edit(folder, weights=weights_digest(quantized))
    with pytest.raises(
        ArtifactError, match=r"stand for no level|no five trits|not finite|negative|are not on|checksum|damaged"
    ):
        load(folder)


def test_entries_of_a_plan_that_do_not_fit_are_refused():
    entry = Quantize(grid="nf4", weights=32, activations=None).specification.to_json()
    assert Specification.from_json(json.loads(json.dumps(entry))).to_json() == entry
    weight = entry["weight"]
    for change in (
        {"bits": 3},
        {"grid": {"kind": "NormalFloatGrid", "bits": 9}},
        {"grid": {"kind": "Other"}},
        {"grid": None},
        {"method": "absmean"},
        {"granularity": "none"},
    ):
        with pytest.raises(ArtifactError, match="cannot be read"):
            Specification.from_json({**entry, "weight": {**weight, **change}})
    integer = Quantize().specification.to_json()
    assert "grid" not in integer["weight"]


def test_learned_parameters_of_every_grid_come_from_the_plan():
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    for settings in (
        {"grid": "ternary"},
        {"grid": "dual_binary"},
        {"grid": "kmeans", "bits": 2},
        {"grid": "e8", "bits": 2},
    ):
        specification = Quantize(activations=None, weights="channel", **settings).specification
        packed = specification.encode(x)
        learned = 1.1 * packed.tensors[specification.parameter]
        entry = specification.to_json()
        entry["weight"]["scale"] = learned.flatten().tolist()
        found = Specification.from_json(entry).encode(x)
        assert torch.allclose(found.tensors[specification.parameter], learned)
        entry["weight"]["scale"].append(1.0)
        with pytest.raises(ArtifactError, match="learned scales"):
            Specification.from_json(entry).encode(x)


def test_layers_of_a_shape_that_the_grid_does_not_take_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    plan = Quantize(grid="fourth_roots", bits=1, weights="tensor", activations=None).plan(model)
    assert list(plan.decisions["modules"]) == ["0"] and "even number" in plan.decisions["left_alone"]["1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": "nf5"}, "unknown"),
        ({"grid": "nf4", "bits": 3}, "has 4 bits"),
        ({"grid": "nf4", "bits": 32}, "changes nothing"),
        ({"grid": "ternary", "symmetric": False, "activations": None}, "own values"),
        ({"grid": "ternary", "method": "kmeans"}, "method='kmeans'"),
        ({"grid": "fourth_roots", "bits": 1}, "one set of scales"),
        ({"grid": "binaries"}, "terms=8"),
        ({"grid": {"name": "kmeans", "index_bits": 3}, "bits": 4}, "leave one of them out"),
        ({"grid": {"name": "kmeans", "colour": 3}}, "has the settings"),
    ],
)
def test_settings_that_cannot_be_right(settings, words):
    with pytest.raises(UsageError, match=words):
        Quantize(**settings)


def test_widths_follow_the_name():
    assert Quantize(grid="nf4", activations=None).specification.bits == 4
    assert (
        Quantize(grid="integer", bits=4, activations=None).specification
        == Quantize(bits=4, activations=None).specification
    )
    assert Quantize(grid={"name": "kmeans", "index_bits": 3}, activations=None).specification.bits == 3
    assert named("ternary").bits == 1.6


def test_layers_report_the_bits_that_are_stored():
    from limbeck.measure.size import weight_bits

    module = made("ternary", linear(), Examples(64))[0]
    assert weight_bits(module, list(module.state_dict().values())) == 1.6


def test_onnx_refuses_other_grids_by_name(tmp_path):
    from limbeck.export.qdq import export_qdq

    model = made("nf4", linear(), Examples(64))
    with pytest.raises(ExportError, match="NormalFloatGrid"):
        export_qdq(model, {"x": torch.zeros(1, 64)}, tmp_path / "m.onnx")


def test_a_tensor_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="NaN or infinity"):
        Quantize(grid="nf4", activations=None).specification.encode(torch.full((2, 8), float("nan")))
