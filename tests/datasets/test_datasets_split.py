import pytest

from limbeck.datasets.split import holdout
from limbeck.errors import UsageError


def test_is_a_partition_and_stratified():
    labels = [0] * 40 + [1] * 20 + [2] * 10
    rest, held = holdout(labels, 0.1)
    assert sorted(rest + held) == list(range(70)) and rest == sorted(rest) and held == sorted(held)
    assert [sum(labels[i] == c for i in held) for c in range(3)] == [4, 2, 1]


def test_is_fixed_for_all_time():
    # these numbers must never change: validation sets of finished work depend on them
    assert holdout(12, 0.25)[1] == [0, 2, 10]
    assert holdout(12, 0.25, "test")[1] == [5, 9, 10]


def test_one_label_more_moves_no_other_class():
    before = holdout([0, 1] * 20, 0.2)[1]
    after = holdout([0, 1] * 20 + [1], 0.2)[1]
    assert [i for i in before if i % 2 == 0] == [i for i in after if i % 2 == 0 and i < 40]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_fraction_outside(fraction):
    with pytest.raises(UsageError, match="holdout"):
        holdout(10, fraction)


def test_nothing_left_over():
    with pytest.raises(UsageError, match="one side empty"):
        holdout(3, 0.1)
