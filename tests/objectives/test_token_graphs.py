"""Graphs over the tokens of a batch against plain loops in float64: value and gradient."""

import pytest
import torch
from agreement import agree, draw

from limbeck.errors import UsageError
from limbeck.objectives import TokenContrast, TokenGraph
from limbeck.objectives.relations.token_graphs import neighbour_graph
from limbeck.signals import Signals

MASK, WEIGHT = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([1.0, 3.0])
BATCH = {"attention_mask": MASK, "sample_weight": WEIGHT}
COUNTED = [(b, i, float(WEIGHT[b])) for b in range(2) for i in range(3) if MASK[b, i]]


def unit(v):
    return v / v.square().sum().sqrt()


def mean(losses):
    return sum(w * v for (_, _, w), v in zip(COUNTED, losses)) / sum(w for _, _, w in COUNTED)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_token_graph(direction):
    n = len(COUNTED)

    def rows(x):
        x = [x[b, i] for b, i, _ in COUNTED]
        squared = [[(a - b).square().sum() for b in x] for a in x]
        scale = sum(map(sum, squared)) / (n * (n - 1))
        graph = []
        for i in range(n):
            nearest = sorted((j for j in range(n) if j != i), key=lambda j, i=i: float(squared[i][j]))[:2]
            zero = torch.zeros((), dtype=torch.float64)
            row = [torch.exp(-squared[i][j] / (2 * 0.5 * scale)) if j in nearest else zero for j in range(n)]
            total = sum(torch.exp(a) for a in row)
            graph.append([torch.exp(a) / total for a in row])
        return graph

    def reference(s, t):
        pairs = zip(rows(s), rows(t)) if direction == "reverse" else zip(rows(t), rows(s))
        return mean([sum(a * torch.log(a / b) for a, b in zip(p, q)) for p, q in pairs])

    agree(
        TokenGraph("a", neighbours=2, sigma=0.5, direction=direction),
        draw(2, 3, 4),
        draw(2, 3, 5),
        BATCH,
        reference,
        "a",
    )


def test_a_graph_holds_as_many_neighbours_as_asked_for_and_not_the_token_itself():
    graph = neighbour_graph(draw(7, 3), 2, 1.0)
    assert (graph > 0).sum(1).tolist() == [2] * 7
    assert float(graph.diagonal().abs().max()) == 0
    assert (neighbour_graph(draw(3, 3), 9, 1.0) > 0).sum(1).tolist() == [2] * 3
    torch.testing.assert_close(neighbour_graph(5 * draw(7, 3) + 1, 2, 1.0), graph)


@pytest.mark.parametrize(("epoch", "temperature"), [(None, 0.5), (0, 0.5), (1, 0.4), (9, 0.1)])
def test_token_contrast(epoch, temperature):
    objective = TokenContrast("a", epochs=None if epoch is None else 4)
    s, t = draw(2, 3, 4), draw(2, 3, 5)
    made = objective.connectors(Signals({"a": s}), Signals({"a": t}))
    weight, bias = (p.detach().double() for p in made["projector"].parameters())

    def reference(s, t):
        ours = [unit(weight @ s[b, i] + bias) for b, i, _ in COUNTED]
        theirs = [unit(t[b, i]) for b, i, _ in COUNTED]
        scores = [[torch.exp((a * b).sum() / temperature) for b in theirs] for a in ours]
        return mean([-torch.log(row[i] / sum(row)) for i, row in enumerate(scores)])

    agree(objective, s, t, BATCH if epoch is None else BATCH | {"epoch": epoch}, reference, "a", made)
    if epoch == 0:
        with pytest.raises(UsageError, match="epoch"):
            objective(Signals({"a": s}), Signals({"a": t}), BATCH, made)


def test_the_same_tokens_are_drawn_of_both_models():
    x = draw(4, 3, 5, 5)
    objective = TokenGraph("a", tokens=20, neighbours=3)
    assert float(objective(Signals({"a": x}), Signals({"a": 2 * x}), {}).value) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    other = Signals({"a": draw(4, 6, 5, 5)})
    values = {float(objective(Signals({"a": x}), other, {}).value) for _ in range(3)}
    assert len(values) == 3


def test_vectors_have_no_tokens():
    for objective in (TokenGraph("a"), TokenContrast("a")):
        with pytest.raises(UsageError, match="needs tokens"):
            objective(Signals({"a": draw(3, 4)}), Signals({"a": draw(3, 4)}), {})
