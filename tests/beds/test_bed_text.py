import dataclasses

import pytest
import torch

from limbeck.beds.text import AG_NEWS, LANGUAGE_WINDOWS, SST2, TextBed
from limbeck.datasets.load import find_folder
from limbeck.errors import UsageError
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import SoftTargets

pytestmark = pytest.mark.skipif(
    find_folder("ag_news") is None or find_folder("sst2") is None, reason="data sets ag_news and sst2 (make data)"
)
TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=3, lowest=0.0)


@pytest.fixture
def run(tmp_path):
    return Run(0, "validation", store=Store(tmp_path))


def test_students_learn_from_a_stored_teacher(run, tmp_path):
    teacher = TINY.teacher(run)
    assert run.costs == {}  # a shared teacher is nobody's cost
    again = TINY.teacher(Run(5, "test", store=Store(tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), again.parameters()))
    student = TINY.fit(run, TINY.encoder(1, 8, 2), SoftTargets(2.0), teacher, steps=2)
    assert run.costs == {"steps": 2, "samples": 64} and not student.training
    measured = TINY.measure(run, student)
    assert list(measured) == ["accuracy", "loss", "calibration_error"] and 0 < measured["accuracy"] < 1


def test_pre_trained_encoders_are_shared_by_beds_that_differ_in_labels(run):
    first = dataclasses.replace(TINY, pretraining=2)
    second = dataclasses.replace(first, labelled=32, steps=1)
    encoders = [bed.pretrained(run) for bed in (first, second)]
    assert run.store.used[-1]["hit"] and torch.equal(*(encoder.tokens.weight for encoder in encoders))
    assert first.digest() != second.digest() and first.name == "sst2_96"
    assert not torch.equal(first.teacher(run).tokens.weight, encoders[0].tokens.weight)
    with pytest.raises(UsageError, match="pre-trains nothing"):
        TINY.pretrained(run)


@pytest.mark.skipif(find_folder("udhr") is None, reason="data set udhr (make data)")
def test_windows_of_some_languages_share_the_vocabulary_of_all(run):
    some = dataclasses.replace(LANGUAGE_WINDOWS, languages=("dan", "eng", "swe"), width=16, pretraining=1)
    task = some.task()
    assert task.classes == ("dan", "eng", "swe") and len(LANGUAGE_WINDOWS.task().classes) == 32
    assert task.tokenizer is LANGUAGE_WINDOWS.task().tokenizer
    batch = next(task.batches("test", 500))
    texts = task.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert max(map(len, texts)) <= 2 * some.length and any("everyone" in text for text in texts)
    assert (batch["labels"].bincount() > 30).all()
    model = some.pretrained_masked(run)
    assert model.encoder.tokens.weight.std().item() == pytest.approx(0.25, rel=0.05)  # 1 / sqrt(width)
    own = some.masked_model(some.encoder())
    some.fit_masked(run, own, SoftTargets(2.0), model, steps=1, learning_rate=1e-3, limit=64)
    assert run.costs == {"steps": 1, "samples": 64} and some.measure_masked(run, own)["loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("bed", [AG_NEWS, SST2, LANGUAGE_WINDOWS], ids=lambda bed: bed.name)
def test_the_reference_reaches_what_the_bed_expects(bed, tmp_path):
    measured = bed.reference(Run(0, "test", store=Store(tmp_path)))
    low, high = bed.expects["accuracy"]
    assert low <= measured["accuracy"] <= high
