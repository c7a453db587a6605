"""The graph beds: a few steps run, and the references reach what the beds promise."""

import dataclasses

import pytest

from limbeck.beds.graphs import Collections, Nodes
from limbeck.datasets.load import data_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.ff_g2m import BEDS

needs_data = pytest.mark.skipif(not (data_folder() / "graphs_tu").is_dir(), reason="the graphs are not here")


@needs_data
def test_a_few_steps_give_finite_numbers(tmp_path):
    bed = Collections("mutag", width=8, epochs=1)
    assert 0 <= bed.reference(Run(0, "validation", Store(tmp_path)))["accuracy"] <= 1
    assert bed.describe()["name"] == "mutag"
    assert bed.digest() != dataclasses.replace(bed, width=16).digest()
    assert Nodes("cora").task.features == 1433


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("bed", [*BEDS, Collections("mutag"), Collections("proteins")], ids=lambda bed: bed.name)
def test_the_reference_reaches_what_the_bed_expects(bed, tmp_path):
    found = bed.reference(Run(0, "test", Store(tmp_path)))
    for metric, (low, high) in bed.expects.items():
        assert low <= found[metric] <= high, found
