"""Replacing words at random: text in which rare words are as frequent as common ones.

A student that learns from a few ten thousand passages meets most words of its vocabulary hardly ever, and is wrong about them wherever
they matter: in other domains. A passage in which some tokens were replaced by ones drawn uniformly from the vocabulary is no
sentence, but a teacher embeds it all the same, and every word gets its turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError

_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")


def ordinary_tokens(tokenizer: Any) -> Tensor:
    """Which tokens are parts of texts: not special, not reserved ("[unused7]"), not padding. bool (vocabulary,)"""
    vocabulary = tokenizer.get_vocab()
    ordinary = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    ordinary[[at for token, at in vocabulary.items() if at not in special and not _UNUSED.fullmatch(token)]] = True
    return ordinary


def replace_words(ids: Tensor, ordinary: Tensor, shares: Tensor, draws: torch.Generator) -> Tensor:
    """Token ids of which some are replaced by ordinary tokens, drawn uniformly: a new tensor (B, L).

    ids: int64 (B, L). ordinary: bool (V,), the tokens that may be replaced and may be drawn; others stay where they are.
    shares: (B,), each row's probability that one of its ordinary tokens is replaced. Replacements are independent.
    """
    chosen = (torch.rand(ids.shape, generator=draws) < shares[:, None]) & ordinary[ids]
    choices = ordinary.nonzero().squeeze(1)
    return torch.where(chosen, choices[torch.randint(len(choices), ids.shape, generator=draws)], ids)


def checked_shares(shares: Sequence[float] | float) -> tuple[float, ...]:
    """The shares of `replace_words` as a tuple. Raises UsageError for one outside [0, 1]."""
    shares = (shares,) if isinstance(shares, (int, float)) else tuple(shares)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UsageError(f"replace_words must list shares of tokens from 0 to 1, such as [0, 0.3], not {share!r}")
    return tuple(map(float, shares))
