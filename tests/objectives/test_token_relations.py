"""Token relations against loops over heads, queries and keys, and against the attention maps that a model computes."""

import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.models import encoder
from limbeck.objectives import TokenRelations
from limbeck.signals import Signals, capture

QK = TokenRelations(("query", "key"), ("query", "key"), heads=2)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row):
    e = [math.exp(x - max(row)) for x in row]
    return [x / sum(e) for x in e]


def reference(left, right, heads, mask, weight, causal=False, loss="kl"):
    """Plain loops; left and right are (student, teacher) pairs of lists."""
    total, count = 0.0, 0.0
    for b in range(len(mask)):
        tokens = [i for i in range(len(mask[b])) if mask[b][i]]
        for h in range(heads):
            for i in tokens:
                rows = []
                for a, c in zip(left, right):
                    d = a.shape[-1] // heads
                    part = slice(h * d, (h + 1) * d)
                    keys = [j for j in tokens if not causal or j <= i]
                    rows.append([float(a[b, i, part] @ c[b, j, part]) / math.sqrt(d) for j in keys])
                if loss == "mse":
                    total += weight[b] * sum((s - t) ** 2 for s, t in zip(*rows))
                    count += weight[b] * len(rows[0])
                elif loss == "maps":
                    total += weight[b] * sum((s - t) ** 2 for s, t in zip(*map(softmax, rows)))
                    count += weight[b] * len(rows[0])
                else:
                    own, target = map(softmax, rows)
                    total += weight[b] * sum(t * math.log(t / s) for s, t in zip(own, target))
                    count += weight[b]
    return total / count


@pytest.mark.parametrize("loss", ["kl", "mse", "maps"])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradient_equal_plain_loops(loss, causal):
    query, key = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    others = draw(3, 5, 6, seed=2), draw(3, 5, 6, seed=3)
    mask, weight = torch.ones(3, 5).long(), torch.tensor([1.0, 0.5, 2.0])
    mask[0, 3:], mask[2, 1:] = 0, 0
    objective = TokenRelations(("query", "key"), ("query", "key"), heads=2, loss=loss, causal=causal)
    batch = {"attention_mask": mask, "sample_weight": weight}

    def value(query, key):
        return objective(
            Signals({"query": query, "key": key}), Signals({"query": others[0], "key": others[1]}), batch
        ).value

    settings = (2, mask.tolist(), weight.tolist(), causal, loss)
    expected = reference((query, others[0]), (key, others[1]), *settings)
    assert float(value(query, key)) == pytest.approx(expected, rel=1e-10)
    moved = query.clone().requires_grad_()
    value(moved, key).backward()
    step = 1e-6
    for at in ((0, 1, 2), (1, 4, 0), (2, 0, 3)):
        ends = []
        for sign in (1, -1):
            other = query.clone()
            other[at] += sign * step
            ends.append(reference((other, others[0]), (key, others[1]), *settings))
        assert float(moved.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-9)


def test_query_key_relations_are_the_attention_maps_of_a_model():
    student, teacher = encoder(9, depth=1, width=8, heads=2).eval(), encoder(9, depth=3, width=12, heads=2).eval()
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])}
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for model in (student, teacher):  # initial weights are so small that every map is flat
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    paths = [tuple(f"blocks.{layer}.attention.{part}" for part in ("query", "key")) for layer in (0, 2)]
    objective = TokenRelations(*paths, heads=2)
    signals = [
        capture(m, batch, names)
        for m, names in ((student, objective.reads.student), (teacher, objective.reads.teacher))
    ]
    maps = [capture(m, batch, {f"blocks.{layer}.attention.weights"}) for m, layer in ((student, 0), (teacher, 2))]
    own, target = (next(iter(found.values())) for found in maps)
    each = (target * (target.clamp_min(1e-30).log() - own.clamp_min(1e-30).log())).sum(-1).mean(1)
    counted = batch["attention_mask"].bool()
    torch.testing.assert_close(objective(*signals, batch).value, each[counted].mean(), rtol=1e-5, atol=1e-7)
    assert float(each[counted].detach().mean()) > 1e-3


def test_one_name_relates_a_signal_with_itself():
    x, y = draw(2, 3, 4), draw(2, 3, 8, seed=1)
    once = TokenRelations("value", "value", heads=2)
    twice = TokenRelations(("value", "value"), ("value", "value"), heads=2)
    signals = Signals({"value": x}), Signals({"value": y})
    assert torch.equal(once(*signals, {}).value, twice(*signals, {}).value)
    assert once.reads.student == twice.reads.student == {"value"}


def test_refusals():
    for wrong in ((), ("a", "b", "c")):
        with pytest.raises(UsageError, match="one signal, or two"):
            TokenRelations(wrong, "a", heads=2)
    with pytest.raises(UsageError, match="heads=0"):
        TokenRelations("a", "a", heads=0)
    with pytest.raises(UsageError, match="loss='js' is unknown"):
        TokenRelations("a", "a", heads=1, loss="js")
    signals = Signals({"query": draw(2, 3, 4), "key": draw(2, 3, 4)})
    for odd in (draw(2, 4, 4), draw(2, 3, 5), draw(2, 4)):
        with pytest.raises(UsageError, match="cut into 2 heads"):
            QK(signals, Signals({"query": odd, "key": odd}), {})


def test_a_map_is_the_sequence_of_its_places():
    own, target = draw(2, 4, 2, 3), draw(2, 6, 2, 3, seed=1)
    for loss in ("kl", "maps"):
        objective = TokenRelations("a", "a", heads=2, loss=loss)
        values = [
            objective(Signals({"a": change(own)}), Signals({"a": change(target)}), {}).value
            for change in (lambda x: x, lambda x: x.flatten(2).transpose(1, 2))
        ]
        torch.testing.assert_close(*values)
