"""The chunked form against the objective on whole logits: value, gradients, what is never computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import gpt
from limbeck.objectives import CrossEntropy, Hint, LargeVocabulary, MeanSquaredError, SoftTargets
from limbeck.objectives.large_vocabulary import chunked_loss
from limbeck.signals import Tap, capture
from limbeck.teachers import FrozenTeacher
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


@pytest.mark.parametrize(
    "objective", [SoftTargets(temperature=2.0), CrossEntropy(0.1), MeanSquaredError(positions="all")]
)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_equals_the_plain_form(objective, chunk):
    (student, teacher), batch = models(), tokens()
    chunked = LargeVocabulary(objective, "head", "head", chunk)
    plain, wanted = gradients(objective, student, teacher, batch)
    found, got = gradients(chunked, student, teacher, batch)
    assert torch.allclose(found.value, plain.value, rtol=1e-6)
    assert found.parts.keys() == plain.parts.keys()
    for name, value in wanted.items():
        assert torch.allclose(got[name], value, rtol=1e-5, atol=1e-7), name


def test_bias_of_both_heads_counts():
    torch.manual_seed(0)
    h, t = torch.randn(5, 4, dtype=torch.double, requires_grad=True), torch.randn(5, 3, dtype=torch.double)
    head, other = nn.Linear(4, 11).double(), nn.Linear(3, 11).double()
    objective = SoftTargets(3.0)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5]).double()
    plain = (objective.compare(head(h), other(t)) * weights).sum() / weights.sum()
    wanted = torch.autograd.grad(plain, [h, head.weight, head.bias])
    found = chunked_loss(
        lambda a, b, _: objective.compare(a, b),
        h,
        head.weight,
        head.bias,
        teacher=(t, other.weight, other.bias),
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
    teacher = (torch.randn(4, 2, dtype=torch.double), torch.randn(6, 2, dtype=torch.double), None)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_loss(lambda a, b, _: SoftTargets(2.0).compare(a, b), h, w, teacher=teacher, chunk=3),
        (h, w),
    )


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
    with pytest.raises(UsageError, match="chunk=0"):
        LargeVocabulary(SoftTargets(), chunk=0)
    other = gpt(29, 12, depth=1, width=24, heads=2)
    with pytest.raises(UsageError, match="23 words and the teacher's 29"):
        gradients(LargeVocabulary(SoftTargets(), "head", "head"), student, other, batch)
    subset = LargeVocabulary(SoftTargets(classes=tuple(range(3, 26))), "head", "head")
    plain, _ = gradients(SoftTargets(classes=tuple(range(3, 26))), student, other, batch)
    assert torch.allclose(gradients(subset, student, other, batch)[0].value, plain.value)
    batch["labels"][0, 6] = 40
    with pytest.raises(UsageError, match="no word"):
        gradients(LargeVocabulary(CrossEntropy(), "head", "head"), student, teacher, batch)
    with pytest.raises(UsageError, match="no weight"):
        capture(student, batch, {"blocks.0:weight"})
    with pytest.raises(UsageError, match="no module is named 'lm_head'"):
        gradients(LargeVocabulary(SoftTargets()), student, teacher, batch)
