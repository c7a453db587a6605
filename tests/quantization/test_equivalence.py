"""Function-preserving transforms: what the float model computes stays, and what is rounded afterwards errs less."""

import copy
import json

import pytest
import torch
from equivalence_models import IMAGES, KNOWN, MODELS, TRANSFORMS, Task, made, outputs
from torch import nn

from limbeck.artifact import load, save
from limbeck.build import build, lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import encoder, resnet
from limbeck.plan import Plan, apply
from limbeck.quantization import AWQ, ClipWeights, Equalize, FoldBatchNorm, Quantize, Rotate, SmoothQuant
from limbeck.quantization.equivalence.folds import Fold, rescale
from limbeck.quantization.equivalence.layouts import layout


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("name", MODELS)
def test_the_float_output_stays(name, kind):
    model, task = made(name), Task(name in IMAGES)
    batch = next(task.batches("train", 4, limit=4))
    expected, before = outputs(model, batch), copy.deepcopy(model.state_dict())
    plan = Plan.from_json(json.loads(json.dumps(TRANSFORMS[kind].plan(model, task).to_json())))
    changed = apply(model, plan)
    torch.testing.assert_close(outputs(changed, batch), expected, rtol=1e-5, atol=1e-5)
    after = changed.state_dict()
    moved = any(not torch.allclose(after[key], before[key]) for key in before)
    needs = set(TRANSFORMS[kind].kinds) if hasattr(TRANSFORMS[kind], "kinds") else {"value"}
    assert moved == bool(needs & set(KNOWN[name][0]))


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_is_what_the_table_says(name):
    model = made(name)
    known = layout(model)
    counts = {}
    for fold in known.folds:
        counts[fold.kind] = counts.get(fold.kind, 0) + 1
    assert (counts, known.stream is not None) == KNOWN[name]
    linear = {path for path, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv2d", "Conv1D")}
    read = {reader for fold in known.folds for reader in fold.readers}
    assert read | set(known.left_alone) == linear and not read & set(known.left_alone)
    assert known.stream or known.no_stream


def test_a_block_with_one_layer_more_is_left_alone():
    model = made("encoder")
    model.blocks[0].attention.extra = nn.Linear(32, 32)
    known = layout(model)
    assert {fold.source for fold in known.folds if fold.source.startswith("blocks.0")} == {"blocks.0.norm2"}
    assert "blocks.0.attention.query" in known.left_alone and known.stream is None and "blocks.0" in known.no_stream


def test_a_block_that_is_quantized_already_is_left_alone():
    model = made("encoder")
    apply(model, Quantize(activations=None, only=("blocks.1.feed_forward.up",)).plan(model))
    assert "blocks.1.norm2" not in {fold.source for fold in layout(model).folds}


def test_a_model_around_an_encoder_keeps_its_last_norm():
    """`dense` reads the last norm too, which only a table of the whole model could know."""
    from limbeck.models.encoder import MaskedLanguageModel

    model = MaskedLanguageModel(encoder(40, 2, 16, 1, 32, 4))
    assert "encoder.norm" not in {fold.source for fold in layout(model).folds} and layout(model).stream is None


def outliers(name):
    """A model whose norms and residual stream have a few channels much larger than the rest."""
    model = made(name)
    for path, module in model.named_modules():
        if path and "norm" in type(module).__name__.lower():
            module.weight.data[[2, 9]] *= 30
            first = layout(model)
            for fold in first.folds:
                if fold.source == path:
                    for reader in fold.readers:
                        layer = model.get_submodule(reader)
                        layer.weight.data[:, [2, 9]] /= 10
    return model


@pytest.mark.parametrize("name", ["llama", "vit"])
@pytest.mark.parametrize(
    ("before", "quantize"),
    [
        (SmoothQuant(batch_size=8), Quantize(activations="dynamic")),
        (Rotate(), Quantize(activations="dynamic")),
        (AWQ(3, 8, batch_size=8), Quantize(bits=3, weights=8, activations=None)),
        (Rotate(), Quantize(bits=3, weights="channel", activations=None)),
    ],
    ids=["smooth-w8a8", "rotate-w8a8", "awq-w3", "rotate-w3"],
)
def test_outlier_channels_cost_less_after_the_transform(name, before, quantize):
    task = Task(name in IMAGES)
    model = outliers(name)
    batch = next(task.batches("train", 16, limit=16))
    expected = outputs(model, batch)
    plain = copy.deepcopy(model)
    apply(plain, quantize.plan(plain, task))
    apply(model, before.plan(model, task))
    apply(model, quantize.plan(model, task))
    error, usual = ((outputs(each, batch) - expected).square().mean() for each in (model, plain))
    assert error < 0.7 * usual, (float(error), float(usual))


def test_equalization_makes_one_scale_per_tensor_good_enough():
    torch.manual_seed(1)
    model = resnet(8, 2).eval()
    apply(model, FoldBatchNorm().plan(model))
    for stage in (model.layer1, model.layer2, model.layer3):
        spread = torch.logspace(-1.5, 1.5, stage[0].conv1.out_channels)
        fold = Fold("relu", "conv1", ("conv2",), len(spread))
        rescale(stage[0], fold, spread)
    batch = next(Task(True).batches("train", 8, limit=8))
    expected = outputs(model, batch)
    quantize = Quantize(weights="tensor", activations=None)
    plain = copy.deepcopy(model)
    apply(plain, quantize.plan(plain))
    apply(model, Equalize().plan(model))
    torch.testing.assert_close(outputs(model, batch), expected, rtol=1e-4, atol=1e-5)
    first, second = model.layer2[0].conv1.weight, model.layer2[0].conv2.weight
    torch.testing.assert_close(
        first.abs().flatten(1).amax(1), second.abs().amax((0, 2, 3)), rtol=1e-3, atol=1e-6
    )  # equal ranges on both sides
    apply(model, quantize.plan(model))
    error, usual = ((outputs(each, batch) - expected).square().mean() for each in (model, plain))
    assert error < 0.3 * usual


def test_a_tied_head_is_untied_and_reloads(tmp_path):
    model = made("gpt")
    batch = next(Task(False).batches("train", 4, limit=4))
    expected = outputs(model, batch)
    plan = Rotate().plan(model)
    assert plan.decisions["stream"]["tied"] == ["head"]
    apply(model, plan)
    assert model.head.weight is not model.tokens.weight
    past = lineage(model)
    assert "data" not in past.plans[-1].decisions
    fresh = build(past.factory, past.plans)
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(outputs(fresh.eval(), batch), expected, rtol=1e-5, atol=1e-5)
    save(model, tmp_path / "small")
    torch.testing.assert_close(outputs(load(tmp_path / "small"), batch), expected, rtol=1e-5, atol=1e-5)


def test_an_untied_gpt2_says_so_in_its_configuration():
    model = made("gpt2")
    config = model.config
    apply(model, Rotate().plan(model))
    assert model.config.tie_word_embeddings is False and config.tie_word_embeddings is True
    assert model.lm_head.weight is not model.transformer.wte.weight


def test_a_bias_without_a_reader_to_take_it_in_is_refused_only_when_it_must():
    model = made("gpt")
    model.norm.weight.data[3] = 0.0
    with pytest.raises(UsageError, match="residual=False"):
        Rotate().plan(model)
    assert Rotate(residual=False).plan(model).decisions["stream"] is None
    model.norm.bias.data[3] = 0.0
    batch = next(Task(False).batches("train", 4, limit=4))
    expected = outputs(model, batch)
    torch.testing.assert_close(outputs(apply(model, Rotate().plan(model)), batch), expected, rtol=1e-5, atol=1e-5)


def test_folds_with_a_shift_keep_the_output_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4))
    nn.init.normal_(model[0].bias)
    x = torch.randn(3, 6)
    expected = model(x).detach()
    scale, shift = torch.rand(6) + 0.5, torch.randn(6)
    inner = (model[0](x).detach() - shift) / scale
    rescale(model, Fold("norm", "0", ("1",), 6), scale, shift)
    torch.testing.assert_close(model(x).detach(), expected)
    torch.testing.assert_close(model[0](x).detach(), inner)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: SmoothQuant(1.5), "alpha"),
        (lambda: SmoothQuant(kinds=("norms",)), "kinds"),
        (lambda: SmoothQuant(examples=0), "examples"),
        (lambda: AWQ(grid=0), "grid"),
        (lambda: AWQ(weights="tensor"), "weights"),
        (lambda: AWQ(bits=32), "bits"),
        (lambda: ClipWeights(smallest=0), "smallest"),
        (lambda: Rotate("hadamar"), "hadamar"),
        (lambda: Rotate(seed=-1), "seed"),
        (lambda: Equalize(rounds=0), "rounds"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(make, word):
    with pytest.raises(UsageError, match=word):
        make()


def test_no_task_no_data_and_damaged_plans_are_refused():
    model = made("encoder")
    with pytest.raises(UsageError, match="task"):
        SmoothQuant().plan(model)
    plan = SmoothQuant(batch_size=8).plan(model, Task(False)).to_json()
    plan["decisions"]["data"]["scale"]["blocks.0.norm1"] = "AAAA"
    with pytest.raises(ArtifactError, match="damaged"):
        apply(model, Plan.from_json(plan))
    plan["decisions"]["data"]["scale"]["blocks.0.norm1"] = ""
    with pytest.raises(ArtifactError):
        apply(model, Plan.from_json(plan))
    plan["decisions"]["paths"]["blocks.0.norm1"]["width"] = 31
    with pytest.raises(ArtifactError, match="31"):
        apply(model, Plan.from_json(plan))
