"""Function-preserving transforms: what the float model computes stays, and what is rounded afterwards errs less."""

import copy
import json

import pytest
import torch
from torch import nn

from limbeck.artifact import load, save
from limbeck.build import build, lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import encoder, gpt, resnet, vit
from limbeck.models.mixture_of_experts import mixture_gpt
from limbeck.plan import Plan, apply
from limbeck.quantization import AWQ, ClipWeights, Equalize, FoldBatchNorm, Quantize, Rotate, SmoothQuant
from limbeck.quantization.equivalence.folds import Fold, rescale
from limbeck.quantization.equivalence.hadamard import hadamard, rotation
from limbeck.quantization.equivalence.layouts import layout
from limbeck.quantization.equivalence.smooth import smoothing_scale
from limbeck.signals import Tap, call, first_tensor

transformers = pytest.importorskip("transformers")
EVERY = ("norm", "value", "factor", "final", "relu")


class Task:
    def __init__(self, images):
        self.images = images

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(0)
        for _ in range(0, min(limit, 32), batch_size):
            if self.images:
                yield {"pixel_values": torch.randn(batch_size, 3, 8, 8, generator=draws)}
            else:
                yield {"input_ids": torch.randint(0, 40, (batch_size, 9), generator=draws)}


def llama():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def transformers_vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **sizes))


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.BertModel(transformers.BertConfig(vocab_size=40, **sizes))


def convolutions():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(model, nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 2))


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "transformers_vit": transformers_vit,
    "bert": bert,
    "vit": lambda: vit(8, 4, 2, depth=2, width=32, heads=4, distilled=True),
    "encoder": lambda: encoder(40, 2, 16, 2, 32, 4),
    "gpt": lambda: gpt(40, 16, 2, 24, 4),
    "rotary": lambda: gpt(40, 16, 2, 24, 4, rotary=True, tied=False),
    "mixture": lambda: mixture_gpt(40, 16, 2, 16, 4, experts=3, top=2),
    "convolutions": convolutions,
}
IMAGES = ("transformers_vit", "vit", "convolutions")
TRANSFORMS = {
    "smooth": SmoothQuant(0.7, EVERY, batch_size=8),
    "awq": AWQ(3, "channel", kinds=("norm", "value", "factor", "final"), batch_size=8),
    "hadamard": Rotate(),
    "random": Rotate("random", seed=3),
    "equalize": Equalize(("relu", "value", "factor")),
}
# what the tables know of each model: folds by kind, and whether its residual stream can be rotated
KNOWN = {
    "llama": ({"norm": 4, "value": 2, "factor": 2, "final": 1}, True),
    "gpt2": ({"norm": 4, "value": 2}, True),
    "transformers_vit": ({"norm": 4, "value": 2, "final": 1}, True),
    "bert": ({"value": 2}, False),
    "vit": ({"norm": 4, "value": 2, "final": 1}, True),
    "encoder": ({"norm": 4, "value": 2, "final": 1}, True),
    "gpt": ({"norm": 4, "value": 2}, True),
    "rotary": ({"norm": 4, "value": 2, "final": 1}, True),
    "mixture": ({"norm": 4, "value": 2}, True),
    "convolutions": ({"relu": 2}, False),
}


def made(name):
    torch.manual_seed(5)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def outputs(model, batch):
    with torch.no_grad():
        return first_tensor(call(model, batch))


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


def test_smoothing_scale_is_the_formula():
    activation, weight = torch.tensor([4.0, 0.0, 9.0]), torch.tensor([0.5, 1.0, 2.0])
    found = smoothing_scale(activation, weight, 0.25)
    torch.testing.assert_close(found, torch.tensor([4**0.25 / 0.5**0.75, 1.0, 9**0.25 / 2**0.75]).double())


def test_smoothquant_against_a_naive_pass():
    """alpha = 1: afterwards every channel that the projections read has the largest magnitude 1."""
    model, task = made("encoder"), Task(False)
    apply(model, SmoothQuant(1.0, batch_size=8, examples=32).plan(model, task))
    largest = torch.zeros(32)
    with torch.no_grad(), Tap(model, {"blocks.1.feed_forward.up:input"}) as tap:
        for batch in task.batches("train", 8, limit=32):
            largest = torch.maximum(largest, tap(batch)["blocks.1.feed_forward.up:input"].flatten(0, 1).abs().amax(0))
    torch.testing.assert_close(largest, torch.ones(32), rtol=1e-4, atol=1e-4)


def test_padding_does_not_count():
    model = made("encoder")

    class Padded(Task):
        def batches(self, split, batch_size, *, limit=None, **_):
            for batch in super().batches(split, batch_size, limit=limit):
                mask = torch.ones_like(batch["input_ids"])
                mask[:, 5:] = 0
                yield {
                    "input_ids": batch["input_ids"].where(mask == 1, torch.tensor(self.filler)),
                    "attention_mask": mask,
                }

    first, second = Padded(False), Padded(False)
    first.filler, second.filler = 0, 7
    plans = [SmoothQuant(batch_size=8).plan(model, task).digest for task in (first, second)]
    assert plans[0] == plans[1]


def rounded(weight, group, bits=3):
    """Asymmetric rounding to nearest per row and group, written anew."""
    out = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = round(-low / scale)
            out[row, start : start + group] = ((part / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale
    return out


def test_awq_against_a_naive_search():
    model, task = made("encoder"), Task(False)
    for channel in (3, 17):
        model.blocks[0].norm1.weight.data[channel] *= 12
    search = AWQ(3, "channel", grid=4, kinds="norm", batch_size=8, examples=16)
    plan = search.plan(model, task)
    inputs = []
    with torch.no_grad(), Tap(model, {"blocks.0.attention.query:input"}) as tap:
        for batch in task.batches("train", 8, limit=16):
            inputs.append(tap(batch)["blocks.0.attention.query:input"].flatten(0, 1))
    x = torch.cat(inputs)
    readers = [getattr(model.blocks[0].attention, name).weight.detach() for name in ("query", "key", "value")]
    errors = []
    for step in range(5):
        scale = x.abs().mean(0) ** (step / 4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        errors.append(sum(float(((x / scale) @ rounded(w * scale, 32).T - x @ w.T).square().sum()) for w in readers))
    best = min(range(5), key=errors.__getitem__)
    assert best > 0 and plan.decisions["exponents"]["blocks.0.norm1"] == best / 4
    assert errors[best] < 0.8 * errors[0]


def test_clip_limits_against_a_naive_search():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 3))
    layer[0].weight.data[0, 1], layer[0].weight.data[2, 6] = 3.0, -2.0
    x = torch.randn(40, 8)

    class Rows:
        def batches(self, split, batch_size, **_):
            yield {"input": x}

    clip = ClipWeights(3, 4, False, steps=10, smallest=0.3)
    weight = layer[0].weight.detach().clone()
    apply(layer, clip.plan(layer, Rows()))
    for row in range(3):
        for start in (0, 4):
            part = weight[row, start : start + 4]
            limits = [float(part.abs().max()) * (1 - step / 10) for step in range(8)]

            def error(limit, part=part, start=start):
                change = rounded(part.clamp(-limit, limit)[None], 4)[0] - part
                return float((x[:, start : start + 4] @ change).square().sum())

            best = min(limits, key=error)
            torch.testing.assert_close(layer[0].weight[row, start : start + 4].detach(), part.clamp(-best, best))


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 40, 64, 96, 768])
def test_hadamard_matrices(order):
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0} and (matrix[:, 0] == 1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize(("size", "keep_mean"), [(16, False), (16, True), (10, False), (10, True)])
def test_rotations_are_orthogonal_and_keep_the_mean_where_asked(kind, size, keep_mean):
    turn = rotation(size, kind, 4, keep_mean)
    torch.testing.assert_close(turn @ turn.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    ones = torch.ones(size, dtype=torch.float64)
    assert torch.allclose(turn @ ones, ones) == keep_mean
    assert turn.square().amax() < 0.9 and not torch.equal(turn, rotation(size, kind, 5, keep_mean))


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
