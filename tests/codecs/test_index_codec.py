"""Codes as streams, clustered codebooks, and what fills the gaps."""

import math

import pytest
import torch

from limbeck import models
from limbeck.codecs.index_codec import Autoencode, IndexCodec, with_fewer_codes
from limbeck.codecs.index_prior import IndexPrior, PredictLost, fill_nearest, fill_random
from limbeck.errors import ArtifactError, UsageError
from limbeck.tasks import CustomTask
from limbeck.training import Trainer, TrainingConfig


def autoencoder(codes=16):
    torch.manual_seed(0)
    made = models.vq_autoencoder(width=8, code_width=4, codes=codes)
    made.quantizer(made.latent(torch.rand(8, 1, 8, 8)))  # a first batch sets the codes
    return made.eval()


def task_of(rows):
    rows = {**rows, "labels": torch.zeros(len(next(iter(rows.values()))), dtype=torch.int64)}
    return CustomTask({"train": rows, "test": rows}, inputs=(next(iter(rows)),), version="1")


def test_a_stream_decodes_to_the_same_codes_at_log2_k_bits():
    model = autoencoder()
    codec, images = IndexCodec(model), torch.rand(40, 1, 8, 8)
    indices = model.indices(images)
    data = codec.encode(images)
    assert torch.equal(codec.unpack(data), indices)
    torch.testing.assert_close(codec.decode(data), model.decode(indices))
    assert len(data) == pytest.approx(40 * 4 * 4 / 8 + 2 + 5 + 3 + 5 + 4, abs=3)
    torch.testing.assert_close(model(images).clamp(0, 1), model.decode(indices), atol=1e-5, rtol=0)


def test_usage_makes_frequent_codes_short():
    model = autoencoder()
    indices = torch.zeros(50, 2, 2, dtype=torch.int64)
    indices[0, 0, 0] = 5
    usage = torch.bincount(indices.flatten(), minlength=16)
    codec = IndexCodec(model, usage)
    data = codec.pack(indices)
    assert torch.equal(codec.unpack(data), indices)
    share = (usage + 0.5) / (usage + 0.5).sum()
    bits = -sum(math.log2(share[i]) for i in indices.flatten().tolist())
    assert 8 * len(data) <= bits + 160 < 8 * len(IndexCodec(model).pack(indices))


def test_damaged_and_foreign_streams_are_refused():
    model = autoencoder()
    codec = IndexCodec(model)
    data = codec.encode(torch.rand(3, 1, 8, 8))
    for bad in (data[:-2], data[:8], b"", data + b"1"):
        with pytest.raises(ArtifactError):
            codec.decode(bad)
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(ArtifactError):
            codec.decode(bytes(altered))
    other = with_fewer_codes(model, 8)
    with pytest.raises(ArtifactError, match="another model"):
        IndexCodec(other).decode(data)
    with pytest.raises(UsageError, match="below 16"):
        codec.pack(torch.full((1, 2, 2), 16))
    with pytest.raises(UsageError, match="usage"):
        IndexCodec(model, torch.ones(3))


def test_a_clustered_codebook_is_made_of_means_and_tuning_moves_only_what_surrounds_it():
    model = autoencoder()
    small = with_fewer_codes(model, 4, torch.Generator().manual_seed(0))
    assert small.quantizer.size == 4 and model.quantizer.size == 16
    assert int(small.indices(torch.rand(5, 1, 8, 8)).max()) < 4
    distance = torch.cdist(model.quantizer.codes[0], small.quantizer.codes[0])
    for code in range(4):
        own = distance.argmin(1) == code
        torch.testing.assert_close(small.quantizer.codes[0, code], model.quantizer.codes[0][own].mean(0))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    task = task_of({"pixel_values": torch.rand(32, 1, 8, 8)})
    config = TrainingConfig(steps=3, batch_size=16, learning_rate=1e-3)
    Trainer(config, progress=False).run(Autoencode(small, ("before", "quantizer", "after")), task)
    moved = {name.split(".")[0] for name, value in small.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"before", "quantizer", "after"}
    with pytest.raises(UsageError, match="count=17"):
        with_fewer_codes(model, 17)


def test_an_autoencoder_learns():
    torch.manual_seed(0)
    model = models.vq_autoencoder(width=8, code_width=4, codes=8)
    pattern = torch.zeros(64, 1, 8, 8)
    pattern[:32, :, :4] = 1
    pattern[32:, :, :, :4] = 1
    config = TrainingConfig(steps=200, batch_size=32, learning_rate=5e-3, log_every=1)
    history = Trainer(config, progress=False).run(Autoencode(model), task_of({"pixel_values": pattern}))
    errors = [row["parts"]["error"] for row in history.steps]
    assert errors[-1] < 0.3 * errors[0]
    for parts in ((), ("quantizer",), ("head", "before")):
        with pytest.raises(UsageError, match="parts"):
            Autoencode(model, parts)


def striped(count=128):
    """Grids whose rows all hold the same number: a lost one follows from its row."""
    rows = torch.randint(0, 6, (count, 4, 1), generator=torch.Generator().manual_seed(0))
    return rows.expand(count, 4, 4).clone()


def test_the_prior_learns_to_restore_and_never_reads_what_is_lost():
    torch.manual_seed(0)
    prior, indices = IndexPrior(6, 4, 4, hidden=32), striped()
    config = TrainingConfig(steps=150, batch_size=64, learning_rate=5e-3, warmup=0.1)
    Trainer(config, progress=False).run(PredictLost(prior), task_of({"indices": indices}))
    lost = torch.rand(indices.shape) < 0.2
    found = prior.fill(indices, lost)
    assert torch.equal(found[~lost], indices[~lost])
    assert float((found == indices)[lost].double().mean()) > 0.8
    assert torch.equal(prior.fill(torch.where(lost, 0, indices), lost), found)
    twice = prior.fill(torch.where(lost, 1, indices), lost, rounds=3)
    assert torch.equal(twice[~lost], indices[~lost])
    assert float((twice == indices)[lost].double().mean()) > 0.8


def test_the_loss_is_the_cross_entropy_of_the_lost_places():
    torch.manual_seed(0)
    prior, indices = IndexPrior(6, 4, 4, hidden=8), striped(5)
    torch.manual_seed(3)
    found = PredictLost(prior).step({"indices": indices}, None)["main"].value
    torch.manual_seed(3)
    share = 0.05 + 0.45 * torch.rand(5, 1, 1)
    lost = torch.rand(5, 4, 4) < share
    for row in range(5):
        if not lost[row].any():
            lost[row, 0, 0] = True
    expected = torch.nn.functional.cross_entropy(prior(indices, lost)[lost], indices[lost])
    torch.testing.assert_close(found, expected)


def test_nearest_fill_is_brute_force():
    indices = torch.randint(1, 9, (6, 4, 5))
    lost = torch.rand(6, 4, 5) < 0.6
    lost[0] = True
    found = fill_nearest(indices, lost)
    for n in range(6):
        arrived = [(y, x) for y in range(4) for x in range(5) if not lost[n, y, x]]
        for y in range(4):
            for x in range(5):
                if not lost[n, y, x]:
                    expected = indices[n, y, x]
                elif arrived:
                    of = min(arrived, key=lambda p: ((p[0] - y) ** 2 + (p[1] - x) ** 2, (p[0] - y, p[1] - x)))
                    expected = indices[n, of[0], of[1]]
                else:
                    expected = 0
                assert found[n, y, x] == expected
    guessed = fill_random(indices, lost, 9)
    assert torch.equal(guessed[~lost], indices[~lost]) and int(guessed.max()) < 9


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="grid"):
        IndexPrior(6, 4, 4, hidden=8)(torch.zeros(1, 3, 4, dtype=torch.int64), torch.zeros(1, 3, 4, dtype=torch.bool))
    with pytest.raises(UsageError, match="least"):
        PredictLost(IndexPrior(6, 4, 4, hidden=8), least=0.6, most=0.5)
    with pytest.raises(UsageError, match="commitment"):
        Autoencode(autoencoder(), commitment=-1.0)
