"""Fewer experts: the tokens that lose one, against loops over tokens; a model that is as before afterwards."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import DataError, UsageError
from limbeck.inference import FewerExperts, expert_thresholds, token_importance
from limbeck.models.mixture_of_experts import mixture_gpt
from limbeck.signals import call

PATHS = ["blocks.0.feed_forward", "blocks.1.feed_forward"]


def mixture(top=2):
    torch.manual_seed(0)
    model = mixture_gpt(30, 12, 2, 16, 2, 16, experts=4, top=top).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


class Tokens:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(1)
        for _ in range(0, limit, batch_size):
            yield {"input_ids": torch.randint(0, 30, (batch_size, 12), generator=draws)}


def batch():
    return next(Tokens().batches("train", 5, limit=5))


def seen(model, path):
    """What enters a mixture, and the attention of its block, in one pass."""
    kept = {}
    block = model.get_submodule(path.rpartition(".")[0])
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda m, x: kept.setdefault("x", x[0].detach())),
        block.attention.weights.register_forward_hook(lambda m, x, y: kept.setdefault("a", y.detach())),
    ]
    with torch.no_grad():
        call(model, batch())
    for handle in handles:
        handle.remove()
    return kept["x"], kept["a"]


def by_hand(mixture, x, attention, threshold, protect):
    """The mixture's output token by token, and how many experts were left out."""
    out, left = torch.zeros_like(x), 0
    for b in range(len(x)):
        length = x.shape[1]
        score = []
        for j in range(length):
            received = sum(float(attention[b, :, q, j].mean()) for q in range(j, length)) / (length - j)
            score.append(received * float(x[b, j].abs().sum()))
        best = sorted(range(length), key=lambda j: -score[j])[:protect]
        for j in range(length):
            p = F.softmax(mixture.router(x[b, j]), -1)
            (w1, w2), (first, second) = p.topk(2)
            if w2 < threshold * w1 and j not in best:
                out[b, j], left = mixture.experts[first](x[b, j]), left + 1
            else:
                out[b, j] = (w1 * mixture.experts[first](x[b, j]) + w2 * mixture.experts[second](x[b, j])) / (w1 + w2)
    return out, left


@pytest.mark.parametrize(("protect", "count"), [(0.0, 0), (0.02, 1), (0.25, 3)])
def test_it_is_what_a_loop_over_tokens_gives(protect, count):
    model = mixture()
    path = PATHS[0]
    x, attention = seen(model, path)
    answers = []
    with torch.no_grad(), FewerExperts(model, {path: 0.6}, protect) as fewer:
        handle = model.get_submodule(path).register_forward_hook(lambda m, given, y: answers.append(y))
        call(model, batch())
        handle.remove()
    with torch.no_grad():
        expected, left = by_hand(model.get_submodule(path), x, attention, 0.6, count)
    torch.testing.assert_close(answers[0], expected, rtol=1e-5, atol=1e-5)
    assert 0 < left == fewer.left_out and fewer.saved == left / (2 * 2 * 5 * 12)


def test_what_is_left_out_is_not_computed_and_the_model_is_as_before():
    model, rows = mixture(), []
    with torch.no_grad():
        usual = call(model, batch())
        for expert in model.blocks[1].feed_forward.experts:
            expert.register_forward_pre_hook(lambda m, x: rows.append(len(x[0])))
        with pytest.raises(RuntimeError, match="stop"), FewerExperts(model, {PATHS[1]: 1.01}, 0.0):
            changed = call(model, batch())
            raise RuntimeError("stop")
        assert sum(rows) == 5 * 12 and not torch.allclose(usual, changed)
        assert torch.equal(call(model, batch()), usual)
        with FewerExperts(model, dict.fromkeys(PATHS, 0.0)):
            assert torch.equal(call(model, batch()), usual)
    assert not any("choose" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_at_random_the_share_is_kept():
    model = mixture()
    with torch.no_grad(), FewerExperts(model, {PATHS[0]: 0.3}, 0.0, random=4) as fewer:
        for _ in range(20):
            call(model, batch())
    assert fewer.left_out / (fewer.calls / 4) == pytest.approx(0.3, abs=0.05)


def test_thresholds_are_quantiles_and_the_layer_of_least_loss_is_taken():
    model = mixture()
    found = expert_thresholds(model, Tokens(), examples=20, batch_size=5, share=0.5)
    for path in PATHS:
        inputs = []
        handle = model.get_submodule(path).register_forward_pre_hook(
            lambda m, x, kept=inputs: kept.append(x[0].detach())
        )
        with torch.no_grad():
            for given in Tokens().batches("train", 5, limit=20):
                call(model, given)
        handle.remove()
        top = F.softmax(model.get_submodule(path).router(torch.cat(inputs)).flatten(0, 1), -1).topk(2).values
        assert found[path] == pytest.approx(float((top[:, 1] / top[:, 0]).detach().median()), abs=0.02)
    one = expert_thresholds(model, Tokens(), layers=1, examples=20, batch_size=5)
    losses = {}
    for path in PATHS:
        with torch.no_grad():
            usual = torch.cat([call(model, b) for b in Tokens().batches("train", 5, limit=20)]).log_softmax(-1)
            with FewerExperts(model, {path: found[path]}):
                changed = torch.cat([call(model, b) for b in Tokens().batches("train", 5, limit=20)]).log_softmax(-1)
        losses[path] = float((usual.exp() * (usual - changed)).sum())
    best = min(losses, key=losses.get)
    assert one == {best: found[best]}
    assert set(expert_thresholds(model, Tokens(), share={PATHS[1]: 0.2}, examples=5, batch_size=5)) == {PATHS[1]}


def test_single_tokens_have_nobody_to_protect():
    model = mixture()
    attention = torch.ones(1, 2, 1, 7) / 7
    with FewerExperts(model, {PATHS[0]: 1.01}, 0.5) as fewer:
        fewer._seen[PATHS[0]] = attention
        weight, _ = model.blocks[0].feed_forward.choose(torch.randn(1, 1, 16))
    assert weight.tolist() == [[1.0, 0.0]]


def test_importance_by_hand():
    attention = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [0.75, 0.25]]]])
    hidden = torch.tensor([[[1.0, -1.0], [3.0, 1.0]]])
    assert token_importance(attention, hidden).tolist() == [[0.75 * 2.0, 0.5 * 4.0]]


def test_what_cannot_be_right():
    model = mixture()
    for path in ("blocks.0", "nothing"):
        with pytest.raises(UsageError, match="two experts per token"):
            FewerExperts(model, {path: 0.5})
    with pytest.raises(UsageError, match="two experts per token"):
        FewerExperts(mixture(top=1), {PATHS[0]: 0.5})
    with pytest.raises(UsageError, match="protect=1"):
        FewerExperts(model, {PATHS[0]: 0.5}, 1.0)
    with pytest.raises(UsageError, match="at least 0"):
        FewerExperts(model, {PATHS[0]: float("nan")})
    with pytest.raises(UsageError, match="no block with attention"):
        FewerExperts(torch.nn.ModuleDict({"alone": model.blocks[0].feed_forward}), {"alone": 0.5})
    with pytest.raises(UsageError, match="no mixture"):
        expert_thresholds(mixture(top=1), Tokens())
    with pytest.raises(UsageError, match="share="):
        expert_thresholds(model, Tokens(), share=1.5)

    class Empty:
        def batches(self, *_, **__):
            return iter(())

    with pytest.raises(DataError, match="no batch"):
        expert_thresholds(model, Empty())
