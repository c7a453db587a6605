from limbeck.beds.language import CHARACTERS
from limbeck.tasks.drawn import Drawn


def test_calibration_examples_follow_the_seed():
    task = CHARACTERS.task
    first, again, other = (next(iter(Drawn(task, s).batches("train", 4, limit=4)))["input_ids"] for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert len(list(Drawn(task, 0).batches("train", 16, limit=128))) == 8
