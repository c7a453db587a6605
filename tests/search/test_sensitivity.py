"""Sensitivities against exact values: the Hessian's trace, the KL of answers, the noise of outputs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import DataError, UsageError
from limbeck.models import encoder
from limbeck.search import hessian_trace, output_divergence, output_noise, weight_traces, with_weights


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def exact(model, path, x, y, samples):
    """The trace, and four standard deviations of Hutchinson's estimate of it: sqrt(2 (|H|^2 - sum H_ii^2) / samples) each."""
    weight = model.get_submodule(path).weight.detach()

    def loss(value):
        return F.cross_entropy(torch.func.functional_call(model, {f"{path}.weight": value}, (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), weight.numel())
    off = hessian - torch.diag(hessian.diagonal())
    return float(hessian.trace()), 4 * (2 * float(off.square().sum()) / samples) ** 0.5


@pytest.mark.parametrize("path", ["0", "2"])
def test_hutchinson_tends_to_the_exact_trace(path):
    model, x = perceptron(), torch.randn(16, 4, dtype=torch.float64)
    y = torch.arange(16) % 3
    weight = model.get_submodule(path).weight
    (found,) = hessian_trace(lambda: F.cross_entropy(model(x), y), [weight], samples=400)
    trace, tolerance = exact(model, path, x, y, 400)
    assert tolerance < 0.5 * trace and found == pytest.approx(trace, abs=tolerance)


def test_one_sample_is_exact_for_a_diagonal_hessian():
    x = torch.randn(6, requires_grad=True)
    curve = torch.arange(1.0, 7.0)
    assert hessian_trace(lambda: (curve * x**2).sum() / 2, [x], samples=1) == pytest.approx([21.0])


def test_a_linear_loss_and_an_unused_parameter_have_no_curvature():
    x, y = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    assert hessian_trace(lambda: x.sum(), [x, y]) == [0.0, 0.0]
    with pytest.raises(UsageError, match="samples"):
        hessian_trace(lambda: x.sum(), [x], samples=0)


def test_weight_traces_leave_the_model_as_it_was():
    model, x = perceptron(), torch.randn(16, 4, dtype=torch.float64)
    y = torch.arange(16) % 3
    model[0].weight.requires_grad_(False)
    batches = [{"input": x[:8], "labels": y[:8]}, {"input": x[8:], "labels": y[8:]}]

    def loss(logits, batch):
        return F.cross_entropy(logits, batch["labels"])

    found = weight_traces(model, loss, batches, ["0"], 400)
    halves = [exact(model, "0", x[s], y[s], 400) for s in (slice(8), slice(8, 16))]
    assert found["0"] == pytest.approx(sum(t for t, _ in halves) / 2, abs=sum(d for _, d in halves) / 2)
    assert set(weight_traces(model, loss, batches, ["0", "2"], 1)) == {"0", "2"}
    assert not model[0].weight.requires_grad and model[2].weight.requires_grad and model[2].weight.grad is None
    with pytest.raises(DataError):
        weight_traces(model, None, [], ["0"])


def test_output_divergence_is_the_mean_kl_over_what_counts():
    torch.manual_seed(1)
    model = encoder(20, 3, 8, 1, 16, 2).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    batches = [{"input_ids": torch.randint(0, 20, (n, 6))} for n in (5, 2)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {"head": torch.zeros_like(model.head.weight)}
    found = output_divergence(model, batches, {"none": lambda: {}, "head": lambda: changed})
    with torch.no_grad():
        p = torch.cat([model(batch["input_ids"]).softmax(-1) for batch in batches])
        with with_weights(model, changed):
            q = torch.cat([model(batch["input_ids"]).softmax(-1) for batch in batches])
    assert found["none"] == pytest.approx(0.0, abs=1e-7)
    assert found["head"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(DataError):
        output_divergence(model, [], {})


def test_tokens_that_are_padding_do_not_count():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x)

    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    changes = {"head": lambda: {"head": torch.zeros(4, 3)}}
    found = output_divergence(model, [{"x": x, "attention_mask": mask}], changes)["head"]
    other = x.clone()
    other[0, 3:] = 9.0
    assert output_divergence(model, [{"x": other, "attention_mask": mask}], changes)["head"] == pytest.approx(found)


def test_output_noise_is_the_relative_energy():
    torch.manual_seed(0)
    x, weight, change = torch.randn(30, 5), torch.randn(4, 5), torch.randn(4, 5)
    expected = float((x @ change.T).square().sum() / (x @ weight.T).square().sum())
    assert output_noise(change, weight, x.T @ x) == pytest.approx(expected, rel=1e-5)
    assert output_noise(change, 0 * weight, x.T @ x) == 0.0
