"""A realistic report of six stages, for the tests of the report room."""

import math
import random


def measurement(name, value, unit="", better="lower", runs=1, spread=0.0, where="", **settings):
    low, high = (value * (1 - spread), value * (1 + spread)) if spread else (value, value)
    fields = {"name": name, "value": value, "unit": unit, "better": better, "runs": runs}
    return fields | {"low": low, "high": high, "where": where, "settings": settings}


def layers(widths, bits=32):
    rows, before = [], 3
    for index, width in enumerate(widths):
        count = before * width * 9
        path = "conv1" if index == 0 else f"layer{(index - 1) // 2 + 1}.{(index - 1) % 2}.conv1"
        size = count * bits // 8 + (4 * width if bits < 32 else 0)
        rows.append({"path": path, "kind": "Conv2d", "parameters": count, "bytes": size, "bits": bits})
        norm = path.replace("conv", "bn")
        rows.append({"path": norm, "kind": "BatchNorm2d", "parameters": 2 * width, "bytes": 16 * width + 8, "bits": 32})
        before = width
    rows.append({"path": "fc", "kind": "Linear", "parameters": before * 10 + 10, "bytes": before * 40 + 40, "bits": 32})
    return rows


def reliability(shift, generator):
    bins, total, error = [], 0, 0.0
    for index in range(15):
        count = int(4 + 900 * (index / 14) ** 6 + generator.random() * 12) if index > 2 else 0
        confidence = (index + 0.5) / 15
        accuracy = min(max(confidence - shift * math.sin(math.pi * confidence), 0), 1)
        row = {"low": index / 15, "high": (index + 1) / 15, "confidence": confidence if count else 0.0}
        bins.append(row | {"accuracy": accuracy if count else 0.0, "count": count})
        total += count
        error += count * abs(accuracy - confidence)
    return {"bins": bins, "error": error / total}


def stage(name, step, form, accuracy, loss, parameters, bytes_, flops, latency, memory=None, **others):
    place = f"{form}, 2 threads, batch 1"
    timing = {"batch_size": 1, "threads": 2, "warmup": 5}
    made = [
        measurement("accuracy", accuracy, "", "higher", where=form, split="test", examples=10000),
        measurement("loss", loss, where=form, split="test", examples=10000),
        measurement("calibration_error", 0.021 + loss / 40, where=form, split="test", examples=10000),
        measurement("bytes", bytes_, "bytes", where="file"),
    ]
    if parameters:
        made.append(measurement("parameters", parameters, "parameters", where="torch"))
        made.append(measurement("flops", flops, "FLOPs", where="torch", batch_size=1))
    if latency:
        made.append(measurement("latency", latency, "seconds", runs=30, spread=0.06, where=place, **timing))
        rate = measurement(
            "throughput", 4.2 / latency, "items/s", "higher", 30, 0.04, place, **timing | {"batch_size": 32}
        )
        made.append(rate)
    if memory:
        made.append(measurement("peak_memory", memory, "bytes", runs=3, spread=0.02, where=form + ", fresh process"))
    fields = {"name": name, "step": step, "form": form, "notes": [], "layers": [], "reliability": None}
    return fields | {"measurements": {m["name"]: m for m in made}} | others


def history(steps, start, end, parts, generator):
    rows, evaluations = [], []
    for step in range(1, steps + 1):
        done = step / steps
        values = {
            p: w * (end + (start - end) * math.exp(-4 * done)) * (1 + 0.12 * generator.gauss(0, 1)) for p, w in parts
        }
        rate = 1e-3 * min(1.0, done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
        row = {"step": step, "epoch": step / 390, "loss": sum(values.values()), "parts": values, "learning_rate": rate}
        rows.append(row)
        if step % (steps // 12) == 0:
            accuracy = 0.93 - 0.6 * math.exp(-5 * done) + 0.004 * generator.random()
            evaluations.append(
                {"step": step, "epoch": step / 390, "split": "validation", "accuracy": accuracy, "loss": 0.3}
            )
    return {"steps": rows, "evaluations": evaluations, "seconds": steps * 0.31, "samples": steps * 128}


def sample_report():
    """Teacher, student, pruned, quantization-aware, and two ONNX forms, with everything a report can hold."""
    generator = random.Random(0)
    wide, slim, thin = [16] * 9 + [32] * 9 + [64] * 9, [16, 16, 16, 32, 32, 64, 64], [12, 11, 13, 24, 20, 41, 37]
    simulated = "quantization or sparsity is only simulated here: the size is the dense one, and no speed is given"
    stages = [
        stage("teacher", "teacher", "torch float32", 0.9384, 0.221, 855_770, 3_462_120, 2.53e8, 9.81e-3,
              layers=layers(wide), reliability=reliability(0.09, generator)),
        stage("student distilled", "distil", "torch float32", 0.9217, 0.262, 272_474, 1_112_808, 8.17e7, 3.42e-3,
              layers=layers(slim), reliability=reliability(0.06, generator)),
        stage("pruned and distilled", "prune", "torch float32", 0.9168, 0.271, 138_921, 573_120, 4.03e7, 2.61e-3,
              layers=layers(thin), reliability=reliability(0.05, generator)),
        stage("quantization-aware", "quantize", "torch float32", 0.9151, 0.279, 138_921, 573_120, 4.03e7, None,
              layers=layers(thin), notes=[simulated]),
        stage("ONNX float32", "export", "onnxruntime float32", 0.9168, 0.271, None, 559_871, None, 9.4e-4, 14_200_000),
        stage("ONNX int8", "export", "onnxruntime int8 QDQ", 0.9149, 0.281, None, 172_402, None, 5.7e-4, 12_900_000,
              layers=layers(thin, bits=8), reliability=reliability(-0.03, generator)),
    ]  # fmt: skip
    return {
        "format": 1,
        "name": "ResNet-56 to int8 ResNet-20",
        "seed": 0,
        "created": "2026-01-01T00:00:00Z",
        "environment": {
            "limbeck": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "onnxruntime": "1.23.0", "platform": "Linux x86_64",
            "cpu": "Example Processor 4000 at 2.60 GHz", "cores": 2, "logical_cores": 2, "threads": 2, "memory": 25_000_000_000,
        },
        "recipe": {
            "task": {"image_classification": {"dataset": "cifar10"}},
            "teacher": {"path": "runs/teacher"},
            "student": {"resnet": {"depth": 20}},
            "steps": [{"distil": {"objective": "SoftTargets(temperature=4)", "epochs": 40}}, {"prune": {"keep": 0.7}},
                      {"quantize": {"bits": 8}}],
            "budget": {"bytes": "200 kB", "latency": "1 ms", "drop": "1%"},
            "export": ["onnx"],
            "seed": 0,
        },
        "task": {"name": "image_classification", "metric": "accuracy", "better": "higher", "dataset": "cifar10"},
        "stages": stages,
        "training": [
            {"step": "distil", "history": history(2400, 2.3, 0.4, [("CrossEntropy", 0.4), ("SoftTargets", 1.0), ("Hint", 0.2)], generator)},
            {"step": "distil again", "history": history(780, 0.8, 0.35, [("SoftTargets", 1.0)], generator)},
        ],
        "budget": [
            {"limit": "bytes", "allowed": 200_000, "measured": 172_402, "met": True, "stage": "ONNX int8"},
            {"limit": "latency", "allowed": 1e-3, "measured": 5.7e-4, "met": True, "stage": "ONNX int8"},
            {"limit": "drop", "allowed": 0.01, "measured": 0.0235, "met": False, "stage": "ONNX int8"},
        ],
        "exports": [
            {"name": "onnx", "file": "exports/model.onnx", "bytes": 559_871, "difference": 1.1e-6},
            {"name": "onnx int8", "file": "exports/model-int8.onnx", "bytes": 172_402, "difference": 0.21},
        ],
    }  # fmt: skip
