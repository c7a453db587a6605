"""Post-training quantization: kernels against the plain path and against naive products, replay, honesty about size."""

import copy
import json

import pytest
import torch
from small_models import MODELS, SETTINGS, Examples, convolutions, perceptron
from torch import nn
from torch.nn import functional

from limbeck.artifact import load, save
from limbeck.build import lineage
from limbeck.models import resnet
from limbeck.plan import Plan, apply
from limbeck.quantization import FoldBatchNorm, Quantize, QuantizedConv2d, QuantizedLinear, kernel_table, plain_kernels
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.kernels import integer_linear, prepare_linear
from limbeck.quantization.modules import fake_quantize_rows
from limbeck.quantization.specification import DynamicRange, Specification


def test_saving_and_loading_search_no_scales(tmp_path, monkeypatch):
    """The empty model beside which tensors are collected has no weights to search the scales of."""
    torch.manual_seed(3)
    model = resnet(8).eval()
    model = apply(model, Quantize(bits=4, weights=8, method="mse", activations=None).plan(model))
    x = Examples(3, 16, 16).x
    with torch.no_grad():
        expected = model(x)

    def never(*_):
        raise AssertionError("scales were searched")

    monkeypatch.setattr(Quantizer, "encode", never)
    save(model, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small")(x), expected)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_kernels_equal_the_plain_path_and_come_near_the_float_model(setting, model_name):
    make, task = MODELS[model_name]
    model = make()
    plan = Quantize(**SETTINGS[setting]).plan(model, task)
    quantized = apply(copy.deepcopy(model), plan)
    with torch.no_grad():
        expected = model(task.x)
        fast = torch.cat([quantized(task.x[:4]), quantized(task.x[4:])])
        with plain_kernels():
            plain = quantized(task.x)
    size = expected.abs().max()
    steps = 2.0 ** -min(plan.decisions["modules"][path]["weight"]["bits"] for path in plan.decisions["modules"])
    assert (fast - plain).abs().max() < size * (0.04 if "bfloat16" in setting or "a6" in setting else 0.01)
    assert (plain - expected).abs().max() < size * max(4 * steps, 0.1 if "a6" in setting else 0.05)


@pytest.mark.parametrize(("static", "bits"), [(True, 8), (False, 8), (False, 4)], ids=["static", "dynamic", "dynamic4"])
def test_one_module_on_its_kernel_is_exact(static, bits):
    """With one layer no activation can tip over to the next code: integer sums are the plain path's up to float rounding."""
    for model, task in (
        (nn.Sequential(nn.Linear(64, 16)), Examples(64)),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), Examples(3, 8, 8)),
    ):
        plan = Quantize(activations="static" if static else "dynamic", activation_bits=bits).plan(model.eval(), task)
        quantized = apply(copy.deepcopy(model), plan)
        assert kernel_table(quantized) == {"0": "int8 onednn"}
        x = task.x
        if static:  # values in the middle of their code, away from ties
            entry = plan.decisions["modules"]["0"]["input"]
            x = torch.round(x / entry["scale"]).clamp(-entry["zero_point"], 255 - entry["zero_point"]) * entry["scale"]
        with torch.no_grad():
            fast = quantized(x)
            with plain_kernels():
                plain = quantized(x)
        assert (fast - plain).abs().max() < 2e-5 * plain.abs().max()


def test_static_linear_equals_a_naive_integer_product():
    model, task = nn.Sequential(nn.Linear(20, 7)).eval(), Examples(20)
    plan = Quantize(calibration="minmax").plan(model, task)
    entry, low, high = plan.decisions["modules"]["0"], task.x.min().item(), task.x.max().item()
    scale, zero = (high - low) / 255, round(-low / ((high - low) / 255))
    assert entry["input"]["scale"] == pytest.approx(scale, rel=1e-6) and entry["input"]["zero_point"] == zero
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    out = apply(copy.deepcopy(model), plan)(task.x[:3]).detach()
    for row in range(3):
        codes = [min(max(round(v / scale) + zero, 0), 255) for v in task.x[row].tolist()]
        for column in range(7):
            step = weight[column].abs().max().item() / 127
            product = sum((q - zero) * round(w / step) for q, w in zip(codes, weight[column].tolist()))
            assert out[row, column].item() == pytest.approx(product * scale * step + bias[column].item(), abs=1e-3)


def test_integer_linear_without_onednn_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (16, 32), generator=generator, dtype=torch.int8)
    scale, bias = torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    unsigned = torch.randint(0, 256, (5, 32), generator=generator, dtype=torch.uint8)
    signed = torch.randint(-127, 128, (5, 32), generator=generator, dtype=torch.int8)
    for codes, zero in ((unsigned, 77), (signed, 0)):
        expected = functional.linear(
            (codes.double() - zero) * 0.02, weight.double() * scale[:, None].double(), bias.double()
        )
        first = integer_linear(codes, 0.02, zero, prepare_linear(weight, scale), bias)
        monkeypatch.setattr("limbeck.quantization.kernels.available", lambda name: False)
        second = integer_linear(codes, 0.02, zero, prepare_linear(weight, scale), bias)
        monkeypatch.undo()
        for found in (first, second):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dynamic_inputs_against_a_naive_loop(bits):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    x[2] = 0
    expected = []
    for row in x.tolist():
        step = max(map(abs, row)) / (2 ** (bits - 1) - 1) or 1.0
        expected.append([round(value / step) * step for value in row])
    torch.testing.assert_close(fake_quantize_rows(x, bits), torch.tensor(expected))
    made = Specification(input=DynamicRange(bits))
    assert Specification.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("activations", ["static", "dynamic", None])
def test_replay_on_an_empty_model_gives_the_same_bits(activations):
    task = Examples(3, 16, 16)
    torch.manual_seed(3)
    model = resnet(8).eval()
    model = apply(model, FoldBatchNorm().plan(model))
    quantized = apply(model, Quantize(activations=activations).plan(model, task))
    plans = [Plan.from_json(json.loads(json.dumps(plan.to_json()))) for plan in lineage(quantized).plans]
    assert [plan.kind for plan in plans] == ["fold_batch_norm", "quantize"]
    empty = resnet(8).eval()
    for plan in plans:
        empty = apply(empty, plan)
    empty.load_state_dict(quantized.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(empty(task.x), quantized(task.x))
        assert torch.equal(copy.deepcopy(quantized)(task.x), quantized(task.x))


@pytest.mark.parametrize("setting", SETTINGS)
def test_nbytes_is_the_sum_of_what_is_stored(setting):
    model, task = convolutions(), Examples(3, 8, 8)
    quantized = apply(copy.deepcopy(model), Quantize(**SETTINGS[setting]).plan(model, task))
    quantized(task.x[:2])
    for module in quantized.modules():
        if isinstance(module, (QuantizedConv2d, QuantizedLinear)):
            assert module.nbytes == sum(t.numel() * t.element_size() for t in module.state_dict().values())
            bits, weights = module.bits, module.weight.numel()
            assert module.weight_codes.numel() * module.weight_codes.element_size() < weights * bits / 8 + len(
                module.weight
            )
            assert not any(p is not module.bias for p in module.parameters())
    assert set(quantized.state_dict()) == {
        f"{path}.{name}"
        for path, module in quantized.named_modules()
        if hasattr(module, "weight_codes")
        for name in module.state_dict()
    }


def test_what_stays_in_float_is_listed_with_its_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(9, 16), nn.LayerNorm(16)
            self.attention = nn.MultiheadAttention(16, 2)
            self.used, self.unused, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 9, bias=False)
            self.odd = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.used(self.norm(x)))

    model = Mixed().eval()
    plan = Quantize().plan(model, Examples(16))
    left = plan.decisions["left_alone"]
    assert list(plan.decisions["modules"]) == ["used"]
    assert "tied to embedding" in left["head"] and "never reached" in left["unused"]
    assert "padding mode 'reflect'" in left["odd"] and "LayerNorm" in left["norm"] and "Embedding" in left["embedding"]
    assert "attention" in left and "attention.out_proj" in left
    assert Quantize(ignore="used", activations=None).plan(model).decisions["left_alone"]["used"] == "ignored"
    assert set(Quantize(only="u*", activations=None).plan(model).decisions["modules"]) == {"used", "unused"}


def test_bits_32_changes_nothing():
    model, x = perceptron(), torch.randn(4, 64)
    plan = Quantize(bits=32).plan(model)
    assert plan.decisions["modules"] == {}
    assert torch.equal(apply(copy.deepcopy(model), plan)(x), model(x))


def test_planning_leaves_the_model_as_it_was():
    model, task = resnet(8).train(), Examples(3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    Quantize().plan(model, task)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_padded_positions_do_not_widen_ranges():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, embeddings, attention_mask):
            return self.proj(embeddings)

    task = Examples(6, 4, count=8, key="embeddings")
    task.x[:, 4:] *= 1000
    task.extra = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]).expand(8, 6)}
    entry = Quantize(calibration="minmax").plan(Encoder(), task).decisions["modules"]["proj"]["input"]
    seen = task.x[:, :4]
    assert entry["scale"] == pytest.approx(((seen.max() - seen.min()) / 255).item(), rel=1e-5)


def test_a_module_that_runs_twice_is_calibrated_on_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x):
            return self.proj(x) + self.proj(0.001 * x)

    task = Examples(4)
    entry = Quantize(calibration="minmax").plan(Twice(), task).decisions["modules"]["proj"]["input"]
    assert entry["scale"] == pytest.approx(((task.x.max() - task.x.min()) / 255).item(), rel=1e-5)


@pytest.mark.parametrize("activations", ["static", "dynamic", None])
def test_gradients_reach_inputs_and_biases(activations):
    model, task = convolutions(), Examples(3, 8, 8)
    quantized = apply(copy.deepcopy(model), Quantize(activations=activations).plan(model, task))
    x = task.x[:4].clone().requires_grad_()
    quantized(x).square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert quantized.last.bias.grad.abs().sum() > 0


def test_shapes_types_and_layouts_are_those_of_the_float_module():
    quantized = apply(
        nn.Sequential(nn.Linear(8, 4)), Quantize(activations="dynamic").plan(nn.Sequential(nn.Linear(8, 4)))
    )
    for shape in ((8,), (2, 8), (2, 3, 8), (0, 8), (2, 0, 8)):
        assert quantized(torch.zeros(shape)).shape == (*shape[:-1], 4)
    assert quantized(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model = convolutions()
    quantized = apply(model, Quantize(activations="dynamic").plan(model)).first
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert quantized(x).is_contiguous()
        assert quantized(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(quantized(x[0]), quantized(x)[0])


def test_loading_other_weights_is_noticed_by_the_kernels():
    model, task = perceptron(), Examples(64)
    plan = Quantize().plan(model, task)
    first = apply(copy.deepcopy(model), plan)
    torch.manual_seed(9)
    other = apply(
        nn.Sequential(*[type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in model]), plan
    )
    with torch.no_grad():
        before, expected = first(task.x), other(task.x)
        first.load_state_dict(other.state_dict())
        assert torch.equal(first(task.x), expected) and not torch.equal(before, expected)


def test_transformers_models_quantize_and_run():
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 50,
    }
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**sizes)).eval()
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16)).eval()
    ids = torch.randint(0, 50, (16, 8), generator=torch.Generator().manual_seed(0))

    class Tokens:
        def batches(self, split, batch_size, *, limit=None, **_):
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    for model, expected in ((bert, 2 * 6 + 1), (gpt, 2 * 4)):
        for quantize in (Quantize(), Quantize(activations="dynamic"), Quantize(bits=4, weights=32, activations=None)):
            plan = quantize.plan(model, Tokens())
            assert len(plan.decisions["modules"]) == expected
            quantized = apply(copy.deepcopy(model), plan)
            with torch.no_grad():
                before, after = model(input_ids=ids)[0], quantized(input_ids=ids)[0]
            similarity = functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
            assert similarity > (0.97 if quantize.bits == 4 else 0.995)
    assert "tied" in Quantize(activations=None).plan(gpt).decisions["left_alone"]["lm_head"]
