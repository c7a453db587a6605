"""Unlabelled English text to distil on: documents of several collections, cut into passages of one to many sentences.

A sentence encoder must see what it will be asked to encode: queries of a few words and documents of many sentences. So
each document is cut, by a fixed rule, into runs of 1, of 2 to 4, or of 5 to 14 sentences.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.datasets.docstrings import PREFIX, docstrings
from limbeck.datasets.load import load
from limbeck.errors import DataError

LEAST_CHARACTERS = 12  # shorter passages are headings and debris
MOST_CHARACTERS = 2000  # about 450 tokens
# cumulative share of passages -> sentences in them
RUNS = ((0.3, (1, 1)), (0.5, (2, 4)), (1.0, (5, 14)))

_SENTENCE = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(0-9])|\n+")
_WIKITEXT = ((re.compile(r" @(.)@ "), r"\1"), (re.compile(r" ([.,;:!?')])"), r"\1"), (re.compile(r"<unk> ?"), ""))


@dataclass(frozen=True)
class Source:
    """Where the texts of a collection are: `columns` of one config, each giving a text of its own; "a+b" joins two columns.

    limit: use only that many documents, evenly spaced (of collections with many sentences that say little).
    """

    columns: tuple[str, ...]
    config: str | None = None
    limit: int | None = None


SOURCES: dict[str, tuple[Source, ...]] = {
    "web_text": (Source(("text",), "c4_demo"), Source(("text",), "wiki_demo")),
    "wikitext2": (Source(("text",)),),
    "ag_news": (Source(("text",)),),
    "books": (Source(("text",)),),
    "sst2": (Source(("sentence",)),),
    "multi30k": (Source(("en",), limit=6000),),
    "gsm8k": (Source(("question",), limit=2500),),
    "instruct": (
        Source(("instruction+input", "output"), "alpaca_en_demo"),
        Source(("instruction+input", "output"), "self_instruct_seed"),
        Source(("prompt",), "p3_sample"),
    ),
}
USUAL = ("text", "sentence", "content", "document")


def sentences(text: str) -> list[str]:
    """Cut at line ends, and after . ! ? where a capital, a digit, a quotation mark or a bracket follows."""
    return [piece.strip() for piece in _SENTENCE.split(text) if piece and piece.strip()]


def passages(documents: Iterable[str], seed: int = 0) -> list[str]:
    """Every document cut into passages, without repetition, in order; the cuts are a function of the seed."""
    draws, found = random.Random(seed), {}
    for document in documents:
        pieces, start = sentences(document), 0
        while start < len(pieces):
            share = draws.random()
            low, high = next(run for limit, run in RUNS if share < limit or limit == 1.0)
            count = draws.randint(low, high)
            passage = " ".join(pieces[start : start + count])[:MOST_CHARACTERS]
            start += count
            if len(passage) >= LEAST_CHARACTERS:
                found.setdefault(passage)
    return list(found)


def documents(name: str, split: str) -> list[str]:
    """The documents of a collection's split: those of SOURCES, else the texts of a data set with a usual text column.

    "docstrings:NAME" is the prose of an installed Python package, all of it train. A collection without that split gives none. Raises
    DataError for a data set that has no text column.
    """
    found: list[str] = []
    if name.startswith(PREFIX):
        return docstrings(name.removeprefix(PREFIX)) if split == "train" else found
    for source in SOURCES.get(name) or (Source((), None),):
        rows = load(name, source.config).get(split)
        if rows is None:
            continue
        columns = source.columns or tuple(column for column in USUAL if column in rows.column_names)[:1]
        if not columns:
            raise DataError(f"data set {name!r} has none of the text columns {', '.join(USUAL)}: {rows.column_names}")
        texts = [text for row in rows for text in _texts(row, columns)]
        if source.limit is not None and len(texts) > source.limit:
            texts = [texts[i * len(texts) // source.limit] for i in range(source.limit)]
        found += texts
    if name == "wikitext2":
        found = list(_prose(found))
    elif name in ("books", "web_text"):
        found = [part.replace("\n", " ") for text in found for part in re.split(r"\n\s*\n", text)]
    return [text for text in found if len(text.strip()) >= LEAST_CHARACTERS]


def _texts(row: dict[str, Any], columns: Sequence[str]) -> Iterator[str]:
    for column in columns:
        parts = [row[name] for name in column.split("+")]
        yield " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _prose(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's lines as ordinary prose: without headings, its spacing and its marks for unknown words."""
    for line in lines:
        line = line.strip()
        if line and not line.startswith("="):
            for pattern, replacement in _WIKITEXT:
                line = pattern.sub(replacement, line)
            yield line.replace("( ", "(")
