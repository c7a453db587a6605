"""Laws that every transform keeps. A new public transform without an entry in TRANSFORMS fails the first test."""

import copy
import functools
import inspect
import json

import pytest
import torch
from mixtures import MIXTRAL
from torch import nn

import limbeck.conversion
import limbeck.factorization
import limbeck.pruning
import limbeck.quantization
from limbeck.artifact import load, save
from limbeck.build import build, lineage
from limbeck.conversion import AlignClassifier, GrowClassifier, Replace, SplitExperts
from limbeck.errors import ArtifactError
from limbeck.factorization import LowRank
from limbeck.models import encoder, mixture_gpt, resnet, transformer, vit
from limbeck.plan import KINDS, Plan, apply
from limbeck.pruning import (
    ActivationNorm,
    AngularDistance,
    EvenSpacing,
    Magnitude,
    Prune,
    PruneLayers,
    Sparsify,
    Taylor,
    TrimVocabulary,
)
from limbeck.quantization import (
    AWQ,
    ClipWeights,
    Equalize,
    ExpertBits,
    FoldBatchNorm,
    MixedPrecision,
    OrderNeurons,
    Quantize,
    QuantizeEmbeddings,
    QuantizeSoftmax,
    Reparameterize,
    RepQuant,
    Rotate,
    ScoredBits,
    SmoothQuant,
)
from limbeck.signals import call, first_tensor

SMALL = {"batches": 2, "batch_size": 4}


class Task:
    """Seeded noise. Reading any split but the train split fails, and so does drawing from the global generator."""

    def __init__(self, images):
        self.images = images

    def example(self, batch_size=1):
        return self._batch(batch_size, 99)

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        assert split == "train" and not augment
        for number in range(skip, 4):
            labels = torch.randint(0, 2, (batch_size,), generator=torch.Generator().manual_seed(number))
            yield {**self._batch(batch_size, number), "labels": labels}

    def loss(self, logits, batch):
        return nn.functional.cross_entropy(logits, batch["labels"])

    def _batch(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        if self.images:
            return {"pixel_values": torch.randn(count, 3, 8, 8, generator=generator)}
        mask = torch.ones(count, 9, dtype=torch.long)
        mask[0, 6:] = 0
        return {"input_ids": torch.randint(0, 40, (count, 9), generator=generator), "attention_mask": mask}


MODELS = {
    "resnet": (lambda: resnet(14, 2), Task(images=True)),
    "vit": (lambda: vit(8, 4, 2, depth=3, width=32, heads=4), Task(images=True)),
    "encoder": (lambda: encoder(40, 2, 16, 3, 32, 4), Task(images=False)),
    "mixtral": (lambda: transformer("AutoModelForCausalLM", MIXTRAL), Task(images=False)),
    "mixture": (lambda: mixture_gpt(40, 16, 2, 16, 2, experts=4, top=2), Task(images=False)),
}
USUAL = ("resnet", "vit", "encoder")

# name -> (transform, the same one set to change nothing or None where it has no such setting, do its weights still train)
TRANSFORMS = {
    "Prune-taylor": (Prune(Taylor(**SMALL)), Prune(Taylor(**SMALL), keep=1.0), True),
    "Prune-layer": (Prune(Magnitude(), keep=0.5, scope="layer"), Prune(Magnitude(), keep=1.0, scope="layer"), True),
    "Prune-flops": (Prune(ActivationNorm(**SMALL), keep_flops=0.7), Prune(ActivationNorm(**SMALL), keep_flops=1.0), True),
    "PruneLayers-angular": (PruneLayers(0.67, scorer=AngularDistance(**SMALL)), PruneLayers(1.0), True),
    "PruneLayers-even": (PruneLayers(0.67, scorer=EvenSpacing()), PruneLayers(1.0, scorer=EvenSpacing()), True),
    "TrimVocabulary": (TrimVocabulary(least=0.03), TrimVocabulary(range(40)), True),
    "OrderNeurons": (OrderNeurons(), None, True),
    "Sparsify": (Sparsify(0.6), Sparsify(0.0), True),
    "Sparsify-2:4": (Sparsify(pattern="2:4", scorer=Taylor(**SMALL)), None, True),
    "LowRank": (LowRank(energy=0.6), LowRank(rank=10_000), True),
    "LowRank-data": (LowRank(keep_parameters=0.5, data_aware=True, **SMALL), LowRank(energy=1.0, data_aware=True, **SMALL), True),
    "AlignClassifier": (AlignClassifier(1), None, True),
    "GrowClassifier": (GrowClassifier(5), GrowClassifier(2), True),
    "Replace": (Replace("blocks.*.feed_forward", "limbeck.models.layers:FeedForward", {"width": 32, "hidden": 16}), None, True),
    "SplitExperts": (SplitExperts(), SplitExperts(), True),
    "FoldBatchNorm": (FoldBatchNorm(), FoldBatchNorm(), True),
    "SmoothQuant": (SmoothQuant(batch_size=4), SmoothQuant(batch_size=4), True),
    "AWQ": (AWQ(4, 16, grid=4, batch_size=4), AWQ(4, 16, grid=4, batch_size=4), True),
    "ClipWeights": (ClipWeights(4, 16, batch_size=4), ClipWeights(4, 16, steps=1, batch_size=4), True),
    "Equalize": (Equalize(("value", "relu")), Equalize(("value", "relu")), True),
    "Rotate": (Rotate(), Rotate(), True),
    "QuantizeSoftmax": (QuantizeSoftmax(batch_size=4), None, True),
    "Reparameterize": (Reparameterize(batch_size=4), Reparameterize(batch_size=4), True),
    "RepQuant": (RepQuant(8, 8, 8, batch_size=4), None, False),
    "ScoredBits": (ScoredBits(("shared", "outliers"), average_bits=3), None, False),
    "MixedPrecision": (MixedPrecision(average_bits=5, examples=8, batch_size=4), MixedPrecision(32, average_bits=32), False),
    "ExpertBits": (ExpertBits(quantize=Quantize(weights=8, activations=None), examples=8, batch_size=4), None, False),
    "QuantizeEmbeddings": (QuantizeEmbeddings(), QuantizeEmbeddings(32), False),
    "QuantizeEmbeddings-4": (QuantizeEmbeddings(4, 16), None, False),
    "Quantize-static": (Quantize(examples=8, batch_size=4), Quantize(bits=32), False),
    "Quantize-gptq": (Quantize(bits=4, activations=None, rounding="gptq", batch_size=4), Quantize(bits=32), False),
    "Quantize-groups": (Quantize(bits=4, weights=16, activations=None), Quantize(bits=32), False),
    "Quantize-ternary": (Quantize(grid="ternary", weights="tensor", activations="dynamic"), Quantize(bits=32), False),
    "Quantize-codebooks": (Quantize(grid="kmeans", bits=3, activations=None), Quantize(bits=32), False),
}  # fmt: skip
ROOMS = (limbeck.conversion, limbeck.pruning, limbeck.factorization, limbeck.quantization)
ONLY = {
    "Replace": ("vit", "encoder"),
    "TrimVocabulary": ("encoder",),
    "QuantizeEmbeddings": ("encoder", "mixtral"),
    "QuantizeEmbeddings-4": ("encoder", "mixtral"),
    "SplitExperts": ("mixtral",),
    "ExpertBits": ("mixture",),
}  # models that have what is transformed
CASES = [(name, model) for name in TRANSFORMS for model in MODELS if model in ONLY.get(name, USUAL)]
each = pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{n}-{m}" for n, m in CASES])


def made(kind):
    """A model whose weights, batch statistics and modes are none of the initial ones."""
    torch.manual_seed(3)
    model = MODELS[kind][0]()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer) * 0.2)
    return model.eval()


@functools.cache
def planned(name, kind):
    return TRANSFORMS[name][0].plan(made(kind), MODELS[kind][1])


def outputs(model, kind, count=3):
    with torch.no_grad():
        return first_tensor(call(model.eval(), MODELS[kind][1].example(count)))


def test_every_public_transform_is_here():
    public = {
        getattr(room, name)
        for room in ROOMS
        for name in room.__all__
        if inspect.isclass(getattr(room, name)) and hasattr(getattr(room, name), "plan")
    }
    assert public == {type(transform) for transform, _, _ in TRANSFORMS.values()}


@each
def test_plan_leaves_the_model_the_generator_and_the_training_state_as_they_were(name, kind):
    model = made(kind)
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    for module in list(model.modules())[::2]:
        module.training = True
    state = {k: v.clone() for k, v in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    modes, past = [m.training for m in model.modules()], lineage(model)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    TRANSFORMS[name][0].plan(model, MODELS[kind][1])
    assert torch.equal(torch.rand(3), expected), "global randomness was used"
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert lineage(model) == past


@each
def test_the_same_model_and_data_give_the_same_plan_as_plain_json(name, kind):
    plan = planned(name, kind)
    torch.manual_seed(77)
    assert TRANSFORMS[name][0].plan(made(kind), MODELS[kind][1]).digest == plan.digest
    again = Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))
    assert again == plan and again.kind in KINDS


@each
def test_a_plan_from_json_gives_the_same_weights_whatever_the_seed(name, kind):
    model = made(kind)
    plan = planned(name, kind)
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    first = apply(model, plan)
    torch.manual_seed(2)
    second = apply(twin, Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    assert list(first.state_dict()) == list(second.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


@each
def test_the_lineage_rebuilds_the_architecture_and_strict_loading_the_outputs(name, kind, tmp_path):
    model = made(kind)
    before = lineage(model)
    small = apply(model, planned(name, kind))
    past = lineage(small)
    assert past.factory == before.factory and len(past.plans) == len(before.plans) + 1
    expected = outputs(small, kind)
    assert expected.isfinite().all()
    fresh = build(past.factory, past.plans)
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(outputs(fresh, kind), expected)
    save(small, tmp_path / "artifact")
    assert torch.equal(outputs(load(tmp_path / "artifact"), kind), expected)


@each
def test_the_neutral_setting_is_the_identity(name, kind):
    neutral = TRANSFORMS[name][1]
    if neutral is None:
        pytest.skip("it has no such setting")
    model = made(kind)
    expected = outputs(model, kind)
    found = outputs(apply(model, neutral.plan(model, MODELS[kind][1])), kind)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@each
def test_one_example_and_many_agree(name, kind):
    model = made(kind)
    small = apply(model, planned(name, kind))
    batch = MODELS[kind][1].example(3)
    with torch.no_grad():
        together = first_tensor(call(small.eval(), batch))
        single = torch.cat([first_tensor(call(small, {k: v[i : i + 1] for k, v in batch.items()})) for i in range(3)])
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)


@each
def test_gradients_reach_every_weight_that_still_trains(name, kind):
    if not TRANSFORMS[name][2]:
        pytest.skip("integer weights do not train")
    model = made(kind)
    small = apply(model, planned(name, kind)).train()
    first_tensor(call(small, MODELS[kind][1].example(4))).square().sum().backward()
    for path, parameter in small.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None and parameter.grad.isfinite().all(), path
    assert any(parameter.grad.abs().max() > 0 for parameter in small.parameters())


@each
def test_no_parameter_is_added(name, kind):
    """Folding moves a shift into a bias; everything else only takes away. Masks leave the size as it is."""
    if name == "GrowClassifier":
        pytest.skip("new classes need new rows")
    model = made(kind)
    before = sum(p.numel() for p in model.parameters())
    small = apply(model, planned(name, kind))
    after = sum(p.numel() for p in small.parameters())
    assert after <= before
    if name.startswith("Sparsify"):
        assert after == before
    if name.startswith(("Prune", "LowRank")):
        assert after < before


@each
def test_a_plan_for_another_model_is_refused(name, kind):
    plan = planned(name, kind)
    changes = [v for k, v in plan.decisions.items() if k in ("kept", "ranks", "paths", "modules", "pairs") and v]
    if not changes:
        pytest.skip("nothing to change in this model")
    with pytest.raises(ArtifactError):
        apply(nn.Sequential(nn.Linear(2, 2)), plan)


@each
def test_a_plan_survives_a_change_of_dtype(name, kind):
    """Planned in float32, applied to a bfloat16 copy: the same names and shapes, and finite outputs."""
    if not TRANSFORMS[name][2]:
        pytest.skip("integer kernels state their own types")
    model = made(kind)
    plan = planned(name, kind)
    half = apply(copy.deepcopy(model).to(torch.bfloat16), plan)
    single = apply(model, plan)
    assert {k: v.shape for k, v in half.state_dict().items()} == {k: v.shape for k, v in single.state_dict().items()}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    batch = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in MODELS[kind][1].example(2).items()}
    with torch.no_grad():
        assert first_tensor(call(half.eval(), batch)).isfinite().all()
