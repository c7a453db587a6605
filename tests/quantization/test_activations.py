"""Logarithmic and per-token quantizers, and scale reparameterization: against loops, and exact after the fold."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from limbeck.build import build, lineage
from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.measure.simulated import simulated_modules
from limbeck.models import gpt, vit
from limbeck.plan import Plan, apply, in_sequence
from limbeck.quantization import Quantize, QuantizeSoftmax, Reparameterize, RepQuant
from limbeck.quantization.activations import (
    BASES,
    QuantizedSoftmax,
    from_tokens,
    log_codes,
    log_values,
    per_token,
    quantized_share,
)
from limbeck.quantization.equivalence.reparameterize import channel_ranges, on_channel_grids
from limbeck.signals import Tap


class Images:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(0)
        for _ in range(0, min(limit, 32), batch_size):
            yield {"pixel_values": torch.randn(batch_size, 3, 8, 8, generator=draws)}


QUICK = {"examples": 32, "batch_size": 16}


def made():
    """A ViT whose norms give channels of very different size and place."""
    torch.manual_seed(2)
    model = vit(8, 4, 3, depth=2, width=32, heads=4).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for block in model.blocks:
        for norm in (block.norm1, block.norm2):
            norm.weight.data.mul_(torch.logspace(-1, 1, 32))
            norm.bias.data.add_(torch.randn(32) * torch.logspace(-1, 1, 32))
    return model


def batch():
    return next(Images().batches("train", 16, limit=16))


@pytest.mark.parametrize(("base", "number"), [("2", 2.0), ("sqrt2", math.sqrt(2))])
@pytest.mark.parametrize("zero", [True, False])
def test_logarithmic_codes_against_a_loop(base, number, zero):
    values = torch.tensor([0.0, 1e-9, 0.003, 0.01, 0.12, 0.26, 0.5, 0.71, 0.9, 1.4])
    delta = 0.9
    for x, found in zip(values.tolist(), quantized_share(values, delta, 4, base, zero).tolist()):
        code = 15 if x == 0 else min(max(round(-math.log(x / delta, number)), 0), 15)
        power = math.ceil(code * math.log2(number)) if base == "2" else math.ceil(code / 2)
        odd = base == "sqrt2" and code % 2
        expected = delta * 2.0**-power * (1 + (math.sqrt(2) - 1) * odd)
        assert found == pytest.approx(0.0 if zero and code == 15 else expected, rel=1e-5)


def test_codes_and_values_are_inverse_and_within_half_a_step():
    codes = torch.arange(16, dtype=torch.uint8)
    for base in (2.0, math.sqrt(2)):
        assert torch.equal(log_codes(log_values(codes, 0.7, 4, base), 0.7, 4, base), codes)
    x = torch.rand(1000) * 0.7
    ratio = quantized_share(x, 0.7, 6, "sqrt2", False) / x
    inside = x > 0.7 * 2 ** (-62 / 2)
    assert ratio[inside].log2().abs().max() <= 0.25 + 1e-5
    assert (quantized_share(x, 0.7, 4, "uniform") - x).abs().max() <= 0.7 / 30 + 1e-6


def test_per_token_against_a_loop():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7) * torch.tensor([0.01, 1.0, 100.0])[:, None]
    for bits, symmetric in ((8, True), (4, False), (3, True)):
        codes, scale, zero = per_token(x, bits, symmetric)
        assert scale.shape == zero.shape == (2, 3)
        found = from_tokens(codes, scale, zero)
        for i in range(2):
            for j in range(3):
                row = x[i, j].tolist()
                low, high = min(*row, 0.0), max(*row, 0.0)
                top = 2 ** (bits - 1) - 1
                step = max(-low, high) / top if symmetric else (high - low) / (2**bits - 1)
                assert float(scale[i, j]) == pytest.approx(step, rel=1e-5)
                assert (found[i, j] - x[i, j]).abs().max() <= step / 2 * 1.001 + (0 if symmetric else step / 2)


def test_sqrt2_is_nearer_to_attention_weights_than_base_2_and_uniform():
    torch.manual_seed(0)
    shares = (2 * torch.randn(64, 200)).softmax(-1)
    largest = shares.max()
    errors = {base: float((quantized_share(shares, largest, 4, base) - shares).square().sum()) for base in BASES}
    assert errors["sqrt2"] < 0.7 * errors["2"] and errors["sqrt2"] < 0.7 * errors["uniform"]


def test_softmax_modules_are_replaced_say_that_they_simulate_and_reload():
    model = made()
    plan = Plan.from_json(json.loads(json.dumps(QuantizeSoftmax(8, **QUICK).plan(model, Images()).to_json())))
    assert set(plan.decisions["paths"]) == {"blocks.0.attention.weights", "blocks.1.attention.weights"}
    with torch.no_grad():
        expected = model(**batch())
        apply(model, plan)
        found = model(**batch())
    assert 0 < (found - expected).abs().max() < 0.3
    assert simulated_modules(model) == list(plan.decisions["paths"])
    with torch.no_grad(), Tap(model, {"blocks.0.attention.weights"}) as tap:
        shares = tap(batch())["blocks.0.attention.weights"]
    assert len(shares.unique()) <= 256
    past = lineage(model)
    fresh = build(past.factory, past.plans)
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**batch()), found)


def test_a_mask_keeps_its_zeros():
    model = gpt(20, 8, 1, 16, 2).eval()

    class Tokens:
        def batches(self, *_, **__):
            yield {"input_ids": torch.arange(16).view(2, 8)}

    apply(model, QuantizeSoftmax(4, examples=2).plan(model, Tokens()))
    with torch.no_grad(), Tap(model, {"blocks.0.attention.weights"}) as tap:
        shares = tap({"input_ids": torch.arange(8)[None]})["blocks.0.attention.weights"]
    assert (shares.triu(1) == 0).all()


def test_clipping_is_the_best_of_its_grid_per_channel():
    torch.manual_seed(0)
    x = torch.randn(5000, 3)
    x[0, 0], x[1, 1] = 30.0, -12.0
    low, high = channel_ranges(x, 3, "clipping")
    errors = {}
    for method in ("clipping", "percentile", "minmax"):
        errors[method] = (on_channel_grids(x, *channel_ranges(x, 3, method), 3) - x).square().sum(0)
    assert (errors["clipping"] <= errors["minmax"]).all() and errors["clipping"][0] < 0.7 * errors["minmax"][0]
    assert high[0] < 20 and low[1] > -11


@pytest.mark.parametrize("ranges", ["clipping", "percentile", "minmax"])
def test_one_scale_per_layer_after_the_fold_is_one_per_channel_before(ranges):
    """Exactly: the codes of the folded input on the common grid are those of each channel's own grid."""
    model, bits = made(), 4
    plan = Reparameterize(bits, ranges, **QUICK).plan(model, Images())
    layer = "blocks.1.attention.query"
    rows = []
    with torch.no_grad(), Tap(model, {f"{layer}:input", "logits"}) as tap:
        for given in Images().batches("train", 16, limit=32):
            rows.append(tap(given)[f"{layer}:input"].flatten(0, 1))
        signals = tap(batch())
    x = signals[f"{layer}:input"]
    own = on_channel_grids(x, *channel_ranges(torch.cat(rows), bits, ranges), bits)
    before = own @ model.get_submodule(layer).weight.T + model.get_submodule(layer).bias
    apply(model, plan)
    with torch.no_grad(), Tap(model, {f"{layer}:input", "logits"}) as tap:
        after = tap(batch())
    torch.testing.assert_close(after.logits, signals.logits, rtol=1e-5, atol=1e-5)
    entry, reader = plan.decisions["ranges"][layer], model.get_submodule(layer)
    codes = (torch.round(after[f"{layer}:input"] / entry["scale"]) + entry["zero_point"]).clamp(0, 15)
    common = (codes - entry["zero_point"]) * entry["scale"]
    wrong = (common @ reader.weight.T + reader.bias - before).detach().abs() > 1e-3
    assert wrong.float().mean() < 0.02  # a value on the border between two codes may fall on either side


def test_norms_without_a_bias_are_left_alone():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, **sizes, bos_token_id=1, eos_token_id=2)
    )
    plan = Reparameterize().plan(model, None)
    assert plan.decisions["paths"] == {} and "model.layers.0.mlp.up_proj" in plan.decisions["left_alone"]


def test_repquant_beats_one_range_per_layer_and_replays():
    model = made()
    plain = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**batch())
    whole = RepQuant(8, 4, 8, rounding="nearest", **QUICK)
    plan = Plan.from_json(json.loads(json.dumps(whole.plan(model, Images()).to_json())))
    assert [part["kind"] for part in plan.decisions["plans"]] == ["rescale", "quantize_softmax", "quantize"]
    ranges = plan.decisions["plans"][0]["decisions"]["ranges"]
    modules = plan.decisions["plans"][2]["decisions"]["modules"]
    assert all(modules[path]["input"] == entry for path, entry in ranges.items()) and len(ranges) == 8
    apply(model, plan)
    apply(plain, Quantize(activation_bits=4, **QUICK).plan(plain, Images()))
    with torch.no_grad():
        error, usual = ((each(**batch()) - expected).square().mean() for each in (model, plain))
    assert error < 0.7 * usual
    past = lineage(model)
    parts = past.plans[-1].decisions["plans"]
    assert all("data" not in part["decisions"] for part in parts) and len(past.plans) == 1
    fresh = build(past.factory, past.plans)
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**batch()), model(**batch()))


def test_gptq_in_a_sequence():
    model = made()
    apply(model, RepQuant(4, 8, 8, **QUICK).plan(model, Images()))
    with torch.no_grad():
        assert model(**batch()).isfinite().all()


def test_a_sequence_carries_out_its_plans_in_order():
    model = made()
    task = Images()
    twin = copy.deepcopy(model)
    first = Reparameterize(**QUICK).plan(model, task)
    second = QuantizeSoftmax(**QUICK).plan(model, task)
    apply(model, in_sequence(first, second))
    apply(apply(twin, first), second)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))
    assert isinstance(model.blocks[0].attention.weights, QuantizedSoftmax)
    with pytest.raises(ArtifactError):
        apply(made(), Plan("sequence", {"plans": [{"kind": "nothing", "version": 1, "decisions": {}}]}))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: QuantizeSoftmax(1), "bits"),
        (lambda: QuantizeSoftmax(base="3"), "base"),
        (lambda: QuantizeSoftmax(examples=0), "examples"),
        (lambda: Reparameterize(9), "9"),
        (lambda: Reparameterize(32), "32"),
        (lambda: Reparameterize(ranges="mse"), "ranges"),
        (lambda: RepQuant(softmax_bits=9), "bits"),
        (lambda: RepQuant(rounding="best"), "best"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(make, word):
    with pytest.raises(UsageError, match=word):
        make()


def test_missing_data_and_damaged_plans_are_refused():
    model = made()
    for transform in (QuantizeSoftmax(), Reparameterize()):
        with pytest.raises(UsageError, match="task"):
            transform.plan(model)

    class Empty:
        def batches(self, *_, **__):
            return iter(())

    with pytest.raises(DataError):
        QuantizeSoftmax().plan(model, Empty())
    entry = {"bits": 4, "base": "sqrt2", "zero": True, "dim": -1, "delta": -1.0}
    with pytest.raises(ArtifactError, match="allowed"):
        apply(model, Plan("quantize_softmax", {"paths": {"blocks.0.attention.weights": entry}}))
    with pytest.raises(ArtifactError, match="softmax"):
        apply(model, Plan("quantize_softmax", {"paths": {"head": entry}}))
    assert isinstance(model.blocks[0].attention.weights, nn.Softmax)
