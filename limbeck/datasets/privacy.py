"""Which tokens of a text may be private: patterns such as long numbers and addresses, and the tokens that they cover."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.errors import UsageError

# pattern to the degree of privacy of what it covers, 0 to 1
PATTERNS: dict[str, float] = {
    r"\d{4,}": 1.0,
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+": 1.0,
    r"\+?\d[\d ()/-]{6,}\d": 1.0,
}


def privacy(pieces: Sequence[str], patterns: Mapping[str, float] = PATTERNS) -> Tensor:
    """The degree of privacy of every token, 0 to 1: the highest of the patterns that cover some of its characters.  (n,)

    pieces: the text of each token; together they are the text that is searched. patterns: regular expression to degree.
    Raises UsageError for a pattern that does not compile or a degree outside [0, 1].
    """
    text = "".join(pieces)
    characters = torch.zeros(len(text))
    for pattern, degree in patterns.items():
        if not 0 <= degree <= 1:
            raise UsageError(f"patterns[{pattern!r}]={degree!r}: a degree of privacy must lie in [0, 1]")
        try:
            found = re.finditer(pattern, text)
        except re.error as error:
            raise UsageError(f"the pattern {pattern!r} is no regular expression: {error}") from error
        for match in found:
            span = characters[match.start() : match.end()]
            span.clamp_(min=degree)
    lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.long)
    owner = torch.repeat_interleave(torch.arange(len(pieces)), lengths)
    return torch.zeros(len(pieces)).scatter_reduce(0, owner, characters, "amax")
