"""Speculative decoding: a small draft model proposes tokens, the target model checks several of them in one pass.

The text has exactly the target's distribution, whatever the draft proposes; a good draft only makes it come sooner.

Source: Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1;
Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.signals import call, first_tensor


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """The chance that a token drafted from q is accepted by p: sum_i min(p_i, q_i) = 1 - total variation.  (..., V) to (...)"""
    return torch.minimum(p, q).sum(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What a refused token is drawn from: max(p - q, 0), scaled to the sum 1; p itself where nothing is left.  (..., V)

    With it, min(p, q) + (1 - acceptance) residual = p: the accepted and the redrawn tokens together follow p.
    """
    rest = (p - q).clamp_min(0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp_min(torch.finfo(p.dtype).tiny), p)


def verify(drafted: Tensor, q: Tensor, p: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Accept drafted tokens from the left while u < p(x) / q(x), and draw the token that follows the last accepted one.

    drafted: (B, K) tokens, each drawn from its row of q (B, K, V). p: (B, K + 1, V), the target's distributions at the same places and
    one further. Returns the number accepted (B,), 0 to K, and the next token (B,): from the residual where one was refused, from
    p[:, K] where all were accepted (the bonus token).
    """
    count = drafted.shape[1]
    draws = torch.rand(drafted.shape, generator=generator, dtype=p.dtype).to(p.device)
    own = p[:, :count].gather(-1, drafted[..., None]).squeeze(-1)
    proposed = q.gather(-1, drafted[..., None]).squeeze(-1)
    accepted = (draws * proposed < own).long().cumprod(1).sum(1)
    padded = torch.cat([q, torch.zeros_like(p[:, :1])], 1)  # beyond the draft q is 0, and the residual is p
    rows = torch.arange(len(drafted), device=p.device)
    return accepted, draw(residual(p[rows, accepted], padded[rows, accepted]), generator)


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(z / T) in float32 (float64 stays); at temperature 0 all on the largest logit.  (..., V)"""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
    return (scores / temperature).softmax(-1)


def draw(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index per row of (B, V), each with its probability. (B,)"""
    return torch.multinomial(p.cpu(), 1, generator=generator).squeeze(1).to(p.device)


@dataclass(frozen=True)
class Speculation:
    """What speculative decoding made and what it cost.

    tokens: (B, prompt + new_tokens). accepted, proposed: drafted tokens, summed over sequences. rounds: passes of the target, counted
    per sequence.
    """

    tokens: Tensor
    accepted: int
    proposed: int
    rounds: int

    @property
    def acceptance_rate(self) -> float:
        """The share of drafted tokens that were accepted. What follows a refused token counts as refused."""
        return self.accepted / self.proposed

    @property
    def block_efficiency(self) -> float:
        """Tokens per pass of the target, from 1 (every draft refused) to lookahead + 1."""
        return self.accepted / self.rounds + 1


@torch.no_grad()
def speculate(
    target: nn.Module,
    draft: nn.Module,
    input_ids: Tensor,
    new_tokens: int,
    *,
    lookahead: int = 4,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Speculation:
    """Continue prompts by `new_tokens` tokens that follow the target's distribution exactly.

    target, draft: causal language models over one vocabulary, input_ids (B, L) to logits (B, L, V), where logits[:, t] predicts
    token t + 1. input_ids: (B, prompt), all of one length. lookahead: tokens drafted per pass of the target. temperature: of both, 0 is
    greedy. Every pass reads the whole text (no key-value cache), so sequences of a batch advance at their own pace: what stands
    to the right of a sequence's end is not seen by a causal model. A text may grow to prompt + new_tokens + lookahead tokens
    before it is cut.

    Raises UsageError for empty prompts, settings out of range, or models whose vocabularies differ.
    """
    _check(input_ids, new_tokens, lookahead, temperature)
    own, other = (_logits(model, input_ids[:1, :1]).shape[-1] for model in (target, draft))
    if own != other:
        raise UsageError(f"the target has {own} tokens and the draft {other}: they must share one vocabulary")
    batch, prompt = input_ids.shape
    goal = prompt + new_tokens
    text = torch.nn.functional.pad(input_ids, (0, new_tokens + lookahead))  # room for what is cut
    length = torch.full((batch,), prompt, device=text.device)
    accepted = proposed = rounds = 0
    while bool((length < goal).any()):
        open_ = (length < goal).nonzero().squeeze(1)
        start, ids = length[open_], text[open_, : int(length[open_].max()) + lookahead + 1]
        rows = torch.arange(len(open_), device=text.device)
        q = []
        for step in range(lookahead):
            seen = ids[:, : int(start.max()) + step]
            q.append(probabilities(_logits(draft, seen)[rows, start + step - 1], temperature))
            ids[rows, start + step] = draw(q[-1], generator)
        places = start[:, None] - 1 + torch.arange(lookahead + 1, device=text.device)
        p = probabilities(_logits(target, ids[:, :-1])[rows[:, None], places], temperature)
        drafted = ids.gather(1, places[:, 1:])
        taken, following = verify(drafted, torch.stack(q, 1), p, generator)
        ids[rows, start + taken] = following
        text[open_, : ids.shape[1]] = ids
        length[open_] = start + taken + 1
        accepted, proposed, rounds = accepted + int(taken.sum()), proposed + drafted.numel(), rounds + len(open_)
    return Speculation(text[:, :goal], accepted, proposed, rounds)


@torch.no_grad()
def expected_acceptance(
    target: nn.Module, draft: nn.Module, batches: Iterable[Mapping[str, Tensor]], temperature: float = 1.0
) -> float:
    """The chance that a drafted token is accepted, over the labelled positions of given text: the mean of `acceptance`.

    Free of sampling noise: what `Speculation.acceptance_rate` estimates for one drafted token per round, on text that was not drawn
    from the target. batches: with input_ids (B, L) and, where padding must not count, labels (B, L). Raises UsageError for no position.
    """
    total, count = 0.0, 0.0
    for batch in batches:
        p, q = (probabilities(first_tensor(call(model, batch)), temperature) for model in (target, draft))
        overlap = acceptance(p, q).double()
        weights = positions.weights(batch, overlap.shape)
        weights = torch.ones_like(overlap) if weights is None else weights.double()
        total, count = total + float((overlap * weights).sum()), count + float(weights.sum())
    if not count:
        raise UsageError("the batches have no position that counts: there is no acceptance to measure")
    return total / count


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return first_tensor(call(model, {"input_ids": ids}))


def _check(input_ids: Tensor, new_tokens: int, lookahead: int, temperature: float) -> None:
    if input_ids.dim() != 2 or not input_ids.numel() or input_ids.is_floating_point():
        raise UsageError(f"input_ids has the shape {tuple(input_ids.shape)}: it must be (batch, length) token numbers")
    for name, value in (("new_tokens", new_tokens), ("lookahead", lookahead)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value!r}: must be a whole number of at least 1")
    if isinstance(temperature, bool) or not math.isfinite(temperature) or temperature < 0:
        raise UsageError(f"temperature={temperature!r}: must be 0 (greedy) or a positive finite number")
