"""Distillation over edges: against loops over the edges written out, limits, gradients, and the laws of objectives."""

import dataclasses
import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.graphs import HighFrequency, LowFrequency, high_pass, low_pass
from limbeck.objectives import SoftTargets
from limbeck.signals import Signals

EDGES = torch.tensor([[[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]], [[0, 1, 2, 3, -1, -1], [1, 0, 3, 2, -1, -1]]])
BOTH = pytest.mark.parametrize("objective", [LowFrequency(), LowFrequency(2.0), HighFrequency(), HighFrequency(1.0)])


def example(seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 4, 3, generator=draw, dtype=dtype) for _ in range(2))
    return student, teacher, {"edge_index": EDGES}


def value(objective, student, teacher, batch):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), batch).value


def softmax(values, temperature):
    powers = [math.exp(v / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def written_out(objective, student, teacher, edge_index=EDGES):
    """The formulas, edge by edge in plain Python."""
    z, h, T, losses = student.tolist(), teacher.tolist(), objective.temperature, []
    for graph, (sources, targets) in enumerate(edge_index.tolist()):
        pairs = [(j, i) for j, i in zip(sources, targets) if j >= 0]
        if isinstance(objective, LowFrequency):
            for j, i in pairs + [(i, i) for i in range(len(z[graph]))]:
                losses.append(divergence(softmax(h[graph][j], T), softmax(z[graph][i], T)))
        else:
            for j, i in pairs:
                of_h = [abs(a - b) for a, b in zip(h[graph][i], h[graph][j])]
                of_z = [abs(a - b) for a, b in zip(z[graph][i], z[graph][j])]
                losses.append(divergence(softmax(of_h, T), softmax(of_z, T)))
    return sum(losses) / len(losses)


@BOTH
def test_it_is_the_formula_written_out_edge_by_edge(objective):
    student, teacher, batch = example()
    assert float(value(objective, student, teacher, batch)) == pytest.approx(
        written_out(objective, student, teacher), rel=1e-9
    )


@BOTH
def test_its_gradient_is_that_of_the_written_out_formula(objective):
    student, teacher, batch = example()
    student.requires_grad_()
    value(objective, student, teacher, batch).backward()
    for place in [(0, 0, 0), (0, 2, 1), (1, 3, 2)]:
        ends = []
        for shift in (1e-5, -1e-5):
            moved = student.detach().clone()
            moved[place] += shift
            ends.append(written_out(objective, moved, teacher))
        assert float(student.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_without_edges_the_low_band_is_plain_distillation():
    student, teacher, _ = example()
    batch = {"edge_index": torch.full((2, 2, 3), -1)}
    for temperature in (1.0, 2.0):
        plain = value(SoftTargets(temperature, positions="all"), student, teacher, {}) / temperature**2
        torch.testing.assert_close(value(LowFrequency(temperature), student, teacher, batch), plain)


def test_the_high_band_ignores_what_all_nodes_share_and_the_low_band_does_not():
    student, teacher, batch = example()
    shift = torch.tensor([3.0, -1.0, 0.5])
    high, low = HighFrequency(), LowFrequency()
    torch.testing.assert_close(value(high, student + shift, teacher, batch), value(high, student, teacher, batch))
    assert abs(float(value(low, student + shift, teacher, batch) - value(low, student, teacher, batch))) > 0.1
    assert float(value(high, teacher, teacher, batch)) == pytest.approx(0, abs=1e-12)


def test_a_directed_edge_carries_the_source_to_the_target():
    student, teacher, _ = example()
    student, teacher = student[:1, :2], teacher[:1, :2]
    found = value(LowFrequency(), student, teacher, {"edge_index": torch.tensor([[[0], [1]]])})
    log_p, log_q = teacher[0].log_softmax(-1), student[0].log_softmax(-1)
    pairs = [(0, 1), (0, 0), (1, 1)]
    expected = sum((log_p[j].exp() * (log_p[j] - log_q[i])).sum() for j, i in pairs) / 3
    torch.testing.assert_close(found, expected)


@BOTH
def test_padding_masked_nodes_and_graphs_of_weight_zero_are_not_there(objective):
    student, teacher, batch = example()
    alone = value(objective, student[:1], teacher[:1], {"edge_index": EDGES[:1]})
    student[1], teacher[1] = torch.nan, torch.nan
    torch.testing.assert_close(
        value(objective, student, teacher, batch | {"sample_weight": torch.tensor([2.0, 0.0])}), alone
    )
    student, teacher, _ = example()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    cut = torch.tensor([[[0, 1, 1, 2, -1, -1], [1, 0, 2, 1, -1, -1]], EDGES[1].tolist()])
    student[0, 3], teacher[0, 3] = torch.nan, torch.nan
    student.requires_grad_()
    found = value(objective, student, teacher, batch | {"attention_mask": mask})
    found.backward()
    assert float(student.grad[0, 3].abs().max()) == 0
    clean = torch.nan_to_num(student.detach()), torch.nan_to_num(teacher)
    expected = value(objective, *clean, {"edge_index": cut})
    if isinstance(
        objective, LowFrequency
    ):  # the self-loop of the masked node (two zero vectors) costs 0 but is counted
        expected = expected * (8 + 8) / (7 + 8)
    torch.testing.assert_close(found.detach(), expected)


@BOTH
def test_it_keeps_the_laws_of_objectives(objective):
    student, teacher, batch = example(dtype=torch.float32)
    hash(objective)
    assert objective == dataclasses.replace(objective)
    student.requires_grad_(), teacher.requires_grad_()
    found = value(objective, student, teacher, batch)
    found.backward()
    assert teacher.grad is None
    assert float(student.grad.abs().max()) > 1e-4
    student, teacher = student.detach(), teacher.detach()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(value(objective, student[..., order], teacher[..., order], batch), found.detach())
    torch.testing.assert_close(
        value(objective, student.flip(0), teacher.flip(0), {"edge_index": EDGES.flip(0)}), found.detach()
    )
    half = value(objective, student.bfloat16(), teacher.bfloat16(), batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value(objective, student.bfloat16().float(), teacher.bfloat16().float(), batch))
    assert bool(value(objective, 1e4 * student.sign(), 1e4 * teacher.sign(), batch).isfinite())


def test_the_filters_are_those_of_the_dense_matrix():
    x = example()[0]
    for graph in range(2):
        real = EDGES[graph][:, EDGES[graph][0] >= 0]
        adjacency = torch.eye(4, dtype=x.dtype)
        adjacency[real[1], real[0]] = 1
        degree = adjacency.sum(1)
        dense = adjacency / degree.sqrt()[:, None] / degree.sqrt()[None, :]
        torch.testing.assert_close(low_pass(x, EDGES)[graph], dense @ x[graph])
        torch.testing.assert_close(high_pass(x, EDGES)[graph], (torch.eye(4, dtype=x.dtype) - dense) @ x[graph])


def test_nonsense_is_refused():
    student, teacher, batch = example()
    for bad in (0, -1.0, float("nan"), "2"):
        with pytest.raises(UsageError, match="temperature"):
            HighFrequency(bad)
    with pytest.raises(UsageError, match="edge_index"):
        value(LowFrequency(), student, teacher, {"labels": torch.zeros(2, 4)})
    with pytest.raises(UsageError, match="must both be"):
        value(LowFrequency(), student, teacher[..., :2], batch)
