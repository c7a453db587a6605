"""The key-value bottleneck: what is fetched, what learns, what stays."""

import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import key_value_bottleneck


def model():
    torch.manual_seed(0)
    made = key_value_bottleneck(6, 4, heads=3, head_width=2, keys=5)
    made.place_keys(torch.randn(40, 6) for _ in range(3))
    torch.nn.init.normal_(made.values)
    return made


def test_the_answer_is_the_mean_of_the_values_of_the_nearest_keys():
    made, z = model(), torch.randn(7, 6)
    expected = torch.zeros(7, 4)
    for n in range(7):
        for head in range(3):
            projected = z[n] @ made.projections[:, head]
            at = int((projected - made.keys.codes[head]).norm(dim=1).argmin())
            assert int(made.fetched(z)[n, head]) == at
            expected[n] += made.values[head, at].detach() / 3
    torch.testing.assert_close(made(z), expected)
    places = torch.stack([z, z.flip(0)], 1)
    torch.testing.assert_close(made(places), (expected + expected.flip(0)) / 2)


def test_a_step_changes_the_fetched_values_only():
    made, z = model().train(), torch.randn(2, 6)
    fetched = made.fetched(z)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    optimizer = torch.optim.SGD(made.parameters(), 0.1)
    made(z).square().sum().backward()
    optimizer.step()
    changed = (made.values != before["values"]).any(-1)
    expected = torch.zeros(3, 5, dtype=torch.bool)
    for head in range(3):
        expected[head, fetched[:, head]] = True
    assert torch.equal(changed, expected)
    for name, value in made.state_dict().items():
        if name != "values":
            assert torch.equal(value, before[name]), name


def test_the_encoder_gets_no_gradient():
    z = torch.randn(3, 6, requires_grad=True)
    model()(z).sum().backward()
    assert z.grad is None


def test_the_lineage_builds_it_again():
    made, z = model(), torch.randn(4, 6)
    again = build(lineage(made).factory)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(z), made(z))


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="keys=0"):
        key_value_bottleneck(6, 4, keys=0)
    with pytest.raises(UsageError, match="features"):
        model()(torch.zeros(2, 5))
