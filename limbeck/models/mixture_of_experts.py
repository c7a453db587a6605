"""A feed-forward layer made of experts of which every token uses a few, and the small language model built on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.gpt import GPT
from limbeck.models.layers import FeedForward, check_sizes, initialize


def route(logits: Tensor, top: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """The experts each token uses and their weights.  logits (..., experts) -> weights (..., top), chosen (..., top)

    p = softmax(logits); the `top` largest are used with weight p_i, or p_i / (their sum) when `normalize`. Float32.
    """
    probability, chosen = logits.float().softmax(-1).topk(top, -1)
    return probability / probability.sum(-1, keepdim=True) if normalize else probability, chosen


class MixtureOfExperts(nn.Module):
    """sum over the chosen experts of w_i(x) expert_i(x).  (..., width) -> (..., width)

    `router` is a plain `nn.Linear` whose output (the routing logits) a Tap can capture. An expert computes the tokens that
    chose it and no others; no token is dropped, so there is no capacity. With top=1 the weight is the probability itself,
    which is how the router learns; with more the weights of the chosen sum to 1.

    Source: Shazeer et al., "Outrageously Large Neural Networks", 2017, eq. 1; the weight of one expert is that of Fedus et
    al., "Switch Transformers", 2021, eq. 2. Deviation: no noise on the logits.
    """

    def __init__(self, width: int, hidden: int, experts: int, top: int):
        super().__init__()
        self.top = top
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(width, hidden) for _ in range(experts))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the chosen experts and their numbers, x (..., width) -> (N, top) each; the largest first. A weight of 0 leaves
        an expert out."""
        return route(self.router(x).flatten(0, -2), self.top, normalize=self.top > 1)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.choose(x)
        rows = x.reshape(-1, x.shape[-1])
        out = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            row, place = ((chosen == index) & (weight > 0)).nonzero(as_tuple=True)
            out = out.index_add(0, row, expert(rows[row]) * weight[row, place, None].to(rows.dtype))
        return out.reshape(x.shape)


def balance(logits: Tensor, top: int, weights: Tensor | None = None) -> Tensor:
    """How unevenly tokens are spread over experts: E sum_i f_i P_i; 1 when even, E when all go to one expert.

    f_i: the share of all choices that fell on expert i (no gradient); P_i: the mean probability of expert i.
    Shapes: logits (N, E), weights (N,) of the tokens; a scalar. Source: Fedus et al., "Switch Transformers", 2021, eq. 4 to 6.
    """
    count = logits.shape[-1]
    probability = logits.float().softmax(-1)
    used = F.one_hot(probability.topk(top, -1).indices, count).float().mean(-2)
    weights = torch.ones(len(logits), device=logits.device) if weights is None else weights
    share = weights / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)
    used, probability = ((share[:, None] * each).sum(0) for each in (used, probability))
    return count * (used.detach() * probability).sum()


def mixture_gpt(
    vocabulary: int,
    length: int = 128,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    experts: int = 4,
    top: int = 1,
    dropout: float = 0.0,
) -> GPT:
    """A `limbeck.models.gpt` whose feed-forward layers are `MixtureOfExperts`; `hidden` is one expert's width, by default
    4 x width. Every token uses `top` of the `experts`. Raises UsageError for bad sizes."""
    hidden = 4 * width if hidden is None else hidden
    sizes = {
        "vocabulary": vocabulary,
        "length": length,
        "depth": depth,
        "hidden": hidden,
        "experts": experts,
        "top": top,
    }
    check_sizes("mixture_gpt", width, heads, dropout, **sizes)
    if not 1 <= top <= experts or experts < 2:
        raise UsageError(
            f"mixture_gpt: top={top} of experts={experts}: at least 2 experts, of which 1 or more are used"
        )
    model = GPT(vocabulary, length, depth, width, heads, hidden, dropout, True)
    for block in model.blocks:
        block.feed_forward = MixtureOfExperts(width, hidden, experts, top)
    initialize(model, depth)
    arguments = {**sizes, "width": width, "heads": heads, "dropout": dropout}
    return with_lineage(model, Factory("limbeck.models.mixture_of_experts:mixture_gpt", arguments))
