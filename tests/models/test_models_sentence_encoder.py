"""Sentence encoders against transformers' own forward pass and the sentence-transformers library."""

import json

import pytest
import torch

from limbeck.build import build, lineage
from limbeck.datasets.tokenize import train_tokenizer
from limbeck.errors import ArtifactError, ExportError, UsageError
from limbeck.export.sentence_transformers import export_sentence_transformers
from limbeck.models.sentence_encoder import (
    load_sentence_encoder,
    mean_pool,
    resolve_folder,
    sentence_encoder,
    student_encoder,
)
from limbeck.plan import apply
from limbeck.quantization.quantize import Quantize

CONFIG = {
    "model_type": "bert", "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 32,
}  # fmt: skip
TEXTS = ["a red apple", "the sea is blue and wide", "b"]


def make(**settings):
    torch.manual_seed(0)
    model = sentence_encoder({**CONFIG, **settings.pop("config", {})}, **settings).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1: make every one of them matter
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch():
    ids = torch.randint(5, 60, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 10, [1] * 6 + [0] * 4, [1] + [0] * 9])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equals_transformers_and_pooling_by_hand(pooling):
    model, inputs = make(pooling=pooling), batch()
    with torch.no_grad():
        hidden = model.transformer(**inputs).last_hidden_state
        rows = []
        for row, mask in zip(hidden, inputs["attention_mask"]):
            kept = row[: int(mask.sum())]
            rows.append(kept.mean(0) if pooling == "mean" else kept[0])
        expected = torch.stack([row / row.norm() for row in rows])
        assert torch.allclose(model(**inputs), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_and_batch_do_not_matter(pooling):
    model, inputs = make(pooling=pooling), batch()
    with torch.no_grad():
        together = model(**inputs)
        other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)}
        assert torch.allclose(model(**other), together, atol=1e-6)
        for at in range(3):
            length = int(inputs["attention_mask"][at].sum())
            alone = model(inputs["input_ids"][at : at + 1, :length], torch.ones(1, length, dtype=torch.long))
            assert torch.allclose(alone[0], together[at], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gradient_reaches_every_weight_that_counts(pooling):
    model = make(pooling=pooling, dense={"features": 6})
    model.train()
    (model(**batch()) * torch.randn(3, 6)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a bias on the keys shifts all scores of a query alike
    assert [name for name in without if not name.endswith("key.bias")] == []


def test_mean_pool_ignores_padding():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).item() == 2.0


def test_dense_changes_the_width_and_unnormalized_keeps_the_length():
    model = make(dense={"features": 6, "activation": "tanh"}, normalize=False)
    found = model(**batch())
    assert found.shape == (3, 6) and model.width == 6
    assert not torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-2)


def test_lineage_builds_the_same_architecture():
    model = make(pooling="cls", dense={"features": 6})
    again = build(lineage(model).factory)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch()), model(**batch()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "cls", "config": {"hidden_act": "relu"}},
        {"dense": {"features": 6, "activation": "tanh"}},
        {"dense": {"features": 6, "bias": False}, "normalize": False},
    ],
    ids=["mean", "cls", "dense", "raw"],
)
def test_sentence_transformers_gives_the_same_embeddings(settings, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = make(**settings)
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    assert export_sentence_transformers(model, batch(), tmp_path / "made", tokenizer=tokenizer, length=16) < 1e-6
    loaded = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    rows = tokenizer(TEXTS, padding=True, return_tensors="pt", max_length=16, truncation=True)
    with torch.no_grad():
        own = model(rows["input_ids"], rows["attention_mask"])
    theirs = torch.from_numpy(loaded.encode(TEXTS))
    assert torch.allclose(own, theirs, atol=1e-5)
    assert loaded.max_seq_length == 16
    back = load_sentence_encoder(tmp_path / "made")
    with torch.no_grad():
        assert torch.allclose(back(rows["input_ids"], rows["attention_mask"]), own, atol=1e-6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model = make()
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    export_sentence_transformers(model, batch(), folder, tokenizer=tokenizer, length=16)
    return folder, model


def test_a_student_of_all_layers_is_the_teacher(saved):
    folder, teacher = saved
    student = student_encoder(folder, [0, 1, 2]).eval()
    with torch.no_grad():
        assert torch.allclose(student(**batch()), teacher(**batch()), atol=1e-6)


def test_a_student_takes_the_named_layers_and_its_lineage_is_empty_of_the_teacher(saved):
    folder, teacher = saved
    student = student_encoder(folder, [2, 0], hidden_act="relu", feed_forward=10)
    own, source = student.transformer.encoder.layer, teacher.transformer.encoder.layer
    assert torch.equal(own[0].attention.self.key.weight, source[2].attention.self.key.weight)
    assert torch.equal(own[1].attention.self.key.weight, source[0].attention.self.key.weight)
    assert own[0].intermediate.dense.out_features == 10 and student.config.hidden_act == "relu"
    strength = source[2].intermediate.dense.weight.norm(dim=1) * source[2].output.dense.weight.norm(dim=0)
    kept = sorted(range(40), key=lambda i: -strength[i])[:10]
    assert torch.equal(own[0].output.dense.weight, source[2].output.dense.weight[:, sorted(kept)])
    again = build(lineage(student).factory)
    again.load_state_dict(student.state_dict())


def test_merged_heads_score_with_the_sum_of_their_parts(saved):
    folder, teacher = saved
    student = student_encoder(folder, [0], heads=2)
    x = torch.randn(5, 24)

    def scores(layer):
        own = layer.attention.self
        q, k = (part(x).unflatten(-1, (-1, own.attention_head_size)).transpose(0, 1) for part in (own.query, own.key))
        return q @ k.transpose(1, 2) * own.scaling

    before = scores(teacher.transformer.encoder.layer[0])
    after = scores(student.transformer.encoder.layer[0])
    assert torch.allclose(after, before[0::2] + before[1::2], atol=1e-5)


def test_a_cls_layer_starts_as_the_mean_of_the_layers_before(saved):
    folder, teacher = saved
    student = student_encoder(folder, [0, 1, 2], pooling="cls").eval()
    with torch.no_grad():
        hidden = teacher.transformer.embeddings(batch()["input_ids"])
        mask = torch.where(batch()["attention_mask"] == 1, 0.0, -1e9)[:, None, None, :]
        for layer in teacher.transformer.encoder.layer[:2]:
            hidden = layer(hidden, attention_mask=mask)
        mean = mean_pool(hidden, batch()["attention_mask"])
        expected = torch.nn.functional.layer_norm(mean, mean.shape[-1:])
    found = student(**batch())
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.98


def test_words_are_trained_only_when_asked(saved):
    folder, _ = saved
    for train in (False, True):
        student = student_encoder(folder, [0], train_words=train)
        assert student.transformer.embeddings.word_embeddings.weight.requires_grad is train
        assert sum(not p.requires_grad for p in student.parameters()) == (not train)


def test_mistakes_are_named(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(UsageError, match="pooling"):
        make(pooling="max")
    with pytest.raises(UsageError, match="features"):
        make(dense={"width": 3})
    with pytest.raises(UsageError, match="layers must name"):
        student_encoder(folder, [3])
    with pytest.raises(UsageError, match="heads must divide"):
        student_encoder(folder, [0], heads=3)
    with pytest.raises(ArtifactError, match="not installed"):
        resolve_folder("package:no_such_package_at_all/model")
    with pytest.raises(UsageError, match="only a sentence encoder"):
        export_sentence_transformers(torch.nn.Linear(2, 2), batch(), tmp_path / "made", tokenizer="nowhere")
    with pytest.raises(UsageError, match="needs a tokenizer"):
        export_sentence_transformers(make(), batch(), tmp_path / "made")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_sentence_transformers(make(), batch(), folder, tokenizer="nowhere")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "x.Transformer", "path": ""}, {"type": "x.Router", "path": "1"}])
    )
    with pytest.raises(UsageError, match="Router"):
        load_sentence_encoder(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ArtifactError, match="JSON"):
        load_sentence_encoder(tmp_path)


def test_export_follows_dropped_layers_and_refuses_pruned_heads(tmp_path):
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    model = make()
    del model.transformer.encoder.layer[1]
    export_sentence_transformers(model, batch(), tmp_path / "fewer", tokenizer=tokenizer)
    assert len(load_sentence_encoder(tmp_path / "fewer").transformer.encoder.layer) == 2
    own = model.transformer.encoder.layer[0].attention.self
    own.query = torch.nn.Linear(24, 12)
    with pytest.raises(ExportError, match="does not fit"):
        export_sentence_transformers(model, batch(), tmp_path / "heads", tokenizer=tokenizer)
    assert not (tmp_path / "heads").exists()


def test_a_quantized_encoder_is_written_with_the_weights_of_its_codes(tmp_path):
    model = make()
    before = {path: m.weight.detach().clone() for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    apply(model, Quantize(activations="dynamic").plan(model))
    tokenizer = train_tokenizer(TEXTS, "characters", framed=True)
    difference = export_sentence_transformers(model, batch(), tmp_path / "made", tokenizer=tokenizer)
    assert 0 < difference < 0.02
    for path, module in load_sentence_encoder(tmp_path / "made").named_modules():
        if path in before:
            step = before[path].abs().amax(1, keepdim=True) / 127
            assert not torch.equal(module.weight, before[path])
            assert ((module.weight - before[path]).abs() <= step / 2 * 1.001).all()
            assert torch.allclose(module.weight / step, (module.weight / step).round(), atol=1e-3)


def test_a_package_folder_is_found():
    assert resolve_folder("package:limbeck/models").name == "models"
    assert resolve_folder("plain/path") == "plain/path"
