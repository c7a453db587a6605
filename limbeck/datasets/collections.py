"""Retrieval collections: queries, documents, and how relevant which document is to which query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limbeck.datasets.load import find_folder, load
from limbeck.datasets.tokenize import text_column
from limbeck.errors import DataError


@dataclass(frozen=True)
class Collection:
    """gains[q] maps a document's position to its gain (above 0); `excluded[q]` are documents that are no answer to rank
    for query q, such as the paper from which the query was written: they are taken out of its ranking."""

    name: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    gains: tuple[dict[int, float], ...]
    excluded: tuple[frozenset[int], ...]

    def __post_init__(self) -> None:
        if not self.queries or not self.documents:
            raise DataError(f"retrieval collection {self.name!r} has no queries or no documents")
        if not len(self.queries) == len(self.gains) == len(self.excluded):
            raise DataError(
                f"retrieval collection {self.name!r}: one mapping of gains and one set per query are needed"
            )
        for query, gains in enumerate(self.gains):
            if not gains:
                raise DataError(f"retrieval collection {self.name!r}: query {query} has no relevant document; drop it")
            if any(not 0 <= at < len(self.documents) for at in (*gains, *self.excluded[query])):
                raise DataError(f"retrieval collection {self.name!r}: query {query} names a document that is not there")
            if any(gain <= 0 for gain in gains.values()):
                raise DataError(f"retrieval collection {self.name!r}: gains must be above 0; leave the others out")

    def with_distractors(self, documents: list[str]) -> Collection:
        """The collection with further documents, relevant to no query."""
        known = set(self.documents)
        more = tuple(text for text in dict.fromkeys(documents) if text not in known)
        return Collection(self.name, self.queries, (*self.documents, *more), self.gains, self.excluded)


def load_collection(name: str, config: str | None = None) -> Collection:
    """A collection by data set name: in the layout of retrieval benchmarks, or of questions and their contexts.

    Benchmark layout: configs corpus (_id, title, text), queries (_id, text) and default (query-id, corpus-id, score). Scores
    above 0 are graded gains, 0 is not relevant, and a document with a score below 0 is excluded for that query. Empty
    documents and queries without a relevant document are left out.
    Question layout (SQuAD, XQuAD): columns question and context; every distinct context is a document, the only relevant one of
    its questions; `config` names the data set's config.
    """
    folder = find_folder(name)
    if config is None and (folder is None or (folder / "corpus").is_dir()):
        return _benchmark(name)
    splits = load(name, config)
    rows = splits.get("validation", splits.get("test", next(iter(splits.values()))))
    if not {"question", "context"} <= set(rows.column_names):
        raise DataError(
            f"data set {name!r} is no retrieval collection: it has neither the configs corpus, queries and default nor the "
            f"columns question and context, only {rows.column_names}"
        )
    contexts = list(rows["context"])
    documents = {text: at for at, text in enumerate(dict.fromkeys(contexts))}
    gains = tuple({documents[text]: 1.0} for text in contexts)
    return Collection(name, tuple(rows["question"]), tuple(documents), gains, (frozenset(),) * len(gains))


def _only(name: str, config: str, wanted: str | None = None) -> Any:
    splits = load(name, config)
    return splits[wanted] if wanted in splits else next(iter(splits.values()))


def _benchmark(name: str) -> Collection:
    corpus, queries = _only(name, "corpus"), _only(name, "queries")
    judged = _only(name, "default", "test")
    texts = text_column(corpus, name, "corpus", "text")
    titles = text_column(corpus, name, "corpus", "title") if "title" in corpus.column_names else [""] * len(texts)
    documents, places = [], {}
    for key, title, text in zip(corpus["_id"], titles, texts):
        title, text = title.strip(), text.strip()
        whole = text if text.startswith(title) else f"{title} {text}"  # some collections repeat the title in the text
        if whole:
            places[key] = len(documents)
            documents.append(whole)
    gains: dict[Any, dict[int, float]] = {key: {} for key in queries["_id"]}
    excluded: dict[Any, set[int]] = {key: set() for key in gains}
    for query, document, score in zip(judged["query-id"], judged["corpus-id"], judged["score"]):
        if query not in gains:
            raise DataError(f"retrieval collection {name!r} judges query {query!r}, which is not among its queries")
        if document not in places:
            continue
        if score > 0:
            gains[query][places[document]] = float(score)
        elif score < 0:
            excluded[query].add(places[document])
    wanted = {
        key: text for key, text in zip(queries["_id"], text_column(queries, name, "queries", "text")) if gains[key]
    }
    return Collection(
        name,
        tuple(wanted.values()),
        tuple(documents),
        tuple(gains[key] for key in wanted),
        tuple(frozenset(excluded[key] - set(gains[key])) for key in wanted),
    )
