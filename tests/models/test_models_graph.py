"""The graph network is the published formula, and padding or the order of nodes changes nothing."""

import pytest
import torch

from limbeck import models
from limbeck.build import build, lineage
from limbeck.errors import UsageError

EDGES = torch.tensor([[[0, 1, 1, 2], [1, 0, 2, 1]]])


def test_two_layers_are_the_published_formula():
    model = models.gcn(5, 3, width=4).eval()
    x = torch.randn(1, 3, 5)
    adjacency = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    scale = adjacency.sum(1).rsqrt()
    dense = scale[:, None] * adjacency * scale
    first, second = model.layers
    hidden = (dense @ x[0] @ first.linear.weight.T + first.bias).relu()
    torch.testing.assert_close(model(x, EDGES)[0], dense @ hidden @ second.linear.weight.T + second.bias)


@pytest.mark.parametrize("readout", [False, True])
def test_a_graph_in_a_padded_batch_is_what_it_is_alone(readout):
    model = models.gcn(5, 3, width=4, depth=3, readout=readout).eval()
    x, other = torch.randn(1, 3, 5), torch.randn(5, 5)
    batch = torch.zeros(2, 5, 5)
    batch[0, :3], batch[1] = x[0], other
    edges = torch.full((2, 2, 6), -1)
    edges[0, :, :4], edges[1] = EDGES[0], torch.tensor([[0, 1, 2, 3, 4, 0], [1, 0, 3, 2, 0, 4]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = model(batch, edges, mask)[0]
    torch.testing.assert_close(found if readout else found[:3], model(x, EDGES)[0])


def test_the_order_of_the_nodes_does_not_matter():
    model = models.gcn(5, 3, width=4).eval()
    x, order = torch.randn(1, 3, 5), torch.tensor([2, 0, 1])
    place = order.argsort()
    torch.testing.assert_close(model(x[:, order], place[EDGES]), model(x, EDGES)[:, order])


def test_the_perceptron_sees_each_node_alone():
    model = models.node_perceptron(5, 3, width=4).eval()
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(model(x)[1, 2], model(x[1:, 2:])[0, 0])


@pytest.mark.parametrize("make", [models.gcn, models.node_perceptron])
def test_lineage_and_refusals(make):
    model = make(5, 3, width=4)
    again = build(lineage(model).factory)
    again.load_state_dict(model.state_dict())
    with pytest.raises(UsageError, match="width"):
        make(5, 3, width=0)
    with pytest.raises(UsageError, match="dropout"):
        make(5, 3, dropout=1.0)
