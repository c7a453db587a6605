"""Fairy2i: a trained real network becomes a complex one whose weights are 1, i, -1 and -i.

Idea: any real matrix is a complex map of x and of its conjugate, U x + V conj(x), exactly. In that form each entry is put on the fourth root of
unity nearest in phase, which takes one bit per real parameter and, unlike a sign, keeps both axes apart. What is left is put on the
roots again for a second bit. Training goes on from the real checkpoint, straight through the roots.

    U = ((A + D) + i (C - B)) / 2,  V = ((A - D) + i (B + C)) / 2,   W_0 = Q(W), W_1 = Q(W - W_0), ...
    Q(w) = s_re Re r + i s_im Im r,  r the nearest root,  s_re = mean |Re w| over entries on the real axis, s_im likewise

Source: Wang et al., "Fairy2i: Training complex LLMs from real LLMs with all parameters in {+-1, +-i}", 2025, sections 3.1 to 3.3. The authors'
public code was read: the forward form agrees but for entries at exactly 45 degrees (it goes by half-open intervals; here to the real axis)
and its floor of 1e-6 under the scales.
Pieces: `FourthRootGrid`, `BinarySum`, `TernaryGrid`, `BinaryGrid` of `limbeck.quantization`, `prepare_qat`, `finish_qat`.

The miniature: characters of Shakespeare. One block of width 64 is trained in float (shared by all arms of a seed), then trained on with its
linear layers on each grid, one scale set per matrix as in the paper; the tied head and embeddings stay float. Baseline at equal bits:
residual binarization with two signs. `after`: the same further steps in float, quantized at the end. All losses are those of packed
weights. Each arm chooses among two learning rates on validation. One run was made for the verdict: two stages are better than ternary (0.035
nats) and than quantizing afterwards (0.090), one stage is better than signs (0.006), but two stages tie with residual signs at equal bits
(0.002, interval through zero), so the claim as a whole is inconclusive here.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from limbeck.beds.language import CHARACTERS, LanguageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.plan import apply
from limbeck.quantization import Quantize, finish_qat, prepare_qat

BED = replace(CHARACTERS, length=64, blocks=200)


def tune(
    run: Run,
    grid: str | None = "fourth_roots",
    bits: int = 2,
    method: str | None = None,
    after: bool = False,
    rate: float = 2e-3,
    steps: int = 200,
    before: int = 300,
    bed: LanguageBed = BED,
) -> dict[str, float]:
    """Go on from the seed's float model on a grid. grid: None for float; after: quantize only at the end."""
    model: nn.Module = bed.student(run)
    model.load_state_dict(bed.trained_student(run, before).state_dict())
    if grid is None:
        bed.fit(run, model, steps=steps, learning_rate=rate)
    else:
        named = (
            grid
            if grid in ("ternary", "binary")
            else {"name": grid, "stages" if grid == "fourth_roots" else "terms": bits}
        )
        plan = Quantize(grid=named, weights="tensor", method=method, activations=None).plan(model)
        if after:
            apply(bed.fit(run, model, steps=steps, learning_rate=rate), plan)
        else:
            model = apply(*finish_qat(bed.fit(run, prepare_qat(model, plan), steps=steps, learning_rate=rate)))
    size = sum(value.numel() * value.element_size() for name, value in model.state_dict().items() if "blocks" in name)
    return {**bed.measure(run, model.eval()), "block_bytes": size}


RATES = {"rate": (2e-3, 5e-3)}

paper = Paper(
    id=276,
    title="Fairy2i: Training Complex LLMs from Real LLMs with All Parameters in {pm 1, pm i}",
    claim="A trained language model continued on complex fourth roots of unity in two stages (2 bits) is better than on real residual binary "
    "or ternary weights; with one stage (1 bit) it is better than on signs.",
    composition='finish_qat(prepare_qat(model, Quantize(grid={"name": "fourth_roots", "stages": 2}, weights="tensor", activations=None).plan(model)))',
    metric="loss",
    better="lower",
    method=Arm(tune, tune=RATES, about="fourth roots, two stages, 2 bits"),
    baseline=Arm(tune, {"grid": "binaries", "method": "greedy"}, tune=RATES, about="residual binary, 2 bits"),
    control=Arm(tune, {"after": True}, tune=RATES, about="fourth roots, two stages, quantized after training"),
    others={
        "ternary": Arm(tune, {"grid": "ternary"}, tune=RATES, about="ternary, mean scale, 1.6 bits"),
        "one_stage": Arm(tune, {"bits": 1}, tune=RATES, about="fourth roots, one stage, 1 bit"),
        "binary": Arm(tune, {"grid": "binary"}, tune=RATES, about="signs with their best scale, 1 bit"),
        "float": Arm(tune, {"grid": None}, tune=RATES, about="float"),
    },
    comparisons=(
        Comparison(text="2 bits: fourth roots against residual binary"),
        Comparison(against="ternary", text="fourth roots (2 bits) against ternary"),
        Comparison(method="one_stage", against="binary", text="1 bit: fourth roots against signs"),
        Comparison(against="control", text="trained on the roots against quantized afterwards"),
        Comparison(against="float", margin=0.1, decisive=False, text="as good as float, to 0.1 nats"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    left_out="LLaMA-2 7B; more than two stages; complex inference by additions and swaps (here the real matrix is decoded).",
)
