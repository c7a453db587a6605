"""Every objective against an independent computation in float64: its value and its gradient, to 1e-5."""

import math

import pytest
import torch
from agreement import agree, draw
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives import (
    BalancedDivergence,
    CrossEntropy,
    EmbeddingDistance,
    Hint,
    MeanSquaredError,
    MixedTargets,
    SoftTargets,
    SymmetricKL,
    divergences,
)
from limbeck.signals import Signals


def softmax(z):
    e = (z - z.max()).exp()
    return e / e.sum()


def test_cross_entropy_of_hard_labels_with_weights_and_ignored_ones():
    z, y, w = draw(5, 4), torch.tensor([1, 3, -100, 0, 2]), torch.tensor([1.0, 2.0, 5.0, 0.5, 1.0])

    def reference(z, _):
        terms = [(wi, -torch.log(softmax(zi)[yi])) for zi, yi, wi in zip(z, y, w) if yi != -100]
        return sum(wi * li for wi, li in terms) / sum(wi for wi, _ in terms)

    agree(CrossEntropy(), z, z, {"labels": y, "sample_weight": w}, reference)


def test_cross_entropy_smoothed_and_soft():
    z, p = draw(5, 4), torch.softmax(draw(5, 4, seed=9), -1)

    def reference(z, _):
        target = 0.9 * p.double() + 0.1 / 4
        return sum(-(ti * torch.log(softmax(zi))).sum() for zi, ti in zip(z, target)) / 5

    agree(CrossEntropy(0.1), z, z, {"labels": p}, reference)


def test_cross_entropy_is_torchs_own_for_language_models():
    z, y = draw(2, 3, 7), torch.tensor([[1, 2, -100], [6, 0, 3]])

    def reference(z, _):
        return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), label_smoothing=0.3)

    agree(CrossEntropy(0.3), z, z, {"labels": y}, reference)


def test_cross_entropy_with_another_ignored_label():
    z = draw(3, 4)
    loss = CrossEntropy(ignore_index=0)(Signals({"logits": z}), Signals({}), {"labels": torch.tensor([0, 2, 0])}).value
    torch.testing.assert_close(loss, -torch.log_softmax(z, -1)[1, 2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets(temperature):
    z, t = draw(5, 6), 3 * draw(5, 6, seed=1)

    def reference(z, t):
        total = 0.0
        for zi, ti in zip(z, t):
            q, p = softmax(zi / temperature), softmax(ti / temperature)
            total = total + sum(pc * (torch.log(pc) - torch.log(qc)) for pc, qc in zip(p, q))
        return temperature**2 * total / 5

    agree(SoftTargets(temperature), z, t, {}, reference)


def test_soft_targets_has_the_closed_form_gradient():
    """dL/dz = T (softmax(z / T) - softmax(t / T)) / positions."""
    z, t = draw(5, 6).requires_grad_(), draw(5, 6, seed=1)
    SoftTargets(3.0)(Signals({"logits": z}), Signals({"logits": t}), {}).value.backward()
    expected = 3.0 * (torch.softmax(z.detach() / 3, -1) - torch.softmax(t / 3, -1)) / 5
    torch.testing.assert_close(z.grad, expected, rtol=1e-5, atol=1e-7)


def test_soft_targets_tend_to_centred_logit_matching_at_high_temperature():
    """Hinton et al. 2015, section 2.1: with zero-mean logits the gradient tends to (z - t) / C."""
    z, t = (x - x.mean(-1, keepdim=True) for x in (draw(4, 5).double(), draw(4, 5, seed=1).double()))
    z.requires_grad_()
    SoftTargets(1e4)(Signals({"logits": z}), Signals({"logits": t}), {}).value.backward()
    torch.testing.assert_close(z.grad, (z.detach() - t) / 5 / 4, rtol=1e-3, atol=1e-5)


def test_soft_targets_average_over_tokens_that_count():
    z, t, mask = draw(2, 3, 5), draw(2, 3, 5, seed=1), torch.tensor([[1, 1, 1], [1, 0, 0]])
    labels = torch.tensor([[2, -100, 1], [0, 0, 0]])

    def reference(z, t):
        pairs = [(z[b, i], t[b, i]) for b, i in ((0, 0), (0, 2), (1, 0))]
        return (
            4
            * sum(
                (softmax(ti / 2) * (torch.log(softmax(ti / 2)) - torch.log(softmax(zi / 2)))).sum() for zi, ti in pairs
            )
            / 3
        )

    agree(SoftTargets(2.0), z, t, {"labels": labels, "attention_mask": mask}, reference)


def test_soft_targets_of_some_of_the_teachers_classes():
    z, t = draw(4, 3), draw(4, 6, seed=1)
    ours = SoftTargets(2.0, classes=(5, 0, 2))(Signals({"logits": z}), Signals({"logits": t}), {}).value
    same = SoftTargets(2.0)(Signals({"logits": z}), Signals({"logits": t[:, [5, 0, 2]]}), {}).value
    torch.testing.assert_close(ours, same)


def test_soft_targets_for_a_student_that_has_learned_more_classes():
    z, t = draw(4, 6), draw(4, 3, seed=1)
    ours = SoftTargets(2.0, student_classes=(4, 0, 2))(Signals({"logits": z}), Signals({"logits": t}), {}).value
    same = SoftTargets(2.0)(Signals({"logits": z[:, [4, 0, 2]]}), Signals({"logits": t}), {}).value
    torch.testing.assert_close(ours, same)


def test_unlabelled_examples_teach_when_asked():
    z, t, batch = draw(4, 3), draw(4, 3, seed=1), {"labels": torch.tensor([0, -100, -100, 1])}
    signals = Signals({"logits": z}), Signals({"logits": t})
    torch.testing.assert_close(SoftTargets(positions="all")(*signals, batch).value, SoftTargets()(*signals, {}).value)
    kept = Signals({"logits": z[[0, 3]]}), Signals({"logits": t[[0, 3]]})
    torch.testing.assert_close(SoftTargets()(*signals, batch).value, SoftTargets()(*kept, {}).value)


def test_mean_squared_error():
    z, t = draw(5, 6), draw(5, 6, seed=1)
    agree(
        MeanSquaredError(), z, t, {}, lambda z, t: sum((zi - ti) ** 2 for zi, ti in zip(z.flatten(), t.flatten())) / 30
    )


def test_teachers_with_impossible_classes_keep_the_divergence_finite():
    """Scores of -inf (masked tokens) on both sides: a class that cannot occur contributes nothing."""
    z, t = draw(3, 5), draw(3, 5, seed=1)
    z[:, 2], t[:, 2] = -math.inf, -math.inf
    z.requires_grad_()
    loss = SoftTargets(2.0)(Signals({"logits": z}), Signals({"logits": t}), {}).value
    loss.backward()
    kept = [0, 1, 3, 4]
    expected = SoftTargets(2.0)(Signals({"logits": z[:, kept]}), Signals({"logits": t[:, kept]}), {}).value
    torch.testing.assert_close(loss, expected)
    assert bool(z.grad.isfinite().all())


def test_the_divergence_is_not_symmetric_and_knows_its_sides():
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    forward = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
    assert math.isclose(float(divergences.kl_divergence(p, q)), forward, rel_tol=1e-6)
    assert not math.isclose(float(divergences.kl_divergence(q, p)), forward, rel_tol=1e-2)


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "named"),
    [
        (SoftTargets(), (4, 10), (4, 100), "10 classes and the teacher 100"),
        (MeanSquaredError(), (4, 10), (4, 100), "10 classes and the teacher 100"),
        (SoftTargets(), (4, 10), (5, 10), "positions"),
        (SoftTargets(), (4, 1), (4, 1), "at least two classes"),
        (SoftTargets(), (4,), (4,), "at least two classes"),
        (SoftTargets(classes=(0, 7)), (4, 2), (4, 5), "classes names 7"),
        (SoftTargets(student_classes=(0, 7)), (4, 5), (4, 2), "student_classes names 7"),
        (EmbeddingDistance(), (4, 10), (4, 7), "projector"),
        (EmbeddingDistance(projector="none"), (4, 10), (4, 7), "width 10"),
        (Hint("logits"), (4, 5, 3), (4, 6, 3), "length 5"),
        (Hint("logits"), (4, 3, 2, 2), (4, 3, 3), "square"),
        (Hint("logits"), (4,), (4, 3), "shape"),
        (Hint("logits"), (4, 3), (5, 3), "4 examples"),
        (Hint("logits", projector="linear"), (4, 3, 2, 2), (4, 3, 2, 2), "convolution"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(objective, student, teacher, named):
    with pytest.raises(UsageError, match=named):
        objective(Signals({"logits": torch.randn(student)}), Signals({"logits": torch.randn(teacher)}), {})


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.zeros(4, 1, dtype=torch.long), "do not fit"),
        (torch.zeros(1, dtype=torch.long), "do not fit"),
        (torch.zeros(4), "do not fit"),
        (torch.zeros(4, 1), "do not fit"),
        (torch.tensor([0, 1, 3, 2]), "label 3"),
        (torch.tensor([0, 1, -1, 2]), "label -1"),
        (None, "needs batch"),
    ],
)
def test_labels_that_would_broadcast_or_do_not_exist_are_refused(labels, named):
    batch = {} if labels is None else {"labels": labels}
    with pytest.raises(UsageError, match=named):
        CrossEntropy()(Signals({"logits": draw(4, 3)}), Signals({}), batch)


def test_masks_that_do_not_fit_are_refused():
    signals = Signals({"logits": draw(2, 3, 4)})
    with pytest.raises(UsageError, match="attention_mask"):
        SoftTargets()(signals, signals, {"attention_mask": torch.ones(2, 4)})
    with pytest.raises(UsageError, match="sample_weight"):
        SoftTargets()(signals, signals, {"sample_weight": torch.ones(2, 3)})


def test_parts_are_named_and_unweighted():
    s, t = (
        Signals({"logits": draw(4, 3), "a": draw(4, 2)}),
        Signals({"logits": draw(4, 3, seed=1), "a": draw(4, 2, seed=1)}),
    )
    batch = {"labels": torch.tensor([0, 1, 2, 0])}
    objective = 0.5 * CrossEntropy() + SoftTargets() + 2 * Hint("a") + Hint("a", loss="l1")
    loss = objective(s, t, batch)
    assert list(loss.parts) == ["CrossEntropy", "SoftTargets", "Hint(a)", "Hint(a)#3"]
    weights = (0.5, 1, 2, 1)
    torch.testing.assert_close(loss.value, sum(w * p for w, p in zip(weights, loss.parts.values())))


@pytest.mark.parametrize(("epochs", "epoch", "share"), [(None, 3, 0.8), (4, 0, 0.2), (4, 2, 0.6), (4, 9, 0.8)])
def test_mixed_targets_are_the_label_and_a_growing_share_of_the_teacher(epochs, epoch, share):
    y = torch.tensor([1, 3, -100, 0, 2])

    def reference(student, teacher):
        total = 0
        for s, t, label in zip(student, teacher, y):
            if label != -100:
                target = share * softmax(t) + (1 - share) * torch.eye(4, dtype=torch.float64)[label]
                total = total - (target * torch.log(softmax(s))).sum()
        return total / 4

    batch = {"labels": y, "epoch": epoch}
    agree(MixedTargets(epochs=epochs), draw(5, 4), draw(5, 4, seed=7), batch, reference)


def test_a_growing_share_needs_the_epoch():
    z = Signals({"logits": draw(5, 4)})
    with pytest.raises(UsageError, match="epoch"):
        MixedTargets(epochs=3)(z, z, {"labels": torch.tensor([0, 1, 2, 3, 0])})


@pytest.mark.parametrize("overconfident", ["forward", "reverse"])
def test_balanced_divergence_weighs_by_who_is_surer(overconfident):
    surer = []

    def reference(student, teacher):
        total = 0
        for s, t in zip(student, teacher):
            p, q = softmax(t / 3), softmax(s / 3)
            forward, reverse = (p * torch.log(p / q)).sum(), (q * torch.log(q / p)).sum()
            over = float(-(q * torch.log(q)).sum().detach()) < float(-(p * torch.log(p)).sum())
            surer.append(over)
            f, r = (2.5, 1) if over == (overconfident == "forward") else (1, 2.5)
            total = total + 9 * (0.7 * f * forward + 0.4 * r * reverse)
        return total / 5

    objective = BalancedDivergence(0.7, 0.4, delta=2.5, temperature=3.0, overconfident=overconfident)
    agree(objective, draw(5, 4), draw(5, 4, seed=7), {}, reference)
    assert len(set(surer)) == 2  # both cases occur


def test_balanced_divergence_with_delta_one_is_a_fixed_mixture():
    s, t = Signals({"logits": draw(5, 4)}), Signals({"logits": draw(5, 4, seed=7)})
    for forward in (0.3, 0.5):
        fixed = SymmetricKL(temperature=4.0, forward=forward)(s, t, {}).value
        torch.testing.assert_close(BalancedDivergence(forward, 1 - forward, delta=1.0)(s, t, {}).value, fixed)
