"""GPTQ here against another toolkit's: time, peak memory and the resulting error at equal bits, in one process and in turn.

    python benchmarks/quantization.py                     layers of several sizes, then a small decoder model
    python benchmarks/quantization.py --only layer --rounds 7 --json out.json

The peer is llm-compressor (`pip install llmcompressor compressed-tensors loguru`) where it is installed; else a plain
implementation of the published algorithm, below, and the output says so. Layers: both get one weight, one Hessian and the same
scales; the time is from the Hessian to the rounded weight, the median over pairs of neighbouring calls, and the error is
tr(E H E^T) / tr(W H W^T). Model: a Llama of random weights, quantized whole on the same tokens, from the float model to rounded
weights; the error is the mean squared change of its logits over their variance. Peak memory: above what was there before, each
side in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from limbeck.memory import give_back
from limbeck.plan import apply
from limbeck.quantization import GPTQ, IntegerGrid, PerGroup, Quantize, Quantizer
from limbeck.quantization.gptq import gptq
from limbeck.quantization.hessian import output_error

warnings.filterwarnings("ignore")
LAYERS = ((384, 384), (1024, 1024), (2048, 1024), (1024, 4096))
FOLDER = tempfile.TemporaryDirectory()
BITS, GROUP, SAMPLES, LENGTH = 4, 64, 16, 256


def peer() -> str:
    """The toolkit that runs here, by name."""
    try:
        from llmcompressor import __version__
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight  # noqa: F401

        logging.disable(logging.WARNING)
        from loguru import logger

        logger.remove()
        return f"llm-compressor {__version__}"
    except ImportError:
        return "plain"


def plain_gptq(weight, hessian, scale, zero, group, damping=0.01, block=128):
    """The published algorithm as it is usually written: Cholesky factor of the inverse, act-order, lazy blocks of 128 columns."""
    order = hessian.diagonal().argsort(descending=True)
    w, h, columns = weight[:, order].clone(), hessian[order][:, order].clone(), weight.shape[1]
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    where = (torch.arange(columns) // group)[order].tolist()
    for low in range(0, columns, block):
        high = min(low + block, columns)
        errors = torch.zeros(len(w), high - low)
        for j in range(low, high):
            s, z = scale[:, where[j]], zero[:, where[j]]
            q = (((w[:, j] / s).round() + z).clamp(0, 2**BITS - 1) - z) * s
            errors[:, j - low] = (w[:, j] - q) / inverse[j, j]
            w[:, j:high] -= errors[:, j - low, None] * inverse[j, j:high]
            w[:, j] = q
        w[:, high:] -= errors @ inverse[low:high, high:]
    return w[:, order.argsort()]


def theirs(weight, hessian, scale, zero, group):
    """The peer's rounded weight."""
    if peer() == "plain":
        return plain_gptq(weight, hessian, scale, zero, group)
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    settings = QuantizationArgs(num_bits=BITS, symmetric=False, strategy="group", group_size=group, actorder="weight")
    # its codes are signed: the zero point moves along
    shifted = (zero - 2 ** (BITS - 1)).to(torch.int8)
    return quantize_weight(weight[None].clone(), hessian[None].clone(), scale[None], shifted[None], None, settings)[0][
        0
    ]


def case(rows: int, columns: int):
    """A weight, the Hessian of correlated inputs, the quantizer and its scales."""
    generator = torch.Generator().manual_seed(rows + columns)
    mix = torch.randn(columns, 64, generator=generator) * torch.rand(columns, 1, generator=generator) * 2
    x = torch.randn(4096, 64, generator=generator) @ mix.T + 0.5 * torch.randn(4096, columns, generator=generator)
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    quantizer = Quantizer(IntegerGrid(BITS, signed=False, symmetric=False), PerGroup(GROUP))
    hessian = 2 / len(x) * x.T @ x
    return weight, (hessian + hessian.T) / 2, quantizer, *quantizer.parameters(weight)


def clock(run, *given):
    began = time.perf_counter()
    out = run(*given)
    return time.perf_counter() - began, out


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Our time over theirs, of neighbouring calls: median, least, most."""
    found = [a / b for a, b in zip(ours, theirs)]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def layers(rounds: int) -> list[dict]:
    found = []
    for rows, columns in LAYERS:
        weight, hessian, quantizer, scale, zero = case(rows, columns)
        ours_time, their_time = [], []
        for _ in range(rounds):
            seconds, (codes, s, z) = clock(gptq, weight, hessian, quantizer)
            ours_time.append(seconds)
            seconds, rounded = clock(theirs, weight, hessian, scale, zero, GROUP)
            their_time.append(seconds)
        ours = quantizer.decode(quantizer.pack(codes, s, z))
        nearest = quantizer.decode(quantizer.encode(weight))
        whole = output_error(weight, hessian[None]).sum()
        error = {
            name: (output_error(w - weight, hessian[None]).sum() / whole).item()
            for name, w in (("ours", ours), ("theirs", rounded), ("nearest", nearest))
        }
        ratio = ratios(ours_time, their_time)
        same = (ours - rounded).abs().lt(1e-6).float().mean().item()
        found.append(
            {
                "layer": [rows, columns],
                "ours_seconds": statistics.median(ours_time),
                "their_seconds": statistics.median(their_time),
                "time_ratio": ratio,
                "error": error,
                "same_weights": same,
            }
        )
    return found


class Tokens:
    """As much of a task as calibration reads: blocks of random tokens of a skewed vocabulary."""

    def __init__(self, vocabulary: int):
        draws = torch.rand(SAMPLES, LENGTH, generator=torch.Generator().manual_seed(0))
        self.ids = (draws**3 * vocabulary).long()

    def batches(self, split, batch_size, *, limit=None, **_):
        for start in range(0, min(limit or SAMPLES, SAMPLES), batch_size):
            ids = self.ids[start : start + batch_size]
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llama(depth: int = 4, width: int = 384):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": depth, "num_attention_heads": 6}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, max_position_embeddings=LENGTH, **sizes)).eval()
    model.config._name_or_path = FOLDER.name  # the toolkit looks into the folder a model came from
    model.save_pretrained(FOLDER.name)
    return model


def ours_whole(model):
    transform = Quantize(
        bits=BITS,
        weights=GROUP,
        activations=None,
        scale_type="float32",
        rounding=GPTQ(),
        ignore="lm_head",
        batch_size=1,
    )
    return apply(model, transform.plan(model, Tokens(2048)))


def theirs_whole(model):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    settings = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": GROUP,
        "actorder": "weight",
    }
    group = {"group_0": {"targets": ["Linear"], "weights": settings}}
    data = Dataset.from_dict(
        {"input_ids": Tokens(2048).ids.tolist(), "attention_mask": torch.ones(SAMPLES, LENGTH).long().tolist()}
    )
    words = Tokenizer(WordLevel({str(number): number for number in range(2048)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="0", pad_token="0"
    )  # it wants one, and reads tokens
    oneshot(model=model, processor=tokenizer, dataset=data, recipe=[GPTQModifier(config_groups=group, ignore=["lm_head"])], max_seq_length=LENGTH,
            num_calibration_samples=SAMPLES)  # fmt: skip
    return model


def logits(model):
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in Tokens(2048).batches("test", 4)])


def whole(rounds: int) -> dict:
    """The model, in turn; without a toolkit only ours."""
    model = llama()
    expected, found = logits(model), {"ours": [], "theirs": []}
    sides = {"ours": ours_whole} | ({} if peer() == "plain" else {"theirs": theirs_whole})
    errors = {}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds, made = clock(run, copy.deepcopy(model))
            found[name].append(seconds)
            errors[name] = ((logits(made) - expected).square().mean() / expected.var()).item()
    plain = Quantize(bits=BITS, weights=GROUP, activations=None, scale_type="float32", ignore="lm_head")
    errors["nearest"] = (
        (logits(apply(copy.deepcopy(model), plain.plan(model))) - expected).square().mean() / expected.var()
    ).item()
    seconds = {name: statistics.median(values) for name, values in found.items() if values}
    ratio = ratios(found["ours"], found["theirs"]) if found["theirs"] else None
    return {
        "seconds": seconds,
        "time_ratio": ratio,
        "error": errors,
        "peak_bytes": {name: peak(name) for name in sides},
    }


def peak(name: str) -> int:
    """Peak memory above what the model and the imports take, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, env=os.environ)
    return int(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else -1


def measure_peak(name: str) -> int:
    run = ours_whole if name == "ours" else theirs_whole
    peer()
    run(llama(depth=1, width=192))  # what either side imports late is there
    model = llama(depth=8)
    logits(model)
    gc.collect()
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = held("VmRSS")
    run(model)
    return held("VmHWM") - before


def held(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("layer", "model"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.peak:
        print(measure_peak(given.peak))
        return
    report: dict = {"peer": peer(), "bits": BITS, "group": GROUP}
    print(f"peer: {report['peer']}")
    if given.only != "model":
        report["layers"] = layers(given.rounds)
        for row in report["layers"]:
            print(
                f"{row['layer']!s:>14}  ours {row['ours_seconds']:.3f} s, theirs {row['their_seconds']:.3f} s, ratio "
                f"{row['time_ratio']['median']:.2f} ({row['time_ratio']['least']:.2f} to {row['time_ratio']['most']:.2f})   error ours {row['error']['ours']:.3e} theirs {row['error']['theirs']:.3e} nearest "
                f"{row['error']['nearest']:.3e}   same {row['same_weights']:.4f}"
            )
    if given.only != "layer":
        report["model"] = whole(max(1, given.rounds // 2))
        print(json.dumps(report["model"], indent=1))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
