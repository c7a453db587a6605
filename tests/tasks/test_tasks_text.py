import datasets
import pytest
import torch

from limbeck.datasets.load import data_folder, find_folder
from limbeck.datasets.tokenize import save_tokenizer
from limbeck.errors import DataError, UsageError
from limbeck.tasks import TextClassification


def needs(name):
    return pytest.mark.skipif(
        find_folder(name) is None,
        reason=f"data set {name!r} is not in {data_folder()} (set LIMBECK_DATA, or: make data)",
    )


GOOD, BAD = "a fine and lovely drop", "dull"


def write(folder, **counts):
    folder.mkdir(exist_ok=True)
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, count in counts.items():
        rows = {"sentence": [f"{(BAD, GOOD)[i % 2]} {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write(tmp_path / "taste", train=40, test=10)


def test_batches(folder):
    task = TextClassification(folder, tokenizer="characters", length=30)
    assert task.classes == ("bad", "good") and [task.size(s) for s in task.splits()] == [36, 4, 10]
    batch = next(task.batches("test", 2))
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [0, 1]
    texts = ["[CLS]dull 0[SEP]", "[CLS]a fine and lovely drop 1[SEP]"]
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts):
        assert task.tokenizer.decode(ids[mask.bool()]) == text
        assert (ids[~mask.bool()] == task.tokenizer.pad_token_id).all()
        assert torch.equal(mask, mask.sort(descending=True).values)
    # the longest has 2 + 24 tokens: rounded up to 8 that is 32, but never more than length
    assert batch["input_ids"].shape == (2, 30)
    assert next(task.batches("test", 1))["input_ids"].shape == (1, 8)
    assert task.example(3)["input_ids"].shape == (3, 30) and set(task.example()) == {"input_ids", "attention_mask"}


def test_cut_to_length_keeps_the_frame(folder):
    task = TextClassification(folder, tokenizer="characters", length=10)
    ids = next(task.batches("test", 2))["input_ids"][1]
    assert task.tokenizer.decode(ids) == "[CLS]a fine a[SEP]"


def test_the_tokenizer_sees_train_only(folder, tmp_path):
    strange = datasets.Dataset.from_dict({"sentence": ["\u03a9\u03a9"] * 2, "label": [0, 1]})
    strange.to_parquet(tmp_path / "taste" / "validation.parquet")
    strange.to_parquet(tmp_path / "taste" / "test.parquet")
    task = TextClassification(folder, tokenizer="characters")
    assert task.vocabulary_size == 5 + len(set(f"{GOOD} {BAD} 0123456789"))
    for split in ("validation", "test"):
        ids = next(task.batches(split, 1))["input_ids"][0, :4].tolist()
        assert ids == task.tokenizer.convert_tokens_to_ids(["[CLS]", "[UNK]", "[UNK]", "[SEP]"])


def test_a_tokenizer_from_a_folder(folder, tmp_path):
    trained = TextClassification(folder, vocabulary=300)
    save_tokenizer(trained.tokenizer, tmp_path / "tokenizer")
    loaded = TextClassification(folder, tokenizer=str(tmp_path / "tokenizer"))
    assert loaded.digest() == trained.digest()
    for left, right in zip(trained.batches("test", 4), loaded.batches("test", 4)):
        assert torch.equal(left["input_ids"], right["input_ids"])


def test_digest_follows_data_and_settings(folder, tmp_path):
    plain = TextClassification(folder, vocabulary=300).digest()
    assert plain == TextClassification(folder, vocabulary=300).digest()
    others = [
        TextClassification(folder, tokenizer="characters").digest(),
        TextClassification(folder, vocabulary=300, length=16).digest(),
        TextClassification(write(tmp_path / "other", train=40, test=11), vocabulary=300).digest(),
    ]
    assert len({plain, *others}) == 4


def test_resume_and_seeds(folder):
    task = TextClassification(folder, vocabulary=300)
    whole = list(task.batches("train", 8, seed=1, epoch=1))
    for left, right in zip(whole[2:], task.batches("train", 8, seed=1, epoch=1, skip=2), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_bad_input(folder, tmp_path):
    with pytest.raises(UsageError, match="length"):
        TextClassification(folder, length=2)
    with pytest.raises(DataError, match=r"no column 'text'.*Known: label, sentence"):
        TextClassification(folder, text="text")
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        TextClassification(folder, tokenizer=str(tmp_path))


@needs("sst2")
def test_sst2():
    task = TextClassification("sst2", length=48)
    assert [task.size(s) for s in task.splits()] == [6920, 872, 1821] and task.classes == ("negative", "positive")
    made = task.evaluate(lambda b: torch.nn.functional.one_hot(torch.ones_like(b["labels"]), 2).float(), "validation")
    positive = torch.cat([b["labels"] for b in task.batches("validation", 500)]).float().mean().item()
    assert made["accuracy"] == pytest.approx(positive)


@needs("ag_news")
@pytest.mark.slow
def test_ag_news():
    task = TextClassification("ag_news", vocabulary=1000)
    assert task.classes == ("World", "Sports", "Business", "Sci/Tech") and task.size("train") == 6080
    assert task.vocabulary_size == 1000


def test_splits_and_tokenizer_may_be_given(folder):
    named = TextClassification(folder, tokenizer="characters", length=30)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"text": [GOOD, BAD, "zzz"], "label": [0, 1, 1]}
    splits = {split: datasets.Dataset.from_dict(rows, features) for split in ("train", "validation", "test")}
    task = TextClassification(splits, tokenizer=named.tokenizer, length=30)
    assert task.vocabulary_size == named.vocabulary_size and task.classes == ("a", "b") and task.dataset == "given"
    batch = next(task.batches("test", 3))
    assert named.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).replace("  ", "") == GOOD
    assert batch["labels"].tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="data set 'given' has no split 'test'"):
        TextClassification({"train": splits["train"]})
