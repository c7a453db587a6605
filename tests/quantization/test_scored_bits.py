"""Bits by scores: every score against its definition, and the larger width where it belongs."""

import itertools

import pytest
import torch
from small_mixture import Tokens, mixture
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import encoder, resnet
from limbeck.plan import apply
from limbeck.quantization import Quantize, ScoredBits
from limbeck.quantization.scored_bits import SimilarityPredictor, fit_similarity, highest_first, outlier_score
from limbeck.signals import call

QUICK = {"examples": 16, "batch_size": 8, "quantize": Quantize(weights=8, activations=None)}


def given(plan):
    return {path: entry["weight"]["bits"] for path, entry in plan.decisions["modules"].items()}


def test_outlier_score_against_loops():
    torch.manual_seed(0)
    weight = torch.randn(5, 4)
    expected = max(
        max(abs(float(weight[i, j])) for i in range(5)) / (sum(abs(float(weight[i, j])) for i in range(5)) / 5)
        for j in range(4)
    )
    assert outlier_score(weight) == pytest.approx(expected, rel=1e-5)
    weight[:, 2] = 0
    assert outlier_score(weight) > 0 and outlier_score(torch.zeros(3, 2)) == 0.0


def test_highest_first_keeps_to_the_mean_and_to_the_order():
    numbers = {"a": 100, "b": 300, "c": 100, "d": 500}
    scores = {"a": (0.0, 9.0), "b": (1.0, 0.0), "c": (1.0, 5.0), "d": (2.0, 0.0)}
    assert highest_first(scores, numbers, 2, 4, 3.0) == {"d": 4, "a": 2, "b": 2, "c": 2}
    assert highest_first(scores, numbers, 2, 4, 2.8) == {"d": 2, "c": 4, "b": 4, "a": 2}  # d would not fit
    with pytest.raises(UsageError, match="average_bits"):
        highest_first(scores, numbers, 3, 4, 2.5)


def test_usage_is_the_share_of_tokens_by_a_loop():
    model = mixture()
    scored = ScoredBits(("usage",), **QUICK)
    found = scored.usage(model, Tokens())
    counts, tokens = torch.zeros(4), 0
    hidden = []
    handle = model.blocks[1].feed_forward.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    with torch.no_grad():
        for batch in Tokens().batches("train", 8, limit=16):
            call(model, batch)
        handle.remove()
        for token in torch.cat(hidden).flatten(0, 1):
            probabilities = model.blocks[1].feed_forward.router(token).softmax(-1).tolist()
            for expert in sorted(range(4), key=lambda i: -probabilities[i])[:2]:
                counts[expert] += 1
            tokens += 1
    assert found["blocks.1.feed_forward"] == pytest.approx((counts / tokens).tolist())
    plan = scored.plan(model, Tokens())
    for path, (score,) in plan.decisions["scores"].items():
        owner, _, expert = path.partition(".experts.")
        assert score == (found[owner][int(expert[0])] if expert else 1.0)


def test_importance_is_one_minus_the_cosine_of_the_stream():
    model = mixture()
    found = ScoredBits(("importance",), **QUICK).similarity(model, Tokens(), False)
    values = []
    with torch.no_grad():
        for batch in Tokens().batches("train", 8, limit=16):
            x = model.tokens(batch["input_ids"]) + model.positions(torch.arange(8))
            mask = torch.ones(8, 8, dtype=torch.bool).tril()
            block = model.blocks[0]
            x = x + block.attention(block.norm1(x), mask)
            after = x + block.feed_forward(block.norm2(x))
            values.append((x * after).sum(-1) / (x.norm(dim=-1) * after.norm(dim=-1)))
    assert found["blocks.0"] == pytest.approx(float(torch.cat(values).mean()), rel=1e-4)


def test_the_predictor_is_its_formula_and_learns():
    torch.manual_seed(0)
    x = torch.randn(600, 6)
    target = F.cosine_similarity(x, x + 2 * x.flip(-1), dim=-1)
    state = torch.get_rng_state()
    model = fit_similarity(x[:500], target[:500], steps=100)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        own = torch.tanh((x @ model.first.weight.T).clamp(min=0) @ model.last.weight[0])
        torch.testing.assert_close(model(x), own)
        error = (model(x[500:]) - target[500:]).square().mean()
    assert error < 0.5 * target[500:].var() and model.first.bias is None
    assert SimilarityPredictor(6).first.out_features == 1024


@pytest.mark.parametrize("score", ["shared", "first", "usage", "outliers", "importance", "predicted", "random"])
def test_the_mean_is_kept_and_the_plan_applies(score):
    model = mixture()
    plan = ScoredBits((score,), average_bits=3.0, **QUICK).plan(model, Tokens())
    bits = given(plan)
    numbers = {path: model.get_submodule(path).weight.numel() for path in bits}
    mean = sum(numbers[path] * width for path, width in bits.items()) / sum(numbers.values())
    assert 2.8 < mean <= 3.0 and set(bits.values()) == {2, 4}
    scores = plan.decisions["scores"]
    for first, second in itertools.permutations(bits, 2):
        if bits[first] < bits[second] and numbers[first] <= numbers[second]:
            assert scores[first] <= scores[second]
    with torch.no_grad():
        assert apply(model, plan)(torch.arange(8)[None]).isfinite().all()


def test_first_puts_early_blocks_first():
    bits = given(ScoredBits(("first",), average_bits=3.0, **QUICK).plan(mixture(), Tokens()))
    blocks = {at: [width for path, width in bits.items() if f"blocks.{at}." in path] for at in (0, 1)}
    assert min(blocks[0]) == 4 and max(blocks[1]) == 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"scores": ()}, "scores"),
        ({"scores": ("size",)}, "size"),
        ({"low": 4, "high": 4}, "low"),
        ({"average_bits": 5}, "average_bits"),
        ({"quantize": 3}, "quantize"),
        ({"examples": 0}, "examples"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, word):
    with pytest.raises(UsageError, match=word):
        ScoredBits(**settings)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="task"):
        ScoredBits().plan(encoder(30, 2, 8, 1, 16, 2))
    with pytest.raises(UsageError, match="transformer block"):
        ScoredBits(("importance",), quantize=Quantize(activations=None)).plan(resnet(8), Tokens())
