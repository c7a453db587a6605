"""A tractable density over pixels: a tree of hidden states, one per pixel, as a probabilistic circuit.

    P(x) = sum over z of prod_i P(z_i | z_parent(i)) P(x_i | z_i)         z_i in 1..K, x_i in 0..V-1

The tree spans the pixels that tell most about each other (Chow and Liu), the states are hidden, so the model is a mixture in every node
and still sums over any part of the pixels in one pass: D K^2 operations.
Sources: Chow and Liu, "Approximating discrete probability distributions with dependence trees", 1968; Liu and Van den Broeck, "Tractable
Regularization of Probabilistic Circuits", 2021, for hidden Chow-Liu trees.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor, nn

from limbeck.codecs.vector_quantization import kmeans, nearest
from limbeck.errors import UsageError

TINY = 1e-30


def mutual_information(x: Tensor, levels: int) -> Tensor:
    """I(X_i; X_j) in nats of every pair of columns of x (N, D), whole numbers below `levels`, as counted: (D, D)."""
    hot = torch.nn.functional.one_hot(x.long(), levels).flatten(1).to(torch.float32)
    joint = (hot.T @ hot / len(x)).reshape(x.shape[1], levels, x.shape[1], levels).double()
    own = torch.einsum("iaia->ia", joint)
    independent = own[:, :, None, None] * own[None, None]
    terms = torch.where(joint > 0, joint * (joint / independent.clamp_min(TINY)).clamp_min(TINY).log(), 0.0)
    return terms.sum((1, 3))


def spanning_tree(weights: Tensor) -> Tensor:
    """Parents (D,) of the maximum spanning tree of weights (D, D), rooted at its centre; the root's parent is -1.

    The centre is the middle of the longest path, so that no node is deeper than it has to be.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    cost = weights.max() - weights.double() + 1.0  # every edge above 0: none is taken for missing
    cost.fill_diagonal_(0)
    tree = minimum_spanning_tree(csr_matrix(cost.numpy()))
    tree = tree + tree.T

    def walk(root: int) -> tuple[int, numpy.ndarray]:
        order, before = breadth_first_order(tree, root, directed=False)
        return int(order[-1]), before

    far, _ = walk(0)
    other, before = walk(far)
    path = [other]
    while path[-1] != far:
        path.append(int(before[path[-1]]))
    root = path[len(path) // 2]
    parents = torch.from_numpy(walk(root)[1].astype("int64"))
    parents[root] = -1
    return parents


class HiddenTree(nn.Module):
    """A hidden tree: transitions (D, K, K), row = the parent's state, and emissions (D, K, V); both sum to 1 along the last axis.

    parents: (D,), -1 for the root; only row 0 of the root's transition counts. `HiddenTree.grown(x, ...)` finds the tree and fits it.
    Raises UsageError for parents that are no tree.
    """

    def __init__(self, parents: Tensor, states: int, values: int):
        super().__init__()
        if states < 1 or values < 2:
            raise UsageError(f"HiddenTree: states={states}, values={values}: at least 1 state and 2 values are needed")
        self.register_buffer("parents", parents.long())
        count = len(parents)
        self.transitions = nn.Parameter(torch.full((count, states, states), 1.0 / states))
        self.emissions = nn.Parameter(torch.full((count, states, values), 1.0 / values))
        self.levels = _levels(self.parents.tolist())

    @classmethod
    def grown(cls, x: Tensor, states: int, values: int = 256, bins: int = 2, **fit) -> HiddenTree:
        """The Chow-Liu tree of x (N, D), found with values put into `bins` equal ranges, and fitted to x (see `fit`)."""
        made = cls(spanning_tree(mutual_information(x.long() * bins // values, bins)), states, values)
        made.fit(x, **fit)
        return made

    def log_likelihood(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log P(x) in nats (N,) of x (N, D), over the pixels where `observed` (D,) is true; the others are summed out."""
        log_b = self.emissions.clamp_min(TINY).log().transpose(1, 2)
        own = log_b[torch.arange(x.shape[1], device=x.device), x.long()]  # (N, D, K)
        if observed is not None:
            own = own * observed[None, :, None]
        below: Tensor | None = None  # messages to this level's nodes, (N, nodes of the level, K)
        for depth in range(len(self.levels) - 1, -1, -1):
            nodes = self.levels[depth]
            up = own[:, nodes] if below is None else own[:, nodes] + below
            top = up.amax(-1, keepdim=True).detach()
            sums = torch.einsum("pjk,npk->npj", self.transitions[nodes], (up - top).exp())
            message = sums.clamp_min(TINY).log() + top
            if depth == 0:
                return message[:, 0, 0]
            above = self.levels[depth - 1]
            place = torch.full((len(self.parents),), -1)
            place[above] = torch.arange(len(above))
            below = torch.zeros(len(x), len(above), message.shape[-1], dtype=message.dtype)
            below = below.index_add(1, place[self.parents[nodes]], message)
        raise AssertionError("a tree has a root")

    def fit(
        self,
        x: Tensor,
        epochs: int = 3,
        batch_size: int = 256,
        pseudocount: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> int:
        """Expectation maximization on x (N, D); returns the number of steps (batches seen).

        The expected counts are parameter x d log P / d parameter. `epochs` of steps on batches, theta <- (1 - r) theta + r M(batch) with
        r falling from 1 to near 0, then one pass over all of x for an exact last step. pseudocount: examples' worth of each pixel's own
        histogram (emissions) and of the even distribution (transitions) added to each state's counts.
        """
        histogram = _histogram(x, self.emissions.shape[2])
        self._scatter(x, histogram, generator)
        batches = max(1, len(x) // batch_size)
        steps = 0
        for _ in range(epochs if self.emissions.shape[1] > 1 else 0):
            order = torch.randperm(len(x), generator=generator)
            for number in range(batches):
                rows = order[number * batch_size : (number + 1) * batch_size]
                rate = max(0.02, 1.0 - steps / (0.8 * epochs * batches))
                self._maximize(*self._expected(x[rows]), len(x) / len(rows), rate**1.5, pseudocount, histogram)
                steps += 1
        transitions, emissions = torch.zeros_like(self.transitions), torch.zeros_like(self.emissions)
        for rows in torch.arange(len(x)).split(batch_size):
            found = self._expected(x[rows])
            transitions, emissions, steps = transitions + found[0], emissions + found[1], steps + 1
        self._maximize(transitions, emissions, 1.0, 1.0, pseudocount, histogram)
        return steps

    @torch.no_grad()
    def _scatter(self, x: Tensor, histogram: Tensor, generator: torch.Generator | None) -> None:
        """Break the symmetry: each state starts as the histogram of one cluster of examples, in every pixel."""
        count, states = len(self.parents), self.emissions.shape[1]
        if states == 1:
            self.emissions.copy_(histogram.unsqueeze(1))
            return
        some = x[torch.randperm(len(x), generator=generator)[: 100 * states]]
        centres = kmeans(some.float(), min(states, len(some)), 10, generator)
        group = nearest(some.float().unsqueeze(1), centres.unsqueeze(0))[:, 0]
        for state in range(states):
            own = _histogram(some[group == state], self.emissions.shape[2])
            self.emissions[:, state] = 0.5 * own + 0.5 * histogram
        self.transitions.copy_(0.7 * torch.eye(states) + 0.3 / states)
        noise = 0.5 + torch.rand(count, states, states, generator=generator)
        self.transitions.mul_(noise).div_(self.transitions.sum(-1, keepdim=True))

    def _expected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expected counts of transitions and emissions over the examples."""
        with torch.enable_grad():
            total = self.log_likelihood(x).sum()
            slopes = torch.autograd.grad(total, (self.transitions, self.emissions))
        return self.transitions.detach() * slopes[0], self.emissions.detach() * slopes[1]

    @torch.no_grad()
    def _maximize(self, transitions, emissions, scale, rate, pseudocount, histogram) -> None:
        even = pseudocount / transitions.shape[-1]
        for own, counts in (
            (self.transitions, scale * transitions + even),
            (self.emissions, scale * emissions + pseudocount * histogram.unsqueeze(1)),
        ):
            own.lerp_(counts / counts.sum(-1, keepdim=True), rate)


def _levels(parents: list[int]) -> list[Tensor]:
    """The nodes of each depth, the root's first."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    levels = [children.get(-1, [])]
    while levels[-1]:
        levels.append([child for node in levels[-1] for child in children.get(node, [])])
    if len(levels[0]) != 1 or sum(map(len, levels)) != len(parents):
        raise UsageError("HiddenTree: parents must name one root (-1) and lead from every node to it")
    return [torch.tensor(nodes) for nodes in levels[:-1]]


def _histogram(x: Tensor, values: int) -> Tensor:
    """How often each pixel has each value, with one even example added: x (N, D) -> (D, values)."""
    count = x.shape[1]
    flat = x.long() + values * torch.arange(count)
    found = torch.bincount(flat.flatten(), minlength=count * values).reshape(count, values).float()
    return (found + 1.0 / values) / (len(x) + 1)
