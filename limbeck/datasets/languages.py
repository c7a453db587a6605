"""Lines in many languages: the Universal Declaration of Human Rights."""

from __future__ import annotations

from collections.abc import Collection

from limbeck.datasets.load import load

LANGUAGES = (
    *("afr", "ast", "cat", "ces", "cym", "dan", "deu", "eng", "eus", "fin", "fra", "fry", "gla", "gle", "glg", "hrv"),
    *("hun", "isl", "ita", "lit", "ltz", "nld", "nno", "nob", "pol", "por", "ron", "slk", "slv", "spa", "swe", "tur"),
)  # in Latin letters, many of them alike


def lines_by_language(languages: Collection[str] = LANGUAGES) -> dict[str, list[tuple[str, str]]]:
    """Of every split of `udhr` the lines in these languages (ISO 639-3), in file order: {split: [(language, line)]}.

    One text per language: where there are several, the others are the same lines in another spelling.
    """
    found = load("udhr")
    first: dict[str, str] = {}
    for number, code in zip(found["train"]["id"], found["train"]["iso639-3"]):
        first[code] = min(number, first.get(code, number))
    return {
        split: [
            (code, line)
            for number, code, line in zip(rows["id"], rows["iso639-3"], rows["sentence"])
            if code in languages and number == first[code]
        ]
        for split, rows in found.items()
    }
