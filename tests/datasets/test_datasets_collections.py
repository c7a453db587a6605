"""Retrieval collections in hub layout, and passages cut from documents."""

import pytest
from datasets import Dataset

from limbeck.datasets.collections import Collection, load_collection
from limbeck.datasets.docstrings import docstrings, prose
from limbeck.datasets.passages import documents, passages, sentences
from limbeck.errors import DataError


def write(folder, config, split, columns):
    (folder / config).mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns).to_parquet(str(folder / config / f"{split}.parquet"))


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    folder = tmp_path / "made"
    write(folder, "corpus", "corpus", {"_id": ["a", "b", "c", "d"], "title": ["One", "", "Three", "Four"],
                                       "text": ["One thing", "", "of them", "more"]})  # fmt: skip
    write(folder, "queries", "queries", {"_id": ["1", "2", "3"], "text": ["first", "second", "third"]})
    write(folder, "default", "test", {"query-id": ["1", "1", "1", "1", "2", "3"], "corpus-id": ["a", "b", "c", "d", "d", "a"],
                                      "score": [4, 3, -1, 0, 2, 0]})  # fmt: skip
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: {s}\n    path: {c}/{s}.parquet\n"
        for c, s in (("corpus", "corpus"), ("queries", "queries"), ("default", "test"))
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def test_benchmark_layout(benchmark):
    found = load_collection("made")
    assert found.documents == (
        "One thing",
        "Three of them",
        "Four more",
    )  # empty left out, a repeated title not doubled
    assert found.queries == ("first", "second")  # the third has no relevant document
    assert found.gains == ({0: 4.0}, {2: 2.0})  # a judgement of the empty document goes with it
    assert found.excluded == (frozenset({1}), frozenset())


def test_question_layout(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    write(tmp_path / "made", ".", "validation", {"question": ["p", "q", "r"], "context": ["x", "y", "x"]})
    found = load_collection("made", "default")
    assert found.documents == ("x", "y") and found.gains == ({0: 1.0}, {1: 1.0}, {0: 1.0})


def test_distractors_are_new_documents():
    made = Collection("made", ("q",), ("x", "y"), ({1: 1.0},), (frozenset(),))
    assert made.with_distractors(["z", "x", "z", "w"]).documents == ("x", "y", "z", "w")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gains": ({},)}, "no relevant document"),
        ({"gains": ({5: 1.0},)}, "not there"),
        ({"gains": ({0: 0.0},)}, "above 0"),
        ({"documents": ()}, "no queries or no documents"),
    ],
)
def test_a_collection_is_checked(change, message):
    fields = {
        "name": "made",
        "queries": ("q",),
        "documents": ("x", "y"),
        "gains": ({1: 1.0},),
        "excluded": (frozenset(),),
    }
    with pytest.raises(DataError, match=message):
        Collection(**{**fields, **change})


def test_sentences():
    assert sentences('He came. She left! "Why?" 3 asked.\nA line e.g. this one') == [
        "He came.", "She left!", '"Why?', "3 asked.", "A line e.g. this one",
    ]  # fmt: skip


def test_passages_cover_every_document_once_and_vary():
    text = " ".join(f"Sentence number {i} is here." for i in range(400))
    found = passages([text], seed=1)
    assert " ".join(found) == text
    counts = [len(sentences(passage)) for passage in found]
    assert min(counts) == 1 and max(counts) >= 5 and max(counts) <= 14
    assert found == passages([text], seed=1) != passages([text], seed=2)
    assert passages(["The same thing again and again."] * 3) == ["The same thing again and again."]


def test_documents_of_a_data_set_with_a_text_column(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    write(tmp_path / "mine", ".", "train", {"text": ["a text that is long enough", "short"]})
    write(tmp_path / "numbers", ".", "train", {"value": [1]})
    assert documents("mine", "train") == ["a text that is long enough"]
    assert documents("mine", "validation") == []
    with pytest.raises(DataError, match="none of the text columns"):
        documents("numbers", "train")


DOCSTRING = """Fit a line to points by least squares, weighted or not.

Parameters
----------
x : array_like, shape (n, 2)

The solution is found by a decomposition, see :func:`~numpy.linalg.svd`, and it
stays accurate where columns are nearly dependent.

>>> fit([[1, 2], [3, 4]])
"""


def test_docstrings_keep_their_prose_only():
    assert prose(DOCSTRING) == (
        "Fit a line to points by least squares, weighted or not. The solution is found by a decomposition, see "
        "numpy.linalg.svd, and it stays accurate where columns are nearly dependent."
    )
    assert prose("Short.") == ""


def test_docstrings_of_a_package_are_read_without_importing_it(tmp_path, monkeypatch):
    folder = tmp_path / "strange_package"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(f'"""{DOCSTRING}"""\nraise RuntimeError("imported")\n')
    (folder / "again.py").write_text(f'def f():\n    """{DOCSTRING}"""\n')
    (folder / "broken.py").write_text("def (")
    (folder / "tests" / "t.py").write_text('"""This test says a great deal that nobody needs to read at all."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert documents("docstrings:strange_package", "train") == [prose(DOCSTRING)]
    assert documents("docstrings:strange_package", "validation") == []
    with pytest.raises(DataError, match="no_such_package_here"):
        docstrings("no_such_package_here")
