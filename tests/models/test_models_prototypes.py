"""Prototypes against plain loops over tokens and prototypes."""

import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import prototype_resnet
from limbeck.models.prototypes import PrototypeAugmentation, PrototypeSummary, aggregated_residuals


def softmax(scores):
    return scores.exp() / scores.exp().sum()


def linear(layer, x):
    return layer.weight @ x + layer.bias


def mixed(layers, x):
    return linear(layers[2], linear(layers[0], x).clamp(min=0)).clamp(min=0)


def test_residuals_of_every_token_to_every_prototype():
    draw = torch.Generator().manual_seed(0)
    tokens, shares, prototypes = (torch.randn(*s, generator=draw) for s in ((2, 5, 3), (2, 5, 4), (4, 3)))
    expected = torch.stack(
        [
            torch.stack([sum(shares[b, n, k] * (tokens[b, n] - prototypes[k]) for n in range(5)) for k in range(4)])
            for b in range(2)
        ]
    )
    torch.testing.assert_close(aggregated_residuals(tokens, shares, prototypes), expected)


def test_the_summary_is_the_papers_formula_token_by_token():
    torch.manual_seed(0)
    summary, prototypes = PrototypeSummary((3, 2), 4, 3).double(), torch.rand(3, 4).double().requires_grad_()
    layers = [torch.randn(2, 5, width).double() for width in (3, 2)]
    found = summary(layers, prototypes)
    expected = []
    for b in range(2):
        tokens = [linear(summary.join, torch.cat([x[b, n] for x in layers])).clamp(min=0) for n in range(5)]
        directions = [x / x.norm() for x in tokens]
        shares = [softmax(linear(summary.assign, x)) for x in directions]
        residuals = [sum(a[k] * (x - prototypes[k]) for a, x in zip(shares, directions)) for k in range(3)]
        vector = torch.cat([v / v.norm() for v in residuals])
        whole = linear(summary.describe, vector / vector.norm())
        expected.append(torch.stack([mixed(summary.mix, torch.cat([x, whole])) for x in tokens]))
    torch.testing.assert_close(found, torch.stack(expected))
    slopes = [
        torch.autograd.grad(x.square().sum(), prototypes, retain_graph=True)[0] for x in (found, torch.stack(expected))
    ]
    torch.testing.assert_close(*slopes)
    assert float(slopes[0].abs().max()) > 0


def test_the_augmentation_is_the_papers_formula_token_by_token():
    torch.manual_seed(0)
    augment, tokens = PrototypeAugmentation(4, 3).double(), torch.randn(2, 5, 4).double().requires_grad_()
    expected = []
    for x in tokens.flatten(0, 1):
        own, known = linear(augment.encode, x), [linear(augment.encode, c) for c in augment.prototypes]
        near = softmax(torch.stack([c @ own for c in known]))
        retrieved = sum(a * c for a, c in zip(near, known))
        expected.append((x + mixed(augment.mix, torch.cat([own, retrieved]))).clamp(min=0))
    expected = torch.stack(expected).reshape(2, 5, 4)
    torch.testing.assert_close(augment(tokens), expected)
    slopes = [
        torch.autograd.grad(x.square().sum(), (tokens, augment.prototypes), retain_graph=True)
        for x in (augment(tokens), expected)
    ]
    for one, other in zip(*slopes):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("plain", [False, True])
def test_a_network_answers_with_or_without_prototypes_and_is_built_again(plain):
    torch.manual_seed(0)
    model = prototype_resnet(8, classes=5, channels=1, width=4, prototypes=6, plain=plain).eval()
    x = torch.randn(2, 1, 12, 12)
    tokens = model.tokens(x)
    assert tokens.shape == (2, 9, 16)
    torch.testing.assert_close(model.answer(tokens, plain=True), model.backbone(x))
    torch.testing.assert_close(model(x), model.answer(tokens, plain=plain))
    assert not torch.equal(model.answer(tokens), model.backbone(x))
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("wrong", [1, 2.0, True])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UsageError, match="prototypes"):
        prototype_resnet(8, prototypes=wrong)
