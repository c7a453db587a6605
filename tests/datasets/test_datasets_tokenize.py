import random

import datasets
import pytest

from limbeck.datasets.tokenize import KINDS, load_tokenizer, padding_token, save_tokenizer, text_column, train_tokenizer
from limbeck.errors import DataError, UsageError

WORDS = ["limb", "beck", "still", "distil", "Alembic", "vapour", "glass", "flame", "café", "drop", "\n"]


def texts(count=200):
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=12)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framed", [False, True])
def test_the_same_texts_give_the_same_tokenizer(kind, framed):
    made = [train_tokenizer(texts(), kind, 320, framed).backend_tokenizer.to_str() for _ in range(4)]
    assert len(set(made)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_running_text_comes_back(kind):
    tokenizer = train_tokenizer(texts(), kind, 320)
    for text in texts(5):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_characters_are_one_token_each_and_unknown_ones_the_first():
    tokenizer = train_tokenizer(["ab\nb"], "characters")
    assert len(tokenizer) == 4
    assert tokenizer("a\nbz")["input_ids"] == [2, 1, 3, 0]


def test_bytes_know_every_character():
    tokenizer = train_tokenizer(texts(), "bpe", 300)
    assert tokenizer.decode(tokenizer("Ωλ ∀")["input_ids"]) == "Ωλ ∀"
    assert len(tokenizer) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_framed(kind):
    tokenizer = train_tokenizer(texts(), kind, 320, framed=True)
    ids = tokenizer("Glass", truncation=True, max_length=4)["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id and len(ids) <= 4
    assert tokenizer("GLASS")["input_ids"] == tokenizer("glass")["input_ids"]
    assert padding_token(tokenizer) == tokenizer.pad_token_id == 0


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    tokenizer = train_tokenizer(texts(), kind, 320, framed=True)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    again = load_tokenizer(str(tmp_path / "tokenizer"))
    assert {p.suffix for p in (tmp_path / "tokenizer").iterdir()} == {".json"}
    for text in texts(5):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.pad_token_id == tokenizer.pad_token_id


def test_bad_settings(tmp_path):
    with pytest.raises(UsageError, match="characters, bpe"):
        train_tokenizer(["a"], "words")
    with pytest.raises(UsageError, match="vocabulary must be at least 300"):
        train_tokenizer(["a"], "bpe", 10)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", ""], "characters")
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


def test_text_column():
    rows = datasets.Dataset.from_dict({"text": ["a", None]})
    with pytest.raises(DataError, match="row 1 of column 'text' is None"):
        text_column(rows, "d", "train", "text")
    with pytest.raises(DataError, match="no column 'words'"):
        text_column(rows, "d", "train", "words")
