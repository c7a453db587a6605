import datasets
import pytest

from limbeck.datasets.load import column, data_folder, load, load_splits
from limbeck.errors import DataError


def write(folder, **splits):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "data"


def test_by_path_and_by_name(home, tmp_path):
    rows = {"text": ["a", "b"], "label": [0, 1]}
    write(home / "mine", train=rows, test=rows)
    assert data_folder() == home
    by_name, by_path = load("mine"), load(str(home / "mine"))
    assert set(by_name) == set(by_path) == {"train", "test"}
    assert by_name["train"][:] == by_path["train"][:] == rows


def test_saved_to_disk(home, tmp_path):
    made = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})})
    made.save_to_disk(tmp_path / "saved")
    assert load(str(tmp_path / "saved"))["train"][:] == {"x": [1]}


def test_not_found_says_where_it_looked(home):
    write(home / "letters", train={"x": [1]})
    with pytest.raises(DataError) as caught:
        load("leters")
    message = str(caught.value)
    assert str(home / "leters") in message and "hub" in message and "Did you mean 'letters'?" in message
    assert "LIMBECK_DATA" in message


def test_unreachable_hub_fails_at_once(home, monkeypatch):
    import huggingface_hub

    def refuse(self, name, timeout):
        raise ConnectionError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match="on the hub: not reached"):
        load("nothing-of-this-name")


def test_a_damaged_file(home):
    write(home / "mine", train={"x": [1]})
    (home / "mine" / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="cannot be read"):
        load("mine")


def test_config_is_needed(home):
    for config in ("one", "two"):
        write(home / "many" / config, train={"x": [config]})
    entries = "".join(f"- config_name: {c}\n  data_files: {c}/train.parquet\n" for c in ("one", "two"))
    (home / "many" / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    with pytest.raises(DataError, match="Set config to one of them") as caught:
        load("many")
    assert "'one'" in str(caught.value)
    with pytest.raises(DataError, match="three"):
        load("many", "three")
    assert load("many", "two")["train"][:] == {"x": ["two"]}


def test_splits(home):
    rows = {"x": [1]}
    write(home / "all", train=rows, validation={"x": [2]}, test={"x": [3]})
    assert {s: d[0]["x"] for s, d in load_splits("all").items()} == {"train": 1, "validation": 2, "test": 3}
    # validation serves as test, so it must not serve as validation too
    assert {s: d[0]["x"] for s, d in load_splits("all", splits={"test": "validation"}).items()} == {
        "train": 1,
        "test": 2,
    }
    with pytest.raises(DataError, match="no split 'dev'"):
        load_splits("all", splits={"validation": "dev"})
    with pytest.raises(DataError, match="splits may name"):
        load_splits("all", splits={"dev": "validation"})


def test_missing_and_empty_splits(home):
    write(home / "alone", train={"x": [1]})
    with pytest.raises(DataError, match="no split 'test'; it has 'train'"):
        load_splits("alone")
    empty = datasets.Dataset.from_dict({"x": []}, features=datasets.Features({"x": datasets.Value("int64")}))
    write(home / "hollow", train={"x": [1]})
    empty.to_parquet(home / "hollow" / "test.parquet")
    with pytest.raises(DataError, match="split 'test' of data set 'hollow' is empty"):
        load_splits("hollow")


def test_columns():
    rows = datasets.Dataset.from_dict({"sentence": ["a"], "note": ["b"], "label": [0]})
    assert column(rows, "d", "text", None, ("text", "sentence"), "Value") == "sentence"
    assert column(rows, "d", "label", "note", ("label",), "ClassLabel") == "note"
    with pytest.raises(DataError, match=r"no column 'lable' .*Did you mean 'label'"):
        column(rows, "d", "label", "lable", ("label",), "ClassLabel")
    with pytest.raises(DataError, match=r"which column is the image is not clear.*Set image="):
        column(rows, "d", "image", None, ("image",), "Image")
