"""CKA of whole data sets and the layer maps it guides."""

import itertools

import pytest
import torch
from torch import nn

from limbeck.errors import DataError, UsageError
from limbeck.measure import layer_similarities
from limbeck.objectives import AttentionTransfer, Hint, KernelAlignment, layer_map, over_layers
from limbeck.signals import Signals, capture


def network(seed, widths=(5, 6, 7)):
    torch.manual_seed(seed)
    return nn.Sequential(*(m for a, b in itertools.pairwise((4, *widths)) for m in (nn.Linear(a, b), nn.Tanh())))


def batches(*sizes):
    x = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(0))
    return [{"x": part} for part in x.split(sizes)]


def test_the_similarity_is_that_of_all_examples_at_once_however_they_are_cut():
    first, second = network(0), network(1, (3, 9))
    found = layer_similarities(first, second, batches(20, 20, 3), ("0", "logits"), ("1", "3"))
    whole = next(iter(batches(43)))
    signals = capture(first, whole, {"0", "logits"}), capture(second, whole, {"1", "3"})
    for a, b in itertools.product(("0", "logits"), ("1", "3")):
        loss = KernelAlignment(a, b)(Signals({a: signals[0][a]}), Signals({b: signals[1][b]}), {}).value
        assert found[a][b] == pytest.approx(1 - float(loss), abs=1e-5)


def test_a_model_is_like_itself_up_to_rotation_and_unlike_a_constant():
    model = network(0)
    turned = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5))
    turned[0].load_state_dict(model[0].state_dict())
    with torch.no_grad():
        turned[1].weight.copy_(3 * torch.linalg.qr(torch.randn(5, 5))[0])
    assert layer_similarities(model, turned, batches(30), ("0",), ("1",))["0"]["1"] == pytest.approx(1)
    nn.init.zeros_(turned[1].weight)
    assert layer_similarities(model, turned, batches(30), ("0",), ("1",))["0"]["1"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="3 are needed"):
        layer_similarities(model, turned, batches(2), ("0",), ("1",))


def test_the_ordered_map_is_the_best_of_all_ordered_ones():
    for seed in range(5):
        values = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)).tolist()
        table = {f"s{i}": {f"t{j}": v for j, v in enumerate(row)} for i, row in enumerate(values)}
        rising = [c for c in itertools.product(range(4), repeat=3) if list(c) == sorted(c)]
        best = max(rising, key=lambda c: sum(values[i][j] for i, j in enumerate(c)))
        assert layer_map(table) == {f"s{i}": f"t{j}" for i, j in enumerate(best)}
        free = layer_map(table, ordered=False)
        assert free == {f"s{i}": f"t{row.index(max(row))}" for i, row in enumerate(values)}


def test_a_copy_of_some_layers_finds_them_again_and_learns_from_them():
    teacher = network(0, (8, 8, 8, 8))
    student = nn.Sequential(*list(teacher)[:2], nn.Sequential(*list(teacher)[2:6]), *list(teacher)[6:])
    found = layer_similarities(student, teacher, batches(60), ("1", "2", "4"), ("1", "3", "5", "7"))
    assert layer_map(found) == {"1": "1", "2": "5", "4": "7"}
    objective = over_layers(Hint, layer_map(found), loss="cosine")
    assert {term.loss for term, _ in objective.terms} == {"cosine"}
    signals = [
        capture(m, next(iter(batches(5))), r)
        for m, r in zip((student, teacher), (objective.reads.student, objective.reads.teacher))
    ]
    assert float(objective(*signals, {}).value) == pytest.approx(0, abs=1e-6)


def test_over_layers_is_the_mean_over_the_pairs():
    s = {"a": torch.randn(2, 3, 2, 2), "b": torch.randn(2, 3, 2, 2)}
    t = {"c": torch.randn(2, 3, 2, 2), "d": torch.randn(2, 3, 2, 2)}
    both = over_layers(AttentionTransfer, {"a": "c", "b": "d"})(Signals(s), Signals(t), {}).value
    each = [AttentionTransfer(*pair)(Signals(s), Signals(t), {}).value for pair in (("a", "c"), ("b", "d"))]
    torch.testing.assert_close(both, sum(each) / 2)


def test_refusals():
    with pytest.raises(UsageError, match="no layer"):
        layer_map({})
    with pytest.raises(UsageError, match="same layers"):
        layer_map({"a": {"x": 1.0}, "b": {"y": 1.0}})
    with pytest.raises(UsageError, match="pairs is empty"):
        over_layers(Hint, {})
    with pytest.raises(UsageError, match="at least one layer"):
        layer_similarities(network(0), network(1), [], (), ("0",))
