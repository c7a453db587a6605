"""CRD against plain loops, and its memory bank: what it remembers, draws and keeps in a checkpoint."""

import copy

import pytest
import torch
from agreement import agree, draw

from limbeck.errors import UsageError
from limbeck.objectives import MemoryContrast
from limbeck.signals import Signals

M = 7
INDEX, LABELS = torch.tensor([4, 0, 6]), torch.tensor([1, 0, 1])
WEIGHT = torch.tensor([1.0, 2.0, 0.5])
BATCH = {"index": INDEX, "labels": LABELS, "sample_weight": WEIGHT}


def prepared(**settings):
    objective = MemoryContrast(M, width=3, temperature=0.5, **settings)
    s, t = draw(3, 2), draw(3, 4)
    made = objective.connectors(Signals({"logits": s}), Signals({"logits": t}))
    made["bank"].classes[:] = torch.tensor([0, 1, -1, 0, 1, 0, 1])
    return objective, s, t, made


def unit(v):
    return v / v.square().sum().sqrt()


@pytest.mark.parametrize("others", ["classes", "examples"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("negatives", [4, M])
def test_value_and_gradient(others, normalize, negatives):
    objective, s, t, made = prepared(others=others, normalize=normalize, negatives=negatives)
    torch.manual_seed(1)
    drawn = made["bank"].draw(negatives).tolist()
    layers = {k: [p.detach().double() for p in made[k].parameters()] for k in ("student", "teacher")}
    banks = {k: getattr(made["bank"], k).double() for k in ("student", "teacher")}
    classes = made["bank"].classes.tolist()

    def reference(s, t):
        embedded = {k: [unit(layers[k][0] @ v + layers[k][1]) for v in x] for k, x in (("student", s), ("teacher", t))}
        total = [0, 0, 0]
        for anchors, bank in (("student", "teacher"), ("teacher", "student")):
            e = [[torch.exp((embedded[anchors][i] * row).sum() / 0.5) for row in banks[bank]] for i in range(3)]
            wrong = [
                [j for j in drawn if j != INDEX[i] and (others == "examples" or classes[j] != LABELS[i])]
                for i in range(3)
            ]
            if normalize:
                used = [float(e[i][j]) for i in range(3) for j in [int(INDEX[i]), *wrong[i]]]
                constant = sum(used) / len(used) * M
                e = [[v / constant for v in row] for row in e]
            for i in range(3):
                share = len(wrong[i]) / M
                right = e[i][INDEX[i]]
                total[i] = total[i] - torch.log(right / (right + share))
                for j in wrong[i]:
                    total[i] = total[i] - torch.log(1 - e[i][j] / (e[i][j] + share))
        return sum(w * v for w, v in zip(WEIGHT.tolist(), total)) / float(WEIGHT.sum())

    torch.manual_seed(1)
    agree(objective, s, t, BATCH, reference, connectors=made)


def test_the_bank_moves_rows_that_were_seen_and_no_others():
    objective, s, t, made = prepared(momentum=0.25)
    before = copy.deepcopy(made["bank"])
    batch = BATCH | {"sample_weight": torch.tensor([1.0, 0.0, 1.0])}
    objective(Signals({"logits": s}), Signals({"logits": t}), batch, made)
    with torch.no_grad():
        for side, x in (("student", s), ("teacher", t)):
            old, new = getattr(before, side), getattr(made["bank"], side)
            embedded = made[side](x)
            for i in (0, 2):
                row = int(INDEX[i])
                torch.testing.assert_close(new[row], unit(0.25 * old[row] + 0.75 * unit(embedded[i])))
            assert [j for j in range(M) if not torch.equal(old[j], new[j])] == [4, 6]
    assert made["bank"].classes[[4, 6]].tolist() == [1, 1]


def test_the_state_is_the_modules_state():
    """A bank that is loaded into fresh connectors goes on with the same numbers, its constants too."""
    objective, s, t, made = prepared(normalize=True)
    signals = Signals({"logits": s}), Signals({"logits": t})
    objective(*signals, BATCH, made)
    fresh = objective.connectors(*signals)
    for name, module in fresh.items():
        module.load_state_dict(made[name].state_dict())
    assert not bool(made["bank"].constants.isnan().any())
    values = [float(objective(*signals, BATCH, connectors).value) for connectors in (made, fresh)]
    assert values[0] == values[1]


def test_fewer_others_are_drawn_without_repetition_and_exclude_the_own_class():
    _, _, _, made = prepared()
    bank = made["bank"]
    drawn = bank.draw(4)
    assert len(set(drawn.tolist())) == 4
    assert bank.draw(M).tolist() == list(range(M)) == bank.draw(99).tolist()
    excluded = bank.same(torch.arange(M), INDEX, LABELS)
    assert excluded.tolist() == [
        [False, True, False, False, True, False, True],
        [True, False, False, True, False, True, False],
        [False, True, False, False, True, False, True],
    ]
    torch.manual_seed(0)
    several = {tuple(bank.draw(4).tolist()) for _ in range(5)}
    assert len(several) > 1


def test_refusals():
    objective, s, t, made = prepared()
    signals = Signals({"logits": s}), Signals({"logits": t})
    with pytest.raises(UsageError, match="index"):
        objective(*signals, {"labels": LABELS}, made)
    with pytest.raises(UsageError, match="made for 7"):
        objective(*signals, BATCH | {"index": torch.tensor([1, 2, 7])}, made)
    with pytest.raises(UsageError, match="labels"):
        objective(*signals, {"index": INDEX}, made)
    with pytest.raises(UsageError, match="hand over"):
        objective(*signals, BATCH)
