"""Law: every model that any transform changed is saved and loaded to the same outputs, bit for bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from mixtures import MIXTRAL
from torch import nn

from limbeck.artifact import load, save
from limbeck.build import lineage
from limbeck.conversion import AlignClassifier, GrowClassifier, Replace, SplitExperts
from limbeck.factorization import LowRank
from limbeck.models import encoder, gpt, resnet, sentence_encoder, transformer, vit
from limbeck.plan import KINDS, apply
from limbeck.pruning import EvenSpacing, Magnitude, Prune, PruneLayers, Sparsify, TrimVocabulary
from limbeck.quantization import (
    AWQ,
    ClipWeights,
    FoldBatchNorm,
    MixedPrecision,
    Quantize,
    QuantizeEmbeddings,
    QuantizeSoftmax,
    RepQuant,
    Rotate,
    SmoothQuant,
)
from limbeck.signals import call, first_tensor
from limbeck.tasks import CustomTask
from limbeck.weights import weights_digest

BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
MODELS = {
    "resnet": lambda: resnet(14, classes=3, channels=1, width=8),
    "vit": lambda: vit(size=8, patch=4, classes=3, channels=1, depth=2, width=16, heads=2),
    "gpt": lambda: gpt(40, length=8, depth=2, width=16, heads=2),
    "encoder": lambda: encoder(40, classes=3, length=8, depth=2, width=16, heads=2),
    "transformer": lambda: transformer("AutoModelForSequenceClassification", {**BERT, "num_labels": 3}),
    "sentence encoder": lambda: sentence_encoder(BERT),
}
ALL_MODELS = {**MODELS, "mixtral": lambda: transformer("AutoModelForCausalLM", MIXTRAL)}
TRANSFORMS = {
    "nothing": (),
    "pruned": (Prune(Magnitude(), keep=0.5, round_to=4),),
    "pruned layers": (PruneLayers(keep=0.5, scorer=EvenSpacing()),),
    "sparse": (Sparsify(0.5),),
    "low rank": (LowRank(keep_parameters=0.5),),
    "int8 static": (Quantize(),),
    "int8 dynamic": (Quantize(activations="dynamic"),),
    "int4 groups": (Quantize(bits=4, weights=8, activations=None),),
    "one after the other": (Prune(Magnitude(), keep=0.5, round_to=4), FoldBatchNorm(), LowRank(rank=3), Quantize()),
}

FITTING = {  # what does not fit every architecture: the model, and the transforms
    "more classes": ("vit", (GrowClassifier(5), AlignClassifier(3))),
    "replaced": (
        "vit",
        (Replace("blocks.*.feed_forward", "limbeck.models.layers:FeedForward", {"width": 16, "hidden": 8}),),
    ),
    "scales moved": ("vit", (SmoothQuant(), AWQ(bits=4, weights=8), Quantize(activations="dynamic"))),
    "rotated": ("gpt", (Rotate(), Quantize(bits=4, weights=8, activations=None))),
    "rotated encoder": ("encoder", (Rotate(seed=3),)),
    "clipped": ("transformer", (ClipWeights(bits=3, weights=8), Quantize(bits=3, weights=8, activations=None))),
    "experts": ("mixtral", (SplitExperts(), Quantize(bits=4, weights=8, activations=None))),
    "tables": ("encoder", (QuantizeEmbeddings(4, 16), Quantize(activations=None))),
    "vocabulary": ("encoder", (TrimVocabulary(tokens=(*tuple(range(40))[::2], 39)),)),
    "attention weights": ("vit", (QuantizeSoftmax(bits=4), Quantize())),
    "reparameterized": ("vit", (RepQuant(examples=8, batch_size=4),)),
    "rounded by data": ("gpt", (Quantize(bits=3, weights=8, activations=None, rounding="gptq"),)),
    "without data": ("vit", (Quantize(bits=3, weights=8, activations=None, rounding="hqq"),)),
    "levels": ("vit", (Quantize(grid="nf4", weights=8, activations=None),)),
    "ternary": ("resnet", (Quantize(grid="ternary", activations=None),)),
    "codebook": ("encoder", (Quantize(grid="kmeans", bits=3, activations=None),)),
    "bits by layer": (
        "vit",
        (MixedPrecision(bits=(3, 8), average_bits=5.0, quantize=Quantize(weights=8, activations=None)),),
    ),
}


def task_for(name: str) -> CustomTask:
    generator = torch.Generator().manual_seed(1)
    if name in ("resnet", "vit"):
        data = {"pixel_values": torch.randn(12, 1, 8, 8, generator=generator)}
    else:
        mask = torch.ones(12, 8, dtype=torch.long)
        mask[::3, 5:] = 0
        data = {"input_ids": torch.randint(0, 40, (12, 8), generator=generator), "attention_mask": mask}
    labels = torch.randint(0, 40, (12, 8)) if name in ("gpt", "mixtral") else torch.randint(0, 3, (12,))
    split = {**data, "labels": labels}
    return CustomTask({"train": split, "validation": split, "test": split}, inputs=tuple(data))


@pytest.fixture(scope="module")
def models():
    made = {}
    for name, make in ALL_MODELS.items():
        torch.manual_seed(2)
        model = make()
        for parameter in model.parameters():  # zeros and ones would hide what is mixed up
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        if name == "resnet":
            model(torch.randn(8, 1, 8, 8))  # running statistics
        made[name] = model.eval()
    return made


@pytest.mark.parametrize("transforms", TRANSFORMS)
@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_outputs_are_the_same(models, name, transforms, tmp_path):
    saved_and_loaded(models[name], name, TRANSFORMS[transforms], tmp_path)


@pytest.mark.parametrize("case", FITTING)
def test_saved_and_loaded_outputs_are_the_same_where_it_fits(models, case, tmp_path):
    name, transforms = FITTING[case]
    saved_and_loaded(models[name], name, transforms, tmp_path)


def saved_and_loaded(model, name, transforms, tmp_path):
    task = task_for(name)
    model: nn.Module = copy.deepcopy(model)
    for transform in transforms:
        model = apply(model, transform.plan(model, task)).eval()
    save(model, tmp_path / "a")
    loaded = load(tmp_path / "a")
    batch = task.example(5)
    with torch.no_grad():
        expected, found = first_tensor(call(model, batch)), first_tensor(call(loaded, batch))
    assert torch.equal(expected, found)
    assert weights_digest(model) == weights_digest(loaded) and lineage(model) == lineage(loaded)
    assert len(lineage(model).plans) == len(transforms)
    save(loaded, tmp_path / "b")  # and once more: nothing drifts
    for file in ("model.safetensors", "architecture.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_every_kind_of_plan_is_covered(models):
    kinds = set()
    for name, transforms in [("resnet", transforms) for transforms in TRANSFORMS.values()] + [*FITTING.values()]:
        task, model = task_for(name), copy.deepcopy(models[name])
        for transform in transforms:
            plan = transform.plan(model, task)
            kinds.add(plan.kind)
            assert json.loads(json.dumps(plan.to_json())) == plan.to_json()
            model = apply(model, plan)
    assert kinds == set(KINDS)
