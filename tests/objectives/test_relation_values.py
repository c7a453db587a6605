"""Relations between examples against plain loops over the formula, in float64: value and gradient."""

import math

import pytest
import torch
from agreement import agree, draw

from limbeck.errors import UsageError
from limbeck.objectives import (
    AngleRelations,
    DistanceRelations,
    FeatureCorrelation,
    GramInformation,
    KernelAlignment,
    SimilarityDistillation,
)
from limbeck.signals import Signals

N = 5
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
BATCH = {"sample_weight": WEIGHT}
w = WEIGHT.tolist()


def length(v):
    return v.square().sum().sqrt()


def huber(gap, delta):
    return 0.5 * gap**2 if abs(float(gap)) <= delta else delta * (abs(gap) - 0.5 * delta)


def average(terms):
    """The mean of (weight, value) pairs."""
    return sum(m * v for m, v in terms) / sum(m for m, _ in terms)


@pytest.mark.parametrize("delta", [1.0, 0.1])
def test_distances(delta):
    pairs = [(i, j) for i in range(N) for j in range(N) if i != j]

    def relative(x):
        d = {(i, j): length(x[i] - x[j]) for i, j in pairs}
        mean = average([(w[i] * w[j], d[i, j]) for i, j in pairs])
        return {p: v / mean for p, v in d.items()}

    def reference(s, t):
        ours, theirs = relative(s), relative(t)
        return average([(w[i] * w[j], huber(ours[i, j] - theirs[i, j], delta)) for i, j in pairs])

    agree(DistanceRelations(delta=delta), draw(N, 3), draw(N, 4), BATCH, reference)


@pytest.mark.parametrize("delta", [1.0, 0.2])
def test_angles(delta):
    triplets = [(i, j, k) for i in range(N) for j in range(N) for k in range(N) if len({i, j, k}) == 3]

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return (a * b).sum() / (length(a) * length(b))

    def reference(s, t):
        return average(
            [(w[i] * w[j] * w[k], huber(cosine(s, i, j, k) - cosine(t, i, j, k), delta)) for i, j, k in triplets]
        )

    agree(AngleRelations(delta=delta), draw(N, 3), draw(N, 4), BATCH, reference)


def test_distances_and_angles_do_not_see_rotation_and_scale():
    x = draw(6, 4)
    turn = torch.linalg.qr(draw(4, 4))[0]
    for objective in (DistanceRelations(), AngleRelations(), KernelAlignment()):
        value = objective(Signals({"logits": 3 * x @ turn + 1}), Signals({"logits": x}), {}).value
        assert float(value) == pytest.approx(0, abs=1e-6)


def test_points_in_the_same_place_give_a_finite_gradient():
    x = torch.ones(4, 3)
    x[0] = 2
    for objective in (DistanceRelations(), AngleRelations(), KernelAlignment()):
        ours = x.clone().requires_grad_()
        objective(Signals({"logits": ours}), Signals({"logits": draw(4, 3)}), {}).value.backward()
        assert float(ours.grad.abs().max()) < 1e3


def test_similarities_as_probabilities():
    def distribution(x, i):
        kernel = {j: ((x[i] * x[j]).sum() / (length(x[i]) * length(x[j])) + 1) / 2 for j in range(N) if j != i}
        return {j: v / sum(kernel.values()) for j, v in kernel.items()}

    def reference(s, t):
        rows = []
        for i in range(N):
            p, q = distribution(t, i), distribution(s, i)
            rows.append((w[i], sum(p[j] * torch.log(p[j] / q[j]) for j in p)))
        return average(rows)

    agree(SimilarityDistillation("kernel"), draw(N, 3), draw(N, 4), BATCH, reference)


def test_similarity_preserving():
    def gram(x):
        x = [v.flatten() for v in x]
        rows = [torch.stack([(a * b).sum() for b in x]) for a in x]
        return [r / length(r) for r in rows]

    def reference(s, t):
        ours, theirs = gram(s), gram(t)
        return average([(w[i] * w[j], (ours[i][j] - theirs[i][j]) ** 2) for i in range(N) for j in range(N)])

    agree(SimilarityDistillation("gram"), draw(N, 3, 2, 2), draw(N, 4, 3, 3), BATCH, reference)


def covariance(x, y, m):
    mean = [average([(m[k], z[k]) for k in range(N)]) for z in (x, y)]
    return sum(m[k] * (x[k] - mean[0]) * (y[k] - mean[1]) for k in range(N))


def test_kernel_alignment():
    def cross(x, y):
        return sum(covariance(x[:, a], y[:, b], w) ** 2 for a in range(x.shape[1]) for b in range(y.shape[1]))

    def reference(s, t):
        return 1 - cross(s, t) / (cross(s, s) * cross(t, t)).sqrt()

    agree(KernelAlignment(), draw(N, 3), draw(N, 4), BATCH, reference)


def test_feature_correlation():
    objective = FeatureCorrelation(alpha=1.2)
    s, t = draw(N, 3), draw(N, 4)
    made = objective.connectors(Signals({"logits": s}), Signals({"logits": t}))
    weight, bias = (p.detach().double() for p in made["projector"].parameters())

    def reference(s, t):
        s = s @ weight.T + bias
        total = 0
        for i in range(4):
            a, b = s[:, i], t[:, i]
            c = covariance(a, b, w) / (covariance(a, a, w) * covariance(b, b, w)).sqrt()
            total = total + (1 - c) ** 2.4
        return torch.log(total) / math.log(2)

    agree(objective, s, t, BATCH, reference, connectors=made)
    with pytest.raises(UsageError, match="hand over"):
        objective(Signals({"logits": s}), Signals({"logits": t}), BATCH)


@pytest.mark.parametrize("logarithm", [True, False])
def test_gram_information(logarithm):
    def cosines(x):
        x = [v / length(v) for v in x]
        return [[(a * b).sum() for b in x] for a in x]

    def density(gram):  # of trace 1; each example carries its weight
        total = sum(w[i] * gram[i][i] for i in range(N))
        return [[math.sqrt(w[i] * w[j]) * gram[i][j] / total for j in range(N)] for i in range(N)]

    def reference(s, t):
        ours, theirs = cosines(s), cosines(t)
        joint = [[a * b for a, b in zip(*rows)] for rows in zip(ours, theirs)]
        alone, both = (sum(v**2 for row in density(g) for v in row) for g in (ours, joint))
        return (torch.log(alone) - torch.log(both)) / math.log(2) if logarithm else alone - both

    agree(GramInformation(logarithm=logarithm), draw(N, 4), draw(N, 4, seed=3), BATCH, reference)


def test_the_information_is_the_joint_entropys_gain():
    """All examples alike in the student: S(G_s) = 0, S(joint) = S(G_t). All apart in both: 0 on the log scale."""
    alike, apart = torch.ones(4, 4), torch.eye(4)
    signals = Signals({"logits": alike}), Signals({"logits": apart})
    assert float(GramInformation()(*signals, {}).value) == pytest.approx(2.0)  # log2 of four
    assert float(GramInformation()(Signals({"logits": apart}), signals[1], {}).value) == pytest.approx(0.0)


def test_a_batch_too_small_is_refused_first_and_skipped_later():
    for objective in (DistanceRelations(), AngleRelations(), KernelAlignment(), SimilarityDistillation("kernel")):
        small = Signals({"logits": draw(2, 3)})
        with pytest.raises(UsageError, match="at least 3"):
            objective.connectors(small, small)
        assert float(objective(small, Signals({"logits": draw(2, 5)}), {}).value) == 0
