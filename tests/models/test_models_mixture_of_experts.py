import pytest
import torch
from torch.nn import functional as F

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import mixture_gpt
from limbeck.models.mixture_of_experts import MixtureOfExperts, balance, route
from limbeck.objectives import ExpertBalance
from limbeck.signals import capture


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_layer_equals_every_expert_computed_for_every_token(top):
    layer = MixtureOfExperts(6, 10, 4, top)
    x = torch.randn(2, 5, 6)
    probability = layer.router(x).softmax(-1)
    least = probability.sort(-1, descending=True).values[..., top - 1 : top]
    weight = probability * (probability >= least)
    if top > 1:
        weight = weight / weight.sum(-1, keepdim=True)
    expected = sum(weight[..., i : i + 1] * expert(x) for i, expert in enumerate(layer.experts))
    made = layer(x)
    torch.testing.assert_close(made, expected)
    parameters = list(layer.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (made, expected))):
        torch.testing.assert_close(mine, theirs)


def test_an_expert_nobody_chose_computes_nothing():
    layer = MixtureOfExperts(2, 3, 2, 1)
    layer.router.weight.data = torch.tensor([[1.0, 0], [-1.0, 0]])
    seen = []
    layer.experts[1].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    layer(torch.tensor([[1.0, 0], [2.0, 0]]))
    assert seen == [0]


def test_route_with_numbers():
    weight, chosen = route(torch.tensor([[0.0, 2.0, 1.0]]).log(), 2, normalize=True)
    torch.testing.assert_close(weight, torch.tensor([[2 / 3, 1 / 3]]))
    assert chosen.tolist() == [[1, 2]]
    torch.testing.assert_close(route(torch.tensor([[1.0, 3.0]]).log(), 1, normalize=False)[0], torch.tensor([[0.75]]))


def test_balance_is_one_when_even_and_the_number_of_experts_when_one_takes_all():
    assert balance(torch.zeros(8, 4) + 1e-4 * torch.eye(4).repeat(2, 1), 1).item() == pytest.approx(1, abs=1e-5)
    assert balance(torch.tensor([[50.0, 0, 0, 0]]).repeat(3, 1), 1).item() == pytest.approx(4, abs=1e-5)
    logits = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 2.0]]).log().requires_grad_()
    mean = (3 / 4 + 2 / 3 + 1 / 3) / 3
    loss = balance(logits, 1)
    torch.testing.assert_close(loss, torch.tensor(2 * (2 / 3 * mean + 1 / 3 * (1 - mean))))
    loss.backward()
    p = logits.detach().softmax(-1)
    slope = 2 * (2 / 3 - 1 / 3) * p[:, :1] * p[:, 1:] / 3
    torch.testing.assert_close(logits.grad, torch.cat([slope, -slope], 1))


def test_the_language_model_and_its_balance():
    torch.manual_seed(0)
    model = mixture_gpt(11, length=6, depth=2, width=8, heads=2, hidden=12, experts=3, top=2)
    batch = {"input_ids": torch.randint(0, 11, (4, 6))}
    objective = ExpertBalance(top=2)
    signals = capture(model, batch, objective.reads.student | {"logits"})
    routers = [signals[f"blocks.{i}.feed_forward.router"] for i in range(2)]
    assert all(r.shape == (4, 6, 3) for r in routers)
    expected = sum(balance(r.flatten(0, 1), 2) for r in routers) / 2
    torch.testing.assert_close(objective(signals, signals, batch).value, expected)
    again = build(lineage(model).factory)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(**batch), model(**batch))
    model(**batch).square().sum().backward()
    assert all(b.feed_forward.router.weight.grad.abs().sum() > 0 for b in model.blocks)
    assert F.cross_entropy(model(**batch).flatten(0, 1), batch["input_ids"].flatten()) < 3


def test_bad_sizes():
    for bad in ({"experts": 1}, {"top": 0}, {"top": 5}):
        with pytest.raises(UsageError, match="mixture_gpt"):
            mixture_gpt(10, width=8, heads=2, **{"experts": 4, **bad})
    with pytest.raises(UsageError, match="routing logits over at least"):
        ExpertBalance("logits", top=3)(*[capture(torch.nn.Linear(2, 2), {"x": torch.randn(3, 2)})] * 2, {})
