"""The hidden tree against sums written out over all states and all values; the codec against naive conditionals, exactly."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from limbeck.codecs import CircuitCodec, HiddenTree, rans
from limbeck.codecs.circuit_codec import depths
from limbeck.codecs.circuits import mutual_information, spanning_tree
from limbeck.errors import ArtifactError, UsageError

PARENTS = torch.tensor([1, -1, 1, 2, 2])


def model_of(parents=PARENTS, states=2, values=3, seed=0):
    made = HiddenTree(parents, states, values).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (made.transitions, made.emissions):
            parameter.copy_(torch.rand(parameter.shape, generator=draw).square() + 0.01)
            parameter.div_(parameter.sum(-1, keepdim=True))
    return made


def probability(model, x):
    """P(x) as the sum over every assignment of the hidden states."""
    count, states, _ = model.emissions.shape
    total = 0.0
    for z in itertools.product(range(states), repeat=count):
        product = 1.0
        for node in range(count):
            parent = int(model.parents[node])
            product *= float(model.transitions.detach()[node, 0 if parent < 0 else z[parent], z[node]])
            product *= float(model.emissions.detach()[node, z[node], x[node]])
        total += product
    return total


def test_likelihood_is_the_sum_over_hidden_states():
    model = model_of()
    x = torch.randint(0, 3, (6, 5))
    expected = torch.tensor([math.log(probability(model, row)) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(model.log_likelihood(x), expected)


def test_probabilities_sum_to_one_and_marginals_are_sums():
    model = model_of()
    every = torch.tensor(list(itertools.product(range(3), repeat=5)))
    p = model.log_likelihood(every).exp()
    assert float(p.sum()) == pytest.approx(1)
    observed = torch.tensor([True, False, True, False, False])
    own = (every[:, 0] == 2) & (every[:, 2] == 1)
    marginal = model.log_likelihood(torch.tensor([[2, 0, 1, 0, 0]]), observed).exp()
    assert float(marginal) == pytest.approx(float(p[own].sum()))


def test_mutual_information_and_the_tree_are_right():
    x = torch.randint(0, 3, (200, 4))
    x[:, 3] = x[:, 1]
    found = mutual_information(x, 3)
    from sklearn.metrics import mutual_info_score

    for i, j in itertools.combinations(range(4), 2):
        assert float(found[i, j]) == pytest.approx(mutual_info_score(x[:, i], x[:, j]), abs=1e-6)
    parents = spanning_tree(found)
    assert parents[1] == 3 or parents[3] == 1
    chain = torch.full((7, 7), 0.1)
    for i in range(6):
        chain[i, i + 1] = chain[i + 1, i] = 1.0
    assert spanning_tree(chain).tolist() == [1, 2, 3, -1, 3, 4, 5]  # rooted in the middle


def test_one_step_of_expectation_maximization_is_the_counts_written_out():
    model = model_of(torch.tensor([-1, 0]), states=2, values=2).float()
    x = torch.tensor([[0, 1], [1, 1], [1, 0]])
    transitions, emissions = model._expected(x)
    expected_t, expected_e = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    for row in x.tolist():
        joint = torch.zeros(2, 2)
        for a, b in itertools.product(range(2), repeat=2):
            p = model.transitions[0, 0, a] * model.emissions[0, a, row[0]]
            joint[a, b] = (p * model.transitions[1, a, b] * model.emissions[1, b, row[1]]).item()
        joint /= joint.sum()
        expected_t[0, 0] += joint.sum(1)
        expected_t[1] += joint
        expected_e[0, :, row[0]] += joint.sum(1)
        expected_e[1, :, row[1]] += joint.sum(0)
    torch.testing.assert_close(transitions, expected_t)
    torch.testing.assert_close(emissions, expected_e)


def blobs(count=300, seed=0):
    """Two kinds of examples with noise: no pixel alone tells them apart, all together do."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 2, (count, 1), generator=draw)
    pattern = torch.tensor([[0, 3, 0, 3, 1, 2, 0, 3], [3, 0, 3, 0, 2, 1, 3, 0]])[kind[:, 0]]
    noise = torch.rand(count, 8, generator=draw) < 0.1
    return torch.where(noise, torch.randint(0, 4, (count, 8), generator=draw), pattern)


def test_fitting_finds_what_independent_pixels_cannot():
    draw = torch.Generator().manual_seed(0)
    test = blobs(seed=1)
    hidden = HiddenTree.grown(blobs(), 4, 4, epochs=4, batch_size=50, generator=draw)
    alone = HiddenTree.grown(blobs(), 1, 4, generator=draw)
    assert float(hidden.log_likelihood(test).mean()) > float(alone.log_likelihood(test).mean()) + 3
    for parameter in (hidden.transitions, hidden.emissions):
        torch.testing.assert_close(parameter.sum(-1), torch.ones(parameter.shape[:-1]))
    histogram = torch.nn.functional.one_hot(blobs(), 4).float().mean(0)
    torch.testing.assert_close(alone.emissions[:, 0], histogram, atol=0.01, rtol=0)


def naive(model, x):
    """The bytes of x with every conditional from two sums over the whole circuit, in the codec's order of pixels."""
    order = [node for node, enter in CircuitCodec(model).visits if enter]
    begins, sizes = [], []
    seen = torch.zeros(x.shape[1], dtype=torch.bool)
    products = 0
    for node in order:
        seen[node] = True
        tries = []
        for value in range(model.emissions.shape[2]):
            changed = x.clone()
            changed[:, node] = value
            tries.append(model.log_likelihood(changed, seen))
        products += x.shape[1] - 1
        table = rans.frequencies(torch.stack(tries, -1).softmax(-1).detach().numpy())
        rows = np.arange(len(x))
        begins.append(rans.starts(table)[rows, x[:, node].numpy()])
        sizes.append(table[rows, x[:, node].numpy()])
    payload = rans.encode(np.concatenate(begins).tolist(), np.concatenate(sizes).tolist())
    return rans.seal(b"PC", (CircuitCodec(model).checksum, *x.shape), payload), products


def test_the_stream_is_that_of_naive_marginals_with_fewer_products():
    model = model_of(torch.tensor([1, 3, 1, -1, 3, 4, 4, 6]), states=3, values=4)
    x = torch.randint(0, 4, (5, 8))
    codec = CircuitCodec(model)
    data = codec.encode(x)
    expected, products = naive(model, x)
    assert data == expected
    assert codec.products == 2 * (8 - 1)
    assert products == 8 * 7
    assert depths(model.parents).tolist() == [2, 1, 2, 0, 1, 2, 2, 3]
    assert torch.equal(codec.decode(data).long(), x)


def test_bits_are_those_of_the_likelihood():
    model = HiddenTree.grown(blobs(), 4, 4, epochs=3, batch_size=50, generator=torch.Generator().manual_seed(0))
    x = blobs(2000, seed=2)
    bits = -float(model.log_likelihood(x).sum()) / math.log(2)
    data = CircuitCodec(model).encode(x)
    assert 0.999 * bits < 8 * len(data) < 1.001 * bits + 160  # header, last state and checksum
    assert torch.equal(CircuitCodec(model).decode(data).long(), x)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_images_and_unlikely_values_come_back(count):
    model = model_of()
    with torch.no_grad():
        model.emissions[:, :, 2] = 0
        model.emissions.div_(model.emissions.sum(-1, keepdim=True))
    x = torch.full((count, 5), 2)  # of probability 0 in the model
    codec = CircuitCodec(model)
    assert torch.equal(codec.decode(codec.encode(x)).long(), x)


def test_another_process_decodes_from_the_bytes_alone(tmp_path):
    model = model_of(states=3).float()
    x = torch.randint(0, 3, (7, 5), dtype=torch.uint8)
    (tmp_path / "stream").write_bytes(CircuitCodec(model).encode(x))
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    code = (
        "import sys; from pathlib import Path; from safetensors.torch import load_file\n"
        "from limbeck.codecs import CircuitCodec, HiddenTree\n"
        "folder = Path(sys.argv[1]); state = load_file(folder / 'model.safetensors')\n"
        "model = HiddenTree(state['parents'], *state['emissions'].shape[1:]); model.load_state_dict(state)\n"
        "print(CircuitCodec(model).decode((folder / 'stream').read_bytes()).tolist())\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(x.tolist())


def test_damaged_streams_are_refused_cleanly():
    model = model_of()
    codec = CircuitCodec(model)
    data = codec.encode(torch.randint(0, 3, (4, 5)))
    for bad in [data[:-1], data[:5], b"", data + b"\0", b"XX" + data[2:]]:
        with pytest.raises(ArtifactError):
            codec.decode(bad)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 16
        with pytest.raises(ArtifactError):
            codec.decode(bytes(altered))
    with pytest.raises(ArtifactError, match="another model"):
        CircuitCodec(model_of(seed=1)).decode(data)
    numbers, payload = rans.unseal(b"PC", 3, data)
    for forged in ((numbers[0], 1 << 40, 5), (numbers[0], 5, 5), (numbers[0], 3, 5)):
        with pytest.raises(ArtifactError):
            codec.decode(rans.seal(b"PC", forged, payload))
    with pytest.raises(UsageError, match="below 3"):
        codec.encode(torch.full((1, 5), 3))
    for parents in ([-1, -1], [1, 0], [0]):
        with pytest.raises(UsageError, match="one root"):
            HiddenTree(torch.tensor(parents), 2, 2)
