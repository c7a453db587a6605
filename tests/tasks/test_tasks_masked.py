import datasets
import pytest
import torch

from limbeck.errors import UsageError
from limbeck.models import encoder
from limbeck.models.encoder import MaskedLanguageModel
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.signals import Signals
from limbeck.tasks import LanguageModelling, MaskedLanguageModelling, TextClassification
from limbeck.tasks.masked import unhidden
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised
from limbeck.training.trainer import Trainer


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"text": [f"the cat {'sat on the mat ' * (i % 5)}" for i in range(60)], "label": [0, 1] * 30}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    (tmp_path / "cats").mkdir()
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "cats" / f"{split}.parquet")
    return MaskedLanguageModelling(TextClassification(str(tmp_path / "cats"), tokenizer="characters", length=40))


def restored(batch):
    """The token ids before anything was hidden."""
    ids, counted = batch["input_ids"].clone(), batch["labels"] != -100
    rows = torch.arange(len(ids))[:, None].expand_as(counted)
    ids[rows[counted], batch["masked"][counted]] = batch["labels"][counted]
    return ids


def test_hidden_tokens_are_the_labels_and_nothing_else_changes(task):
    plain = next(task.source.batches("train", 60))
    for batch in (next(task.batches("train", 60)), next(task.batches("train", 60, seed=3, augment=True))):
        source = plain["input_ids"][batch["index"]]
        assert torch.equal(restored(batch), source)
        counted = batch["labels"] != -100
        lengths = plain["attention_mask"][batch["index"]].sum(1) - 2  # without the frame
        assert torch.equal(counted.sum(1), (lengths * 0.15).round().long().clamp_min(1))
        assert not torch.isin(batch["labels"][counted], task.special).any()
        for row, positions in zip(counted, batch["masked"]):
            assert positions[row].diff().gt(0).all()  # no position twice


def test_eight_of_ten_become_the_mask_token(task):
    seen = [b for epoch in range(60) for b in task.batches("train", 60, seed=1, epoch=epoch, augment=True)]
    mask, kept, total = 0, 0, 0
    for batch in seen:
        counted = batch["labels"] != -100
        now = batch["input_ids"].gather(1, batch["masked"])[counted]
        mask += (now == task.tokenizer.mask_token_id).sum().item()
        kept += (now == batch["labels"][counted]).sum().item()
        total += counted.sum().item()
    assert abs(mask / total - 0.8) < 0.02
    assert 0.08 < kept / total < 0.13  # a tenth, and some random tokens are the right one


def test_evaluation_masks_do_not_depend_on_the_batch(task):
    whole = next(task.batches("test", 60))
    for at, one in enumerate(task.batches("test", 1)):
        length = int(one["input_ids"].shape[1])
        assert torch.equal(one["input_ids"][0], whole["input_ids"][at, :length])
    first, again = (next(task.batches("train", 8, seed=0, epoch=e, augment=True)) for e in (0, 1))
    assert not torch.equal(first["input_ids"], again["input_ids"])


def test_a_model_learns_it_and_predicts_only_what_is_hidden(task):
    model = MaskedLanguageModel(encoder(task.vocabulary_size, length=40, depth=1, width=32, heads=2))
    batch = next(task.batches("test", 4))
    full = model(batch["input_ids"], batch["attention_mask"])
    picked = model(**{name: batch[name] for name in task.inputs})
    expected = full.gather(1, batch["masked"][..., None].expand(-1, -1, full.shape[-1]))
    assert torch.allclose(picked, expected, atol=1e-6)
    before = task.evaluate(lambda b: model(**{name: b[name] for name in task.inputs}), "test")
    config = TrainingConfig(steps=80, batch_size=20, learning_rate=1e-2)
    Trainer(config, progress=False).run(Supervised(model, task), task)
    after = task.evaluate(lambda b: model(**{name: b[name] for name in task.inputs}), "test")
    assert after["perplexity"] < 0.5 * before["perplexity"] and after["accuracy"] > 0.5


def test_refusals(task):
    with pytest.raises(UsageError, match="share must lie between 0 and 1"):
        MaskedLanguageModelling(task.source, share=1.0)
    with pytest.raises(UsageError, match="tokenizer with a mask token"):
        MaskedLanguageModelling(LanguageModelling.__new__(LanguageModelling))


def test_unhidden_texts_are_the_source(task):
    batch = next(task.batches("train", 60, seed=3, augment=True))
    found, plain = unhidden(batch), task.source._examples("train", batch["index"], None)
    assert set(batch) - set(found) == {"masked", "labels"}
    assert not torch.equal(batch["input_ids"], plain["input_ids"])
    assert torch.equal(found["input_ids"], plain["input_ids"])


def test_losses_on_masked_tokens_count_exactly_those(task):
    """Logits (B, M) of the masked positions: an objective is the naive mean over the tokens that were hidden."""
    batch = next(task.batches("train", 60))
    ours, theirs = (torch.randn(*batch["labels"].shape, 20, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    labels = batch["labels"].clamp_max(19)
    batch["labels"] = labels
    rows = [(b, m) for b in range(labels.shape[0]) for m in range(labels.shape[1]) if labels[b, m] != -100]
    assert len(rows) < labels.numel()
    soft, hard = 0.0, 0.0
    for b, m in rows:
        p, log_q = (theirs[b, m] / 2).softmax(-1), (ours[b, m] / 2).log_softmax(-1)
        soft += 4 * (p * (p.log() - log_q)).sum() / len(rows)
        hard -= ours[b, m].log_softmax(-1)[labels[b, m]] / len(rows)
    student, teacher = Signals({"logits": ours}), Signals({"logits": theirs})
    torch.testing.assert_close(SoftTargets(2.0)(student, teacher, batch).value, soft)
    torch.testing.assert_close(CrossEntropy()(student, teacher, batch).value, hard)
    padded = {**batch, "attention_mask": batch["attention_mask"] * (torch.arange(60) < 7)[:, None]}  # no token counts
    some = {**batch, "labels": labels.where((torch.arange(60) < 7)[:, None], torch.tensor(-100))}
    torch.testing.assert_close(*(SoftTargets(2.0)(student, teacher, b).value for b in (padded, some)))
