"""Thinned tokens: which go, which stay, and objectives on those that stay."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.inference import ThinnedTokens, redundancy
from limbeck.models import vit
from limbeck.objectives import AtTokens, Hint, SoftTargets, TokenRelations
from limbeck.signals import Signals, capture


def model(depth=3):
    torch.manual_seed(0)
    return vit(size=12, patch=4, depth=depth, width=8, heads=2, channels=1, classes=3).eval()


def images(count=2):
    return torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def test_redundancy_is_the_cosine_with_the_mean():
    x = torch.randn(2, 4, 3)
    for b in range(2):
        mean = x[b].mean(0)
        for i in range(4):
            expected = float(x[b, i] @ mean / (x[b, i].norm() * mean.norm()))
            assert float(redundancy(x)[b, i]) == pytest.approx(expected, abs=1e-6)


def test_nothing_dropped_is_the_model_itself():
    inner, x = model(), images()
    torch.testing.assert_close(ThinnedTokens(inner, {})(x), inner(x))


def test_the_most_redundant_patches_go_step_by_step_and_the_class_token_stays():
    inner, x = model(), images()
    thinned = ThinnedTokens(inner, {0: 1 / 3, 2: 1 / 3})
    signals = capture(thinned, {"pixel_values": x}, {"kept.0", "kept.1", "kept.2", "model.blocks.1", "logits"})
    tokens = inner.embed(x)
    for b in range(2):
        scores = redundancy(tokens[:, 1:])[b].tolist()
        stay = sorted(sorted(range(9), key=scores.__getitem__)[:6])
        assert signals["kept.0"][b].tolist() == [0, *(i + 1 for i in stay)]
        # by hand: the first two blocks see these alone, then three more go
        h = tokens[b : b + 1, [0, *(i + 1 for i in stay)]]
        h = inner.blocks[1](inner.blocks[0](h))
        torch.testing.assert_close(h[0], signals["model.blocks.1"][b])
        scores = redundancy(h[:, 1:])[0].tolist()
        last = sorted(sorted(range(6), key=scores.__getitem__)[:3])
        assert signals["kept.2"][b].tolist() == [0, *(stay[i] + 1 for i in last)]
        h = inner.blocks[2](h[:, [0, *(i + 1 for i in last)]])
        torch.testing.assert_close(inner.head(inner.norm(h)[:, 0])[0], signals.logits[b])
    assert torch.equal(signals["kept.1"], signals["kept.0"])


def test_an_objective_at_tokens_sees_the_teachers_tokens_of_the_same_places():
    teacher, student = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    kept = torch.tensor([[0, 2, 4], [0, 1, 2]])
    cut = torch.stack([teacher[0, [0, 2, 4]], teacher[1, [0, 1, 2]]])
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    for objective in (Hint("a"), TokenRelations("a", "a", heads=2)):
        found = AtTokens(objective, "kept")(
            Signals({"a": student, "kept": kept}), Signals({"a": teacher}), {"attention_mask": mask}
        )
        shorter = {"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}
        expected = objective(Signals({"a": student}), Signals({"a": cut}), shorter)
        torch.testing.assert_close(found.value, expected.value)
    logits = Signals({"logits": torch.randn(2, 3), "kept": kept}), Signals({"logits": torch.randn(2, 3)})
    torch.testing.assert_close(AtTokens(SoftTargets(), "kept")(*logits, {}).value, SoftTargets()(*logits, {}).value)


def test_connectors_fit_the_cut_teacher():
    objective = AtTokens(Hint("a"), "kept")
    signals = (
        Signals({"a": torch.randn(2, 3, 4), "kept": torch.tensor([0, 1, 4])}),
        Signals({"a": torch.randn(2, 5, 6)}),
    )
    made = objective.connectors(*signals)
    assert made["projector"].out_features == 6
    assert objective(*signals, {}, made).value > 0


def test_refusals():
    with pytest.raises(UsageError, match="no patch"):
        ThinnedTokens(model(), {0: 0.6, 1: 0.6})
    for drops in ({3: 0.1}, {0: 1.0}, {0: 0.0}):
        with pytest.raises(UsageError, match="blocks 0 to 2"):
            ThinnedTokens(model(), drops)
    with pytest.raises(UsageError, match="Linear"):
        ThinnedTokens(torch.nn.Linear(2, 2), {})
    with pytest.raises(UsageError, match="below 3"):
        AtTokens(Hint("a"), "k")(
            Signals({"a": torch.zeros(1, 1, 2), "k": torch.tensor([3])}), Signals({"a": torch.zeros(1, 3, 2)}), {}
        )
