"""The chunked form against the objective on whole logits: value, gradients, what is never computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import gpt
from limbeck.objectives import (
    CorrelationTargets,
    CrossEntropy,
    DecoupledKD,
    Hint,
    JensenShannon,
    LargeVocabulary,
    MeanSquaredError,
    MixedTargets,
    ReverseKL,
    SoftTargets,
)
from limbeck.objectives.chunked import Projected, chunked_loss
from limbeck.objectives.logits import slopes
from limbeck.signals import Signals, Tap, capture
from limbeck.teachers import FrozenTeacher, compact
from limbeck.training import Distil


def models(words=23):
    torch.manual_seed(0)
    return gpt(words, 12, depth=1, width=16, heads=2), gpt(words, 12, depth=2, width=24, heads=2)


def tokens(words=23):
    ids = torch.randint(0, words, (3, 12))
    labels = torch.randint(0, words, (3, 12))
    labels[0, :5] = -100
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[2, 9:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "sample_weight": torch.tensor([1.0, 2.0, 0.5])}


def gradients(objective, student, teacher, batch):
    student.zero_grad()
    with Tap(student, objective.reads.student) as tap:
        own = tap(batch)
    other = FrozenTeacher(teacher).signals(batch, objective.reads.teacher)
    loss = objective(own, other, batch)
    loss.value.backward()
    return loss, {name: p.grad.clone() for name, p in student.named_parameters()}


OBJECTIVES = [
    SoftTargets(temperature=2.0),
    CrossEntropy(0.1),
    CrossEntropy(),
    MeanSquaredError(positions="all"),
    JensenShannon(beta=0.3),
    ReverseKL(3.0),
    DecoupledKD(),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize(("chunk", "tile"), [(1, 1), (7, 2), (1000, 3), (1000, 100)])
def test_equals_the_plain_form(objective, chunk, tile, monkeypatch):
    monkeypatch.setattr("limbeck.objectives.chunked.TILE", 23 * tile)
    (student, teacher), batch = [model.double() for model in models()], tokens()
    chunked = LargeVocabulary(objective, "head", "head", chunk)
    plain, wanted = gradients(objective, student, teacher, batch)
    found, got = gradients(chunked, student, teacher, batch)
    assert torch.allclose(found.value, plain.value, rtol=1e-6)  # the weights of positions are float32
    assert found.parts.keys() == plain.parts.keys()
    for name, value in wanted.items():
        assert torch.allclose(got[name], value, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_float32_is_as_exact_as_the_plain_form(objective):
    (student, teacher), batch = models(), tokens()
    exact, gradient = gradients(objective, *(model.double() for model in models()), batch)
    plain, wanted = gradients(objective, student, teacher, batch)
    found, got = gradients(LargeVocabulary(objective, "head", "head", 7), student, teacher, batch)

    def error(value, true):
        return float((value.detach().double() - true.detach()).norm())

    assert error(found.value, exact.value) <= 2 * error(plain.value, exact.value) + 1e-6
    for name, true in gradient.items():
        assert error(got[name], true) <= 2 * error(wanted[name], true) + 1e-6 * float(true.norm()) + 1e-7, name


def test_bias_of_both_heads_counts():
    torch.manual_seed(0)
    h, t = torch.randn(5, 4, dtype=torch.double, requires_grad=True), torch.randn(5, 3, dtype=torch.double)
    head, other = nn.Linear(4, 11).double(), nn.Linear(3, 11).double()
    objective = SoftTargets(3.0)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5]).double()
    plain = (objective.compare(head(h), other(t)) * weights).sum() / weights.sum()
    wanted = torch.autograd.grad(plain, [h, head.weight, head.bias])
    found = chunked_loss(
        slopes.by_autograd(lambda a, b, _: objective.compare(a, b)),
        h,
        head.weight,
        head.bias,
        teacher=Projected(t, other.weight, other.bias),
        weights=weights,
        chunk=2,
    )
    got = torch.autograd.grad(3.0 * found, [h, head.weight, head.bias])
    assert torch.allclose(found, plain, rtol=1e-12)
    for a, b in zip(got, wanted):
        assert torch.allclose(a, 3.0 * b, rtol=1e-10)


def test_gradient_against_finite_differences():
    torch.manual_seed(0)
    h, w = (
        torch.randn(4, 3, dtype=torch.double, requires_grad=True),
        torch.randn(6, 3, dtype=torch.double, requires_grad=True),
    )
    teacher = Projected(torch.randn(4, 2, dtype=torch.double), torch.randn(6, 2, dtype=torch.double))
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_loss(slopes.soft_targets(2.0), h, w, teacher=teacher, chunk=3), (h, w)
    )


@pytest.mark.parametrize(
    ("closed", "compare"),
    [
        (slopes.soft_targets(2.5), lambda s, t, y: SoftTargets(2.5).compare(s, t)),
        (slopes.cross_entropy(), lambda s, t, y: torch.nn.functional.cross_entropy(s.double(), y, reduction="none")),
        (
            slopes.cross_entropy(0.2),
            lambda s, t, y: torch.nn.functional.cross_entropy(s.double(), y, reduction="none", label_smoothing=0.2),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16])
def test_closed_forms_against_autograd(closed, compare, dtype):
    torch.manual_seed(0)
    student, teacher = (5 * torch.randn(6, 9)).to(dtype), (5 * torch.randn(6, 9)).to(dtype)
    labels, weights = torch.randint(9, (6,)), torch.rand(6)
    before = student.clone(), teacher.clone()
    losses, found = closed(student, teacher, labels, weights)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    wanted, gradient = slopes.by_autograd(compare)(student.double(), teacher.double(), labels, weights.double())
    assert torch.allclose(losses.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.double(), gradient, rtol=1e-5, atol=1e-6)
    assert losses.dtype == found.dtype == torch.promote_types(dtype, torch.float32)


def test_closed_forms_at_extremes_and_where_both_rule_a_word_out():
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1.0, -torch.inf]])
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1.0, 0.0, -torch.inf]])
    losses, slope = slopes.soft_targets(1.0)(student, teacher, None, torch.ones(2))
    wanted = SoftTargets(1.0).compare(student[1:, :2], teacher[1:, :2])
    assert losses[0] == 2e4 and torch.allclose(losses[1], wanted[0]) and bool(slope.isfinite().all())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("objective", [SoftTargets(2.0), JensenShannon(), DecoupledKD()], ids=lambda o: o.name)
def test_top_k_of_a_cache_equals_the_cache_read_whole(objective, dtype):
    (student, teacher), batch = models(), tokens()
    entries = compact.encode(teacher(batch["input_ids"]), top_k=5, temperature=2.0, dtype=dtype)
    whole = Signals({"logits": compact.decode(entries, 23)})
    top = Signals({f"logits:{name}": compact.part(entries, name) for name in ("values", "classes", "rest")})
    found = []
    for one, other in ((objective, whole), (LargeVocabulary(objective, "head", None, 7), top)):
        assert one.reads.teacher == set(other)
        student.zero_grad()
        with Tap(student, one.reads.student) as tap:
            loss = one(tap(batch), other, batch).value
        loss.backward()
        found.append((loss, [p.grad.clone() for p in student.parameters()]))
    (plain, wanted), (value, got) = found
    assert torch.allclose(value, plain, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, wanted))


def test_backward_twice_and_scaled():
    (student, teacher), batch = models(), tokens()
    objective = LargeVocabulary(SoftTargets(2.0), "head", "head", 7)
    with Tap(student, objective.reads.student) as tap:
        own = tap(batch)
    loss = objective(own, FrozenTeacher(teacher).signals(batch, objective.reads.teacher), batch).value
    weight = student.head.weight
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, weight, retain_graph=True)
    loss.backward()
    assert torch.allclose(3 * once, thrice) and torch.equal(weight.grad, once)


def test_neither_projection_runs_and_no_whole_logits_exist():
    (student, teacher), batch = models(), tokens()
    ran = []
    for model in (student, teacher):
        model.head.register_forward_hook(lambda *_: ran.append(1))
    seen = []

    class Watching(SoftTargets):
        def compare(self, own, other):
            seen.append(len(own))
            return super().compare(own, other)

    gradients(LargeVocabulary(Watching(2.0), "head", "head", 5), student, teacher, batch)
    assert not ran and max(seen) == 5 and sum(seen) == 36


def test_adds_to_other_terms_and_trains():
    (student, teacher), batch = models(), tokens()
    objective = 0.5 * LargeVocabulary(SoftTargets(1.0), "head", "head") + Hint("blocks.0", "blocks.1")
    procedure = Distil(student, teacher, objective)
    procedure.prepare(batch, torch.device("cpu"))
    loss = procedure.step(batch, None)["main"]
    assert set(loss.parts) == {"SoftTargets", "Hint(blocks.0)"}
    loss.value.backward()
    assert student.head.weight.grad.abs().sum() > 0 and all(p.grad is None for p in teacher.parameters())


def test_logits_are_still_there_for_who_asks():
    student, _ = models()
    signals = capture(student, tokens(), {"logits", "head:input", "head:weight"})
    assert torch.allclose(signals["head:input"] @ signals["head:weight"].T, signals["logits"], atol=1e-6)


def test_bfloat16_autocast_is_close_to_float32():
    (student, teacher), batch = models(), tokens()
    exact, _ = gradients(SoftTargets(2.0), student, teacher, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found, got = gradients(LargeVocabulary(SoftTargets(2.0), "head", "head", 5), student, teacher, batch)
    assert torch.allclose(found.value, exact.value, rtol=0.05) and all(g.dtype == torch.float32 for g in got.values())


def test_no_position_counts():
    (student, teacher), batch = models(), tokens()
    batch["labels"] = torch.full((3, 12), -100)
    loss, got = gradients(LargeVocabulary(CrossEntropy(), "head", "head"), student, teacher, batch)
    assert loss.value == 0 and all(torch.isfinite(g).all() and (g == 0).all() for g in got.values())


def test_refusals():
    (student, teacher), batch = models(), tokens()
    with pytest.raises(UsageError, match="position by position"):
        LargeVocabulary(Hint("blocks.0"))
    for objective in (CorrelationTargets(), MixedTargets()):
        with pytest.raises(UsageError, match="position by position"):
            LargeVocabulary(objective)
    with pytest.raises(UsageError, match="top words"):
        LargeVocabulary(SoftTargets(classes=(1, 2)), teacher_head=None)
    cached = LargeVocabulary(SoftTargets(), "head", None)
    top = {"logits:values": torch.zeros(3, 12, 2), "logits:classes": torch.full((3, 12, 2), 30)}
    with pytest.raises(UsageError, match="word 30"), Tap(student, cached.reads.student) as tap:
        cached(tap(batch), Signals(top | {"logits:rest": torch.zeros(3, 12, 1)}), batch)
    with pytest.raises(UsageError, match="chunk=0"):
        LargeVocabulary(SoftTargets(), chunk=0)
    other = gpt(29, 12, depth=1, width=24, heads=2)
    with pytest.raises(UsageError, match="23 words and the teacher's 29"):
        gradients(LargeVocabulary(SoftTargets(), "head", "head"), student, other, batch)
    subset = LargeVocabulary(SoftTargets(classes=tuple(range(3, 26))), "head", "head")
    plain, _ = gradients(SoftTargets(classes=tuple(range(3, 26))), student, other, batch)
    assert torch.allclose(gradients(subset, student, other, batch)[0].value, plain.value, atol=1e-6)
    batch["labels"][0, 6] = 40
    with pytest.raises(UsageError, match="no word"):
        gradients(LargeVocabulary(CrossEntropy(), "head", "head"), student, teacher, batch)
    with pytest.raises(UsageError, match="no weight"):
        capture(student, batch, {"blocks.0:weight"})
    with pytest.raises(UsageError, match="no module is named 'lm_head'"):
        gradients(LargeVocabulary(SoftTargets()), student, teacher, batch)
