"""measure_model and measure_onnx end to end on a tiny classifier, against numbers worked out by hand."""

import math
import time

import numpy as np
import pytest
import torch
from measure_tiny import TinyTask, export, tiny_model
from torch import nn

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.measure import measure_model, measure_onnx, peak_memory_of, peak_memory_onnx, quality_onnx, quality_torch
from limbeck.measure.memory_child import high_water, resident
from limbeck.measure.sessions import fixed_batch_size, onnx_form, open_session


@pytest.fixture(scope="module")
def task():
    return TinyTask()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


QUICK = {"runs": 4, "warmup": 1, "budget_seconds": 1.0}


def test_torch_numbers(model, task):
    found = measure_model(model, task, throughput_batch_size=8, **QUICK)
    assert set(found) == {"accuracy", "loss", "parameters", "bytes", "flops", "latency", "throughput"}
    assert all(name == measurement.name for name, measurement in found.items())
    assert found["parameters"].value == 6 * 5 + 5 + 5 * 3 + 3
    assert found["bytes"].value == 4 * found["parameters"].value
    assert found["flops"].value == 2 * (6 * 5 + 5 * 3)
    logits = model(task.data["test"]["pixel_values"]).detach()
    labels = task.data["test"]["labels"]
    assert found["accuracy"].value == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert found["accuracy"].better == "higher" and found["loss"].better == "lower"
    assert found["accuracy"].settings["split"] == "test"
    assert found["latency"].settings["batch_size"] == 1 and found["latency"].runs == 4
    assert found["latency"].low <= found["latency"].value <= found["latency"].high
    assert found["throughput"].settings["batch_size"] == 8
    assert found["throughput"].low <= found["throughput"].value <= found["throughput"].high


def test_onnx_agrees_with_torch(model, task, file):
    found = measure_onnx(file, task, threads=1, memory_runs=0, **QUICK)
    plain = quality_torch(model, task).measurements
    assert found["accuracy"].value == pytest.approx(plain["accuracy"].value)
    assert found["loss"].value == pytest.approx(plain["loss"].value, rel=1e-5)
    assert found["bytes"].value == file.stat().st_size
    assert found["latency"].settings["threads"] == 1
    assert "onnxruntime float32" in found["latency"].where and "1 thread," in found["latency"].where


def test_a_fixed_batch_is_evaluated_in_pieces(model, task, tmp_path):
    fixed = export(model, tmp_path / "fixed.onnx", batch_size=4)
    assert fixed_batch_size(open_session(fixed)) == 4
    whole = quality_torch(model, task, batch_size=7).measurements
    pieces = quality_onnx(fixed, task, batch_size=7).measurements
    assert pieces["loss"].value == pytest.approx(whole["loss"].value, rel=1e-5)
    assert measure_onnx(fixed, task, memory_runs=0, **QUICK)["latency"].settings["batch_size"] == 4


def test_peak_memory_grows_with_the_model(task, file, tmp_path):
    small = peak_memory_onnx(file, task, runs=1)
    wide = nn.Sequential(nn.Linear(6, 1_000_000), nn.Linear(1_000_000, 3))
    big = peak_memory_onnx(export(wide, tmp_path / "wide.onnx"), task, runs=1)
    assert big.value - small.value > 0.8 * 4 * 10_000_000  # ten million float32 weights
    assert big.unit == "bytes" and "fresh process" in big.where


def test_the_high_water_mark_is_in_bytes():
    mark = high_water()
    assert mark is None or 0.9 * resident() <= mark < 1e12


def test_peak_memory_of_a_call_sees_what_it_touches():
    def run():
        held = np.ones(8_000_000)
        time.sleep(0.5)  # a sampler that waits for a busy processor gets its turn
        return float(held.sum())

    assert peak_memory_of(run) > 0.8 * 64_000_000


def test_the_form_is_read_from_the_graph(file):
    assert onnx_form(file) == "onnxruntime float32"


def test_missing_or_broken_files_are_refused(task, tmp_path):
    with pytest.raises(ArtifactError, match="no ONNX file"):
        measure_onnx(tmp_path / "absent.onnx", task)
    (tmp_path / "broken.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(ArtifactError, match="refuses"):
        measure_onnx(tmp_path / "broken.onnx", task)


def test_outputs_that_are_not_finite_are_refused(task):
    broken = tiny_model()
    nn.init.constant_(broken[0].weight, math.nan)
    with pytest.raises(DataError, match="not finite"):
        quality_torch(broken, task)


def test_the_reliability_diagram_counts_every_example(model, task):
    quality = quality_torch(model, task, batch_size=7)
    rows = quality.reliability["bins"]
    assert sum(row["count"] for row in rows) == 20
    right = sum(row["count"] * row["accuracy"] for row in rows)
    assert right / 20 == pytest.approx(quality.measurements["accuracy"].value)


def test_the_models_mode_comes_back(model, task):
    model.train()
    model[1].eval()
    quality_torch(model, task)
    assert model.training and not model[1].training


def test_wrong_inputs_are_named(file):
    class Other(TinyTask):
        def example(self, batch_size=1):
            return {"pixel_values": torch.zeros(batch_size, 9)}

    with pytest.raises(UsageError, match="fixed to 6 on axis 1"):
        measure_onnx(file, Other(), memory_runs=0)
