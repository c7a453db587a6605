"""The retrieval bed: queries to train with are never those of the test, and the exact ranking is as good as expected."""

import pytest

from limbeck.beds.retrieval import Embedded
from limbeck.datasets.load import data_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store

needs_data = pytest.mark.skipif(not (data_folder() / "cranfield").is_dir(), reason="the collection is not here")


@needs_data
def test_queries_come_from_the_documents_alone():
    bed = Embedded()
    texts, own = bed.texts()
    assert not set(texts) & set(bed.collection.queries)
    assert all(text in bed.collection.documents[at] for text, at in zip(texts, own))
    assert len(texts) > 2000


@pytest.mark.slow
@needs_data
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    bed = Embedded()
    found = bed.reference(Run(0, "test", Store(tmp_path)))
    for metric, (low, high) in bed.expects.items():
        assert low <= found[metric] <= high, found
