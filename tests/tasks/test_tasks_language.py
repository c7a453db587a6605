import math

import datasets
import pytest
import torch

from limbeck.datasets.load import data_folder, find_folder
from limbeck.errors import DataError, UsageError
from limbeck.models import gpt
from limbeck.tasks import LanguageModelling
from limbeck.tasks.base import IGNORED


def needs(name):
    return pytest.mark.skipif(
        find_folder(name) is None,
        reason=f"data set {name!r} is not in {data_folder()} (set LIMBECK_DATA, or: make data)",
    )


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "text").mkdir()

    def made(**splits):
        for split, rows in splits.items():
            datasets.Dataset.from_dict({"text": rows}).to_parquet(tmp_path / "text" / f"{split}.parquet")
        return str(tmp_path / "text")

    return made


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def test_labels_are_the_next_tokens_and_every_token_is_predicted_once(write):
    task = LanguageModelling(write(train=[ALPHABET], validation=["abc"], test=["zyxw"]), length=4)
    assert [task.size(s) for s in task.splits()] == [7, 1, 1]
    predicted = []
    for batch in task.batches("train", 2):
        assert batch["input_ids"].shape == batch["labels"].shape == (len(batch["index"]), 4)
        counted = batch["labels"] != IGNORED
        # the alphabet: the next letter has the next number
        assert torch.equal(batch["labels"][counted], batch["input_ids"][counted] + 1)
        predicted += batch["labels"][counted].tolist()
    assert task.tokenizer.decode(predicted) == ALPHABET[1:]


def test_rows_are_joined_with_the_separator(write):
    folder = write(train=["ab", "", "c\n", "d"], validation=["ab"], test=["ab"])
    assert LanguageModelling(folder).tokenizer.decode(LanguageModelling(folder)._data["train"]) == "ab\nc\nd"
    task = LanguageModelling(folder, separator="")
    assert task.tokenizer.decode(task._data["train"]) == "abc\nd"


def test_columns_are_joined_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        rows = {"question": ["ab", "cd"], "answer": ["x", "y\n"]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pairs" / f"{split}.parquet")
    task = LanguageModelling(str(tmp_path / "pairs"), text=("question", "answer"))
    assert task.tokenizer.decode(task._data["test"]) == "ab\nx\ncd\ny\n"
    for text, words in (((), "name the column"), (("question", "anser"), "answer")):
        with pytest.raises((DataError, UsageError), match=words):
            LanguageModelling(str(tmp_path / "pairs"), text=text)


def test_validation_is_the_end_of_train(write):
    task = LanguageModelling(write(train=[ALPHABET * 10], test=["ab"]), holdout=0.1)
    assert task.tokenizer.decode(task._data["validation"]) == ALPHABET
    assert len(task._data["train"]) == 234


def test_perplexity_of_a_uniform_and_of_a_perfect_model(write):
    task = LanguageModelling(write(train=[ALPHABET], validation=[ALPHABET], test=["zyxw"]), length=5)
    size = task.vocabulary_size
    made = task.evaluate(lambda b: torch.zeros(*b["input_ids"].shape, size))
    assert list(made) == ["perplexity", "loss"]
    assert made["perplexity"] == pytest.approx(size) and made["loss"] == pytest.approx(math.log(size))
    following = task.evaluate(lambda b: 100.0 * torch.nn.functional.one_hot((b["input_ids"] + 1) % size, size))
    assert following["perplexity"] == pytest.approx(1, abs=1e-6)


def test_perplexity_is_over_tokens_not_over_batches(write):
    # 12 tokens are predicted, 10 in the first two blocks and 2 in the last: a mean of batch means would differ
    task = LanguageModelling(write(train=[ALPHABET], validation=[ALPHABET[:13]], test=["ab"]), length=5)
    torch.manual_seed(0)
    table = torch.randn(task.vocabulary_size, task.vocabulary_size)
    tokens = task._data["validation"].long()
    expected = torch.nn.functional.cross_entropy(table[tokens[:-1]], tokens[1:]).item()
    for batch_size in (1, 2, 8):
        made = task.evaluate(lambda b: table[b["input_ids"]], batch_size=batch_size)
        assert made["loss"] == pytest.approx(expected, rel=1e-6)


def test_masked_positions_contribute_nothing(write):
    task = LanguageModelling(write(train=[ALPHABET], validation=[ALPHABET[:8]], test=["ab"]), length=5)
    batch = next(task.batches("validation", 8))
    logits = torch.randn(2, 5, task.vocabulary_size, requires_grad=True)
    loss = task.loss(logits, batch)
    loss.backward()
    out = batch["labels"] == IGNORED
    assert out.sum() == 3 and (logits.grad[out] == 0).all() and (logits.grad[~out] != 0).any(-1).all()
    other = logits.detach().clone()
    other[out] = 1e4
    assert task.loss(other, batch) == loss.detach()


def test_a_model_learns_the_alphabet(write):
    task = LanguageModelling(write(train=[ALPHABET * 40], validation=[ALPHABET * 2], test=["ab"]), length=16)
    torch.manual_seed(0)
    model = gpt(task.vocabulary_size, length=16, depth=1, width=16, heads=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(6):
        for batch in task.batches("train", 8, seed=0, epoch=epoch):
            optimizer.zero_grad()
            task.loss(model(batch["input_ids"]), batch).backward()
            optimizer.step()
    assert task.evaluate(lambda b: model(b["input_ids"]))["perplexity"] < 1.5


def test_bad_input(write):
    folder = write(train=[ALPHABET], validation=["ab"], test=["a"])
    with pytest.raises(DataError, match=r"split 'test' .* has 1 tokens"):
        LanguageModelling(folder)
    with pytest.raises(UsageError, match="length"):
        LanguageModelling(folder, length=0)
    task = LanguageModelling(write(test=["ab"]))
    with pytest.raises(UsageError, match="vocabulary=27"):
        task.evaluate(lambda b: torch.zeros(*b["input_ids"].shape, 20))


def test_digest_follows_text_and_settings(write):
    folder = write(train=[ALPHABET], validation=["abc"], test=["zyxw"])
    made = [LanguageModelling(folder).digest(), LanguageModelling(folder, length=4).digest()]
    assert made[0] == LanguageModelling(folder).digest()
    made += [LanguageModelling(write(test=["zyxv"])).digest()]
    assert len(set(made)) == 3


@needs("tinyshakespeare")
def test_tinyshakespeare():
    task = LanguageModelling("tinyshakespeare", length=64)
    assert task.vocabulary_size == 66  # 65 characters and the unknown one
    batch = next(task.batches("train", 2, seed=0))
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    text = "".join(task.tokenizer.decode(b["labels"].flatten()) for b in task.batches("test", 100, limit=3))
    assert len(text) == 3 * 64


@needs("wikitext2")
@pytest.mark.slow
def test_wikitext2():
    task = LanguageModelling("wikitext2", tokenizer="bpe", vocabulary=1000)
    assert task.vocabulary_size == 1000
    assert "<unk>" in task.tokenizer.decode(task._data["test"][:3000])


@needs("web_text")
def test_web_text():
    with pytest.raises(DataError, match="c4_demo"):
        LanguageModelling("web_text")
    assert LanguageModelling("web_text", config="c4_demo", tokenizer="bpe", vocabulary=500).size("train") > 1000
