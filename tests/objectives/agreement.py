"""An objective against an independent computation in float64: its value and its gradient, to 1e-5."""

import copy

import torch

from limbeck.signals import Signals


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def agree(objective, student, teacher, batch, reference, name="logits", connectors=None, constants=None):
    """The objective in float32 and `reference(student, teacher)` in float64: same value, same gradient.

    student, teacher: a tensor, the signal `name`; or several by name, which `reference` then gets as mappings. constants: further
    signals of the teacher. Connectors are copied, so that both sides start from the same state.
    """
    alone = isinstance(student, torch.Tensor)
    sides = [{name: x} if isinstance(x, torch.Tensor) else dict(x) for x in (student, teacher)]
    ours = {key: x.clone().requires_grad_() for key, x in sides[0].items()}
    theirs = {key: x.double().requires_grad_() for key, x in sides[0].items()}
    fixed = {key: x.double() for key, x in sides[1].items()}
    made = copy.deepcopy(connectors)
    loss = objective(Signals(ours), Signals(sides[1] | (constants or {})), batch, made).value
    loss.backward()
    expected = reference(theirs[name], fixed[name]) if alone else reference(theirs, fixed)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    for key in ours:
        scale = float(theirs[key].grad.abs().max())
        torch.testing.assert_close(ours[key].grad.double(), theirs[key].grad, rtol=1e-5, atol=1e-5 * scale)
