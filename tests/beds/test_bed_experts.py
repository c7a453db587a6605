import pytest

from limbeck.beds.experts import Experts
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store

needs_data = pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")


@needs_data
def test_the_reference_runs_and_is_kept(tmp_path):
    bed = Experts(length=32, depth=1, width=16, heads=2, hidden=16, experts=4, steps=2)
    run = Run(0, "validation", Store(tmp_path))
    found = bed.reference(run)
    assert set(found) == {"perplexity", "loss"} and 1 < found["perplexity"] < 200
    assert not run.costs and bed.reference(run) == found
    assert bed.digest() != Experts().digest()


@needs_data
@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_says(tmp_path):
    bed = Experts()
    low, high = bed.expects["perplexity"]
    assert low <= bed.reference(Run(0, "test", Store(tmp_path)))["perplexity"] <= high
