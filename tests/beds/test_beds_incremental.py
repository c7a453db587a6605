"""The class-incremental bed: what a phase holds, what the memory keeps, what is measured."""

import pytest
import torch

from limbeck.beds.incremental import Incremental, Learned
from limbeck.errors import UsageError
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store

TINY = Incremental(dataset="digits", size=8, train=20, held=5, test=5, memory=4, epochs=1)


def run(folder, seed=0):
    return Run(seed, "validation", Store(folder))


def test_phases_hold_the_new_classes_and_the_memory(tmp_path):
    phases = []

    def learn(phase):
        labels = torch.cat([batch["labels"] for batch in phase.task.batches("train", 50)])
        phases.append((phase.number, phase.old, phase.seen, labels.bincount(minlength=10).tolist()))
        return Learned(lambda batch: torch.zeros(len(batch["labels"]), phase.seen))

    TINY.protocol(run(tmp_path), learn)
    assert [row[:3] for row in phases] == [(i, 2 * i, 2 * i + 2) for i in range(5)]
    for _, old, seen, counts in phases:
        assert counts == [4] * old + [20] * (seen - old) + [0] * (10 - seen)


def test_an_oracle_and_a_constant_are_measured_as_they_are(tmp_path):
    def oracle(phase):
        return Learned(lambda batch: torch.nn.functional.one_hot(batch["labels"], phase.seen).float())

    def newest(phase):
        return Learned(lambda batch: torch.eye(phase.seen)[-1].expand(len(batch["labels"]), -1))

    right = TINY.protocol(run(tmp_path), oracle)
    assert right == {
        "average_accuracy": 1.0, "final_accuracy": 1.0, "old_accuracy": 1.0, "new_accuracy": 1.0, "old_taken_for_new": 0.0
    }  # fmt: skip
    wrong = TINY.protocol(run(tmp_path), newest)
    assert wrong["final_accuracy"] == pytest.approx(0.1) and wrong["old_taken_for_new"] == 1.0
    assert wrong["average_accuracy"] == pytest.approx(sum(1 / n for n in (2, 4, 6, 8, 10)) / 5)


def test_the_memory_is_what_herding_chooses_from_the_learner_s_features(tmp_path):
    seen = []

    def learn(phase):
        seen.append(phase.memory)
        features = lambda inputs: inputs.flatten(1)[:, :1] * 0 + 1.0  # noqa: E731  all alike: herding takes the first
        return Learned(lambda batch: torch.zeros(len(batch["labels"]), phase.seen), features)

    TINY.protocol(run(tmp_path), learn)
    assert seen[0] is None
    inputs, labels = TINY.examples("train", 0, 0, 1)
    kept = seen[1][0][seen[1][1] == 0]
    assert torch.equal(kept, inputs[labels == 0][:4])


def test_the_order_of_classes_is_the_seeds_and_labels_are_numbered_by_arrival():
    assert sorted(TINY.order(3)) == list(range(10)) and TINY.order(3) == TINY.order(3) != TINY.order(4)
    first, _ = TINY.examples("train", 3, 0, 1)
    pixels, labels = TINY.images["train"]
    assert torch.equal(first, pixels[labels == TINY.order(3)[0]])


def test_the_digest_tells_settings_apart():
    other = Incremental(dataset="digits", size=8, train=20, held=5, test=5, memory=5, epochs=1)
    assert TINY.digest() == Incremental(**vars_of(TINY)).digest() != other.digest()


def vars_of(bed):
    import dataclasses

    return dataclasses.asdict(bed)


@pytest.mark.parametrize("wrong", [{"phases": 3}, {"phases": 1}, {"memory": 0}, {"memory": 300}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UsageError):
        Incremental(**wrong)


@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    found = Incremental().reference(Run(0, "test", Store(tmp_path)))
    low, high = Incremental.expects["accuracy"]
    assert low <= found["accuracy"] <= high


def test_features_come_from_a_frozen_encoder_of_another_data_set_and_are_shared(tmp_path):
    settings = {"dataset": "digits", "width": 4, "epochs": 0.1}
    one = run(tmp_path)
    pooled, places = TINY.features(one, **settings), TINY.features(run(tmp_path), places=True, **settings)
    assert pooled["train"][0].shape == (200, 16) and places["test"][0].shape == (50, 4, 16)
    torch.testing.assert_close(pooled["test"][0], places["test"][0].mean(1))
    assert torch.equal(pooled["train"][1], TINY.images["train"][1])
    model = TINY.encoder(one, **settings)
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    expected = model.features(TINY.images["test"][0].float() / 64 - 2)
    torch.testing.assert_close(pooled["test"][0], expected, atol=2e-2, rtol=2e-2)
    assert TINY.unlabelled(one, 30, **settings).shape == (30, 16)
    assert one.costs == {}
