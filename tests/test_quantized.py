"""limbeck.quantize: one call, the methods behind it, what it refuses, and what its artifact holds."""

import json

import pytest
import torch
from torch.nn import functional as F

import limbeck as lb
from limbeck.errors import UsageError
from limbeck.quantization import BlockReconstruction, DecoupleQ
from limbeck.quantization.methods import DEFAULTS, METHODS, RATES, WIDTHS, Settings
from limbeck.quantization.modules import QuantizedModule
from limbeck.signals import call, first_tensor
from limbeck.training import Trainer, TrainingConfig

SHORT = TrainingConfig(steps=2, batch_size=4)
CELLS = [
    (8, "dynamic"),
    (8, "smooth"),
    (8, "nearest"),
    (4, "ranges"),
    (4, "awq"),
    (3, "hqq"),
    (2, "rotated_gptq"),
    (2, "codes"),
]
CELLS += [(1.58, "trained"), (1.58, "kmeans"), (1.58, "gptq"), (1, "trained"), (1, "nearest")]


@pytest.fixture(scope="module")
def task():
    return lb.tasks.ImageClassification("digits")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lb.models.vit(8, 4, 10, depth=2, width=32, heads=4, channels=1).eval()


def outputs(model, task):
    with torch.no_grad():
        return first_tensor(call(model, next(task.batches("validation", 32))))


def loss(model, teacher, task):
    return F.mse_loss(outputs(model, task), outputs(teacher, task)).item()


@pytest.mark.parametrize(("bits", "name"), CELLS)
def test_every_method_gives_a_smaller_model_and_leaves_the_given_one(model, task, bits, name):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training = {"train": SHORT} if METHODS[name].training else {}
    data = task if METHODS[name].reads_data else None
    made = lb.quantize(model, bits, data, method=name, group_size=16, examples=8, **training)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert outputs(made.model, task).isfinite().all() and made.method == name
    smaller = sum(v.numel() * v.element_size() for v in before.values())
    assert made.quantized_bytes < made.nbytes < smaller or name in (
        "kmeans",
        "codes",
    )  # codebooks outweigh a tiny model


def test_methods_are_composed_as_they_say():
    kinds = {name: [type(step).__name__ for step in METHODS[name].steps(Settings(bits=4))] for name in METHODS}
    assert kinds["rotated_gptq"] == ["Rotate", "Quantize"] and kinds["smooth"] == ["SmoothQuant", "Quantize"]
    assert kinds["awq"] == ["AWQ", "ClipWeights", "Quantize"] and kinds["hqq"] == ["Quantize"]
    (learned,) = METHODS["reconstruction"].steps(Settings(bits=3))
    assert isinstance(learned.rounding, BlockReconstruction) and (learned.method, learned.bits) == ("mse", 3)
    (decoupled,) = METHODS["decoupleq"].steps(Settings(bits=2, weights=32))
    assert isinstance(decoupled.rounding, DecoupleQ) and (decoupled.grid, decoupled.bits, decoupled.weights) == (
        "affine",
        2,
        32,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_defaults_fit_their_width_and_need_no_more_than_they_are_given(width):
    free, calibrated = (METHODS[name] for name in DEFAULTS[width])
    assert width in free.bits and width in calibrated.bits and not free.reads_data


def test_the_default_method_depends_on_data(model, task):
    free, calibrated = DEFAULTS[2]
    assert lb.quantize(model, 2).method == free
    training = {"train": SHORT} if METHODS[calibrated].training else {}
    assert lb.quantize(model, 2, task, examples=4, **training).method == calibrated


def test_it_is_the_transforms_that_its_method_lists(model, task):
    made = lb.quantize(model, 4, task, method="rotated_gptq", examples=8, ends=4)
    for step in METHODS["rotated_gptq"].steps(Settings(bits=4, examples=8)):
        model = lb.apply(model, step.plan(model, task))
    assert torch.equal(outputs(made.model, task), outputs(model, task))


def test_the_plan_replays(model, task):
    made = lb.quantize(model, 3, task, method="gptq", examples=8)
    assert torch.equal(outputs(lb.apply(model, made.plan), task), outputs(made.model, task))


@pytest.mark.parametrize("name", ["gptq", "trained", "codes"])
def test_its_artifact_reloads_and_holds_the_bytes_that_it_says(model, task, tmp_path, name):
    training = {"train": SHORT} if METHODS[name].training else {}
    made = lb.quantize(model, 2, task, method=name, group_size=16, examples=8, **training)
    folder = made.save(tmp_path / "small")
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) - 8 - int.from_bytes(weights[:8], "little") == made.nbytes
    assert torch.equal(outputs(lb.load(folder), task), outputs(made.model, task))
    # scales and codes are in the weights' file, not in the plans
    assert (folder / "architecture.json").stat().st_size < 40_000


@pytest.mark.parametrize(
    "bits, name, rates", [(1, "trained", (1e-3, None)), (4, "trained", (1e-4, None)), (2, "codes", (3e-4, 3e-3))]
)
def test_training_takes_the_rate_of_its_width(model, task, monkeypatch, bits, name, rates):
    class Begun(Exception):
        pass

    def run(trainer, procedure, _):
        raise Begun(trainer.config.learning_rate, getattr(procedure, "rate", None))

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(Begun) as begun:
        lb.quantize(model, bits, task, method=name, group_size=16)
    assert begun.value.args == pytest.approx(rates)
    assert all(set(method.bits) <= set(RATES) for method in METHODS.values() if method.training)
    with pytest.raises(Begun) as begun:
        lb.quantize(model, bits, task, method=name, group_size=16, train=TrainingConfig(steps=1, learning_rate=0.5))
    assert begun.value.args == pytest.approx((0.5, None if rates[1] is None else 5.0))


def test_the_rate_of_decoupleq_falls_with_the_steps_of_its_grid():
    rates = [METHODS["decoupleq"].steps(Settings(bits=bits))[0].rounding.learning_rate for bits in (2, 3, 4, 5)]
    assert rates == pytest.approx([1e-3, 1e-3 / 4, 1e-3 / 16, 1e-3 / 64])


def test_layers_outside_the_blocks_keep_eight_bits(model):
    def bits(made):
        return {path: module.bits for path, module in made.model.named_modules() if hasattr(module, "weight_codes")}

    found = bits(lb.quantize(model, 2, method="nearest"))
    assert {width for path, width in found.items() if path.startswith("blocks.")} == {2}
    assert {path: width for path, width in found.items() if not path.startswith("blocks.")} == {"patches": 8, "head": 8}
    unquantized = lb.quantize(model, 2, method="nearest", ends=None)
    assert all(path.startswith("blocks.") for path in bits(unquantized)) and "head" in unquantized.left_alone
    assert set(bits(lb.quantize(model, 4, method="nearest", ends=4)).values()) == {4}
    assert bits(lb.quantize(model, 2, method="nearest", ignore="head"))["patches"] == 8
    assert "head" in lb.quantize(model, 2, method="nearest", ignore="head").left_alone


def test_a_model_without_blocks_is_quantized_whole():
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    made = lb.quantize(model, 4)
    assert {module.bits for module in made.model if hasattr(module, "bits")} == {4} and not made.left_alone


@pytest.mark.parametrize("data", [False, True])
def test_batch_norms_are_folded_first(task, data):
    torch.manual_seed(0)
    model = lb.models.resnet(8, channels=1, width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    made = lb.quantize(model.eval(), 8, task if data else None).model
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in made.modules())
    assert loss(made, model, task) < 1e-3 * outputs(model, task).var().item()


def test_a_seed_draws_the_examples(model, task):
    def made(seed):
        return outputs(lb.quantize(model, 2, task, method="gptq", examples=8, seed=seed).model, task)

    assert torch.equal(made(3), made(3)) and not torch.equal(made(3), made(4))


def test_training_at_one_bit_comes_nearer_to_the_float_model(model, task):
    config = TrainingConfig(steps=60, batch_size=32, learning_rate=3e-3)
    trained = lb.quantize(model, 1, task, train=config, objective=lb.objectives.EmbeddingDistance()).model
    assert loss(trained, model, task) < 0.5 * loss(lb.quantize(model, 1).model, model, task)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 9}, ["bits=9", "1.58"]),
        ({"bits": True}, ["bits=True"]),
        ({"bits": 4, "method": "gtpq"}, ["gptq"]),
        ({"bits": 4, "method": "gptq"}, ["task", "'hqq'"]),
        ({"bits": 1, "method": "awq"}, ["awq", "not for 1 bits", "'nearest'"]),
        ({"bits": 4, "train": TrainingConfig(steps=1)}, ["trains nothing", "'trained'"]),
        ({"bits": 4, "train": {"steps": 1}}, ["TrainingConfig"]),
        ({"bits": 4, "ends": 16}, ["ends=16"]),
        ({"bits": 4, "ignore": "nowhere"}, ["nowhere"]),
    ],
)
def test_mistakes_are_refused(model, settings, words):
    with pytest.raises(UsageError) as error:
        lb.quantize(model, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_command(model, task, tmp_path, monkeypatch, capsys):
    from test_cli import run

    lb.save(model, tmp_path / "float", recipe={"task": {"class": "ImageClassification", "dataset": "digits"}})
    arguments = ["quantize", tmp_path / "float", "--out", tmp_path / "small", "--bits", 4, "--json"]
    code, out, _ = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["bits"] == 4 and found["method"] == DEFAULTS[4][0] and found["bytes"] < found["before"]
    assert torch.equal(outputs(lb.load(tmp_path / "small"), task), outputs(lb.quantize(model, 4).model, task))
    more = ["--task", "own", "--method", "gptq", "--seed", 1]
    code, out, _ = run(
        *arguments[:3], tmp_path / "other", *arguments[4:], *more, monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0 and json.loads(out)["method"] == "gptq"
    code, _, err = run(*arguments[:4], "--bits", 9, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "bits=9" in err


@pytest.mark.parametrize("bits", [8, 4, 1.58])
def test_scales_are_stored_in_the_type_that_is_asked_for(model, bits):
    made = lb.quantize(model, bits, method="nearest", group_size=16, scale_type="float16").model
    kinds = {m.weight_scale.dtype for m in made.modules() if isinstance(m, QuantizedModule)}
    assert kinds == {torch.float16}
    usual = lb.quantize(model, bits, method="nearest", group_size=16).model
    assert torch.float16 not in {m.weight_scale.dtype for m in usual.modules() if isinstance(m, QuantizedModule)}
    with pytest.raises(UsageError, match="scale_type"):
        lb.quantize(model, bits, scale_type="int8")
