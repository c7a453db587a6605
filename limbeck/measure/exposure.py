"""Exposure: how far a language model has memorized a secret that stood in its training text.

A canary is a sentence with a random secret, "The code of Ada is 4821". Among all |R| secrets that could have stood there the
model's probability gives the true one a rank; nothing memorized gives a rank near |R| / 2 on average and an exposure near 1 bit, a secret that
is more probable than every other one the whole log2 |R|:

    exposure = log2 |R| - log2 rank

Source: Carlini et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks", 2019,
definition 6. The rank is exact, by enumeration; equally probable secrets share the mean of their ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.divergences import log_probabilities
from limbeck.signals import call, first_tensor

MOST = 2_000_000  # secrets that are enumerated


@torch.no_grad()
def continuations(model: nn.Module, prefix: Tensor, alphabet: Tensor, length: int, batch_size: int = 512) -> Tensor:
    """log p(s | prefix) of every sequence s of `length` tokens of the alphabet.  (A^length,), the last token running fastest

    prefix: (P,) tokens, at least one. alphabet: (A,) different tokens. The model, input_ids (B, L) to logits (B, L, V), is run once
    on each of the shorter beginnings. Raises UsageError for an empty prefix, a repeated token or too many sequences.
    """
    _check(prefix, alphabet, length)
    begun, scores = prefix[None], torch.zeros(1)
    for step in range(length):
        rows = [first_tensor(call(model, {"input_ids": part}))[:, -1] for part in begun.split(batch_size)]
        following = log_probabilities(torch.cat(rows))[:, alphabet]
        scores = (scores[:, None] + following).flatten()
        if step + 1 < length:
            last = alphabet.repeat(len(begun))[:, None]
            begun = torch.cat([begun.repeat_interleave(len(alphabet), 0), last], 1)
    return scores


def exposure(model: nn.Module, prefix: Tensor, secret: Tensor, alphabet: Tensor) -> float:
    """The exposure in bits of `secret` (n,) after `prefix` (P,), among all sequences of n tokens of `alphabet` (A,).

    The caller puts the model into evaluation mode. Raises UsageError for a secret that is not made of the alphabet.
    """
    place = (secret[:, None] == alphabet).long()
    if not bool((place.sum(1) == 1).all()):
        raise UsageError(f"the secret {secret.tolist()} has tokens that are not in the alphabet {alphabet.tolist()}")
    scores = continuations(model, prefix, alphabet, len(secret))
    own = 0
    for digit in place.argmax(1).tolist():
        own = own * len(alphabet) + digit
    return bits(scores, own)


def bits(scores: Tensor, own: int) -> float:
    """log2 |R| - log2 rank of the candidate `own` among scores (|R|,), higher first; ties share the mean rank."""
    better, equal = int((scores > scores[own]).sum()), int((scores == scores[own]).sum())
    return math.log2(len(scores)) - math.log2(better + (equal + 1) / 2)


def mean_exposure(model: nn.Module, canaries: Sequence[tuple[Tensor, Tensor]], alphabet: Tensor) -> float:
    """The mean exposure in bits over canaries, each a prefix and a secret. Raises UsageError for none."""
    if not canaries:
        raise UsageError("there is no canary to measure the exposure of")
    return sum(exposure(model, prefix, secret, alphabet) for prefix, secret in canaries) / len(canaries)


def _check(prefix: Tensor, alphabet: Tensor, length: int) -> None:
    if prefix.dim() != 1 or not len(prefix):
        raise UsageError(f"the prefix has the shape {tuple(prefix.shape)}: it must be (tokens,), at least one")
    if alphabet.dim() != 1 or len(alphabet) < 2 or len(alphabet.unique()) != len(alphabet):
        raise UsageError(f"the alphabet {alphabet.tolist()} must be two or more different tokens")
    if length < 1 or len(alphabet) ** length > MOST:
        raise UsageError(f"{len(alphabet)} tokens at {length} places: there must be 1 to {MOST} possible secrets")
