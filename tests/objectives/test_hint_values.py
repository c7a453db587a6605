"""Hints, embedding distances and similarities against an independent computation in float64: value and gradient, to 1e-5."""

import pytest
import torch
from agreement import agree, draw
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives import (
    EmbeddingDistance,
    Hint,
    SimilarityDistillation,
)
from limbeck.signals import Signals


def softmax(z):
    e = (z - z.max()).exp()
    return e / e.sum()


def project(connector, x):
    """A projector in float64, by hand: x (..., D) times weight plus bias."""
    weight = connector.weight.detach().double().flatten(1)
    return x @ weight.T + connector.bias.detach().double()


def connectors_of(objective, student, teacher, name="layer"):
    torch.manual_seed(0)
    return objective.connectors(Signals({name: student}), Signals({name: teacher}))


def test_hint_of_maps_with_projector_and_pooling():
    s, t, objective = draw(2, 3, 4, 4), draw(2, 5, 2, 2, seed=1), Hint("layer")
    made = connectors_of(objective, s, t)
    assert isinstance(made["projector"], nn.Conv2d)

    def reference(s, t):
        pooled = torch.stack(
            [s[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in (0, 1) for j in (0, 1)], 1
        )
        return (project(made["projector"], pooled) - t.flatten(2).transpose(1, 2)).square().sum() / (2 * 4 * 5)

    agree(objective, s, t, {}, reference, "layer", made)


def test_hint_interpolates_to_the_teachers_size_when_asked():
    s, t, objective = draw(2, 3, 2, 2), draw(2, 3, 4, 4, seed=1), Hint("layer", resizing="interpolate")

    def reference(s, t):
        weights = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)  # half-pixel centres
        return (torch.einsum("ip,bcpq,jq->bcij", weights, s, weights) - t).square().mean()

    agree(objective, s, t, {}, reference, "layer")


def test_a_normalized_hint_compares_directions_after_the_projector():
    s, t, objective = draw(2, 3, 4), draw(2, 3, 5, seed=1), Hint("layer", loss="l1", normalize=True)
    made = connectors_of(objective, s, t)

    def reference(s, t):
        own = project(made["projector"], s)
        pairs = [(own[b, n], t[b, n]) for b in range(2) for n in range(3)]
        gaps = [(a / a.square().sum().sqrt() - b / b.square().sum().sqrt()).abs().sum() / 5 for a, b in pairs]
        return sum(gaps) / 6

    agree(objective, s, t, {}, reference, "layer", made)


def test_a_normalized_hint_has_no_gradient_at_a_state_of_zeros():
    s = torch.zeros(1, 2, 3, requires_grad=True)
    Hint("layer", normalize=True)(Signals({"layer": s}), Signals({"layer": draw(1, 2, 3)}), {}).value.backward()
    assert not s.grad.any()


def test_a_standardized_hint_imitates_the_deviation_from_the_mean_over_the_width():
    s, t = draw(2, 3, 4), draw(2, 3, 4, seed=1)

    def reference(s, t):
        scaled = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (s - scaled).square().mean()

    agree(Hint("layer", standardize=True), s, t, {}, reference, "layer")


def test_the_paper_form_of_the_hint_is_half_the_squared_norm():
    s, t = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    objective = Hint("layer", loss="half_squared_norm")
    agree(objective, s, t, {}, lambda s, t: 0.5 * (s - t).square().sum() / 2, "layer")


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("l1", lambda s, t: (s - t).abs().sum() / 30),
        (
            "smooth_l1",
            lambda s, t: sum(0.5 * d**2 if abs(d) <= 1 else abs(d) - 0.5 for d in (s - t).flatten()) / 30,
        ),
        ("cosine", lambda s, t: sum(1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt() for a, b in zip(s, t)) / 5),
    ],
)
def test_other_distances_of_vectors(loss, reference):
    agree(Hint("layer", loss=loss), draw(5, 6), draw(5, 6, seed=1), {}, reference, "layer")


def test_hint_of_tokens_with_projector():
    s, t, mask, objective = draw(2, 3, 4), draw(2, 3, 6, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]]), Hint("layer")
    made = connectors_of(objective, s, t)
    assert isinstance(made["projector"], nn.Linear)

    def reference(s, t):
        kept = ((0, 0), (0, 1), (1, 0))
        return sum((project(made["projector"], s[b, i]) - t[b, i]).square().mean() for b, i in kept) / 3

    agree(objective, s, t, {"attention_mask": mask}, reference, "layer", made)


def test_attention_maps_count_pairs_of_real_tokens_only():
    s, t, mask = draw(2, 2, 3, 3), draw(2, 2, 3, 3, seed=1), torch.tensor([[1, 1, 1], [1, 1, 0]])

    def reference(s, t):
        return ((s[0] - t[0]).square().sum() + (s[1, :, :2, :2] - t[1, :, :2, :2]).square().sum()) / (2 * (9 + 4))

    agree(Hint("attention"), s, t, {"attention_mask": mask}, reference, "attention")


def test_maps_beside_tokens_and_vectors():
    maps, tokens, vectors = draw(2, 3, 4, 4), draw(2, 5, 3, seed=1), draw(2, 3, seed=2)

    def reference(s, t):  # the class token is left out; 4 x 4 places are averaged to 2 x 2
        pooled = s.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
        return (pooled - t[:, 1:].transpose(1, 2).reshape(2, 3, 2, 2)).square().mean()

    agree(Hint("layer"), maps, tokens, {}, reference, "layer")
    agree(Hint("layer"), maps, vectors, {}, lambda s, t: (s.mean((2, 3)) - t).square().mean(), "layer")
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def averaged(s, t):
        return (torch.stack([s[0, :3].mean(0), s[1].mean(0)]) - t).square().mean()

    agree(Hint("layer"), tokens, vectors, {"attention_mask": mask}, averaged, "layer")


def test_the_projector_learns_with_the_student():
    objective = Hint("a", "b") + EmbeddingDistance()
    student = Signals({"a": draw(3, 4).requires_grad_(), "logits": draw(3, 5).requires_grad_()})
    teacher = Signals({"b": draw(3, 6, seed=1), "logits": draw(3, 2, seed=1)})
    made = objective.connectors(student, teacher)
    assert set(made) == {"0_projector", "1_projector"}
    objective(student, teacher, {}, made).value.backward()
    assert all(float(p.grad.abs().sum()) > 0 for module in made.values() for p in module.parameters())


def test_embedding_distance_with_both_terms():
    s, t, objective = (
        draw(4, 3),
        draw(4, 5, seed=1),
        EmbeddingDistance(mean_squared_error=2.0, cosine=0.5, normalize=True),
    )
    made = connectors_of(objective, s, t, "logits")

    def reference(s, t):
        total = 0.0
        for si, ti in zip(project(made["projector"], s), t):
            si, ti = si / si.norm(), ti / ti.norm()
            total = total + 2.0 * ((si - ti) ** 2).sum() / 5 + 0.5 * (1 - (si * ti).sum())
        return total / 4

    agree(objective, s, t, {}, reference, connectors=made)


def cosines(x):
    return [[(a @ b) / (a.norm() * b.norm()) for b in x] for a in x]


def test_similarity_distillation_as_divergence_of_rows():
    s, t = draw(5, 3), draw(5, 4, seed=1)

    def reference(s, t):
        total, ours, theirs = 0.0, cosines(s), cosines(t)
        for i in range(5):
            q = softmax(torch.stack([ours[i][j] for j in range(5) if j != i]) / 0.1)
            p = softmax(torch.stack([theirs[i][j] for j in range(5) if j != i]) / 0.1)
            total = total + (p * (torch.log(p) - torch.log(q))).sum()
        return total / 5

    agree(SimilarityDistillation(temperature=0.1), s, t, {}, reference)


def test_similarity_distillation_as_squared_error():
    s, t = draw(5, 3), draw(5, 4, seed=1)

    def reference(s, t):
        ours, theirs = cosines(s), cosines(t)
        return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(5) for j in range(5) if i != j) / 20

    agree(SimilarityDistillation(loss="mse"), s, t, {}, reference)


def test_similarity_needs_candidates():
    two = Signals({"logits": draw(2, 3)})
    with pytest.raises(UsageError, match="at least 3"):
        SimilarityDistillation().connectors(two, two)
    assert SimilarityDistillation(loss="mse").connectors(two, two) == {}
    signals = Signals({"logits": draw(2, 3)}), Signals({"logits": draw(2, 3, seed=1)})
    assert float(SimilarityDistillation()(*signals, {}).value) == 0  # the rest of an epoch
    assert float(SimilarityDistillation(loss="mse")(*signals, {}).value) > 0
