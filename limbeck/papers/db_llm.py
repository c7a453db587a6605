"""DB-LLM: two bits as two binaries with scales of their own, and a distillation that looks at ambiguous tokens.

Idea: a group of 2-bit weights w^ = a_1 b_1 + a_2 b_2 with b in {0, 1} starts as the uniform levels -s, 0, s, 2 s (a_1 = 2 s, a_2 = -s) and is then
free to move: both scales are learned, so the levels 0, a_1, a_2, a_1 + a_2 need not stay evenly spaced. A product is two sparse binary
ones. Low-bit models go wrong where the answer is open; the loss weighs each token by the entropy of teacher and student.

    b_1 = H(w - (a_1 + a_2) / 2),  b_2 = H(-(w - a_1 b_1 - a_2 / 2)),   L = mean (H(p_t) + H(p_s))^gamma KL(p_t || p_s)

Source: Chen et al., "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", 2024, sections 3.2 and 3.3, as summaries tell it; the authors'
repository holds no code. Codes as above are the nearest levels (tested). Gradients: to the scales b_1 and b_2, to the weights straight through.
Pieces: `BinarySum(2, low=0)` ("dual_binary") of `limbeck.quantization`, `prepare_qat(learned=True)`, `DeviationAware`, `SoftTargets`.

The miniature: characters of Shakespeare. A block of width 64 is trained in float (per seed, shared by all arms); it is the teacher, and its copy
with 2-bit linear layers in groups of 32 the student, distilled for the same steps in every arm. Baseline: the uniform levels with a learned
step and plain KL, the same bits less one scale a group. Control: dual binaries with plain KL. Every arm chooses among four settings on
validation. Losses are those of packed weights.
Deviations: the training text in place of text that the teacher writes; groups of 32 in place of 64.
What came out: all trained arms end at 2.444 nats, so near to each other that dual binaries gain 0.0008 on uniform levels (surely, but little)
and the entropy weights nothing; 2-bit weights rounded after training, 2.477, are clearly worse.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from limbeck.beds.language import CHARACTERS, LanguageBed
from limbeck.experiments import Arm, Comparison, Miniature, Paper, Run
from limbeck.objectives import DeviationAware, SoftTargets
from limbeck.plan import apply
from limbeck.quantization import Quantize, QuantizedLinear, finish_qat, prepare_qat

BED = replace(CHARACTERS, length=64, blocks=200)
UNIFORM = {"name": "levels", "levels": [-1.0, 0.0, 1.0, 2.0]}


def distil(
    run: Run,
    dual: bool = True,
    gamma: float | None = 1.0,
    after: bool = False,
    rate: float = 2e-3,
    steps: int = 200,
    before: int = 300,
    bed: LanguageBed = BED,
) -> dict[str, float]:
    """The seed's float model at 2 bits, taught by itself. gamma: None for plain KL; after: rounded without training."""
    teacher = bed.trained_student(run, before)
    model: nn.Module = bed.student(run)
    model.load_state_dict(teacher.state_dict())
    grid, method = ("dual_binary", "greedy") if dual else (UNIFORM, "mse")
    plan = Quantize(grid=grid, method=method, weights=32, activations=None).plan(model)
    objective = SoftTargets(temperature=1.0) if gamma is None else DeviationAware(gamma)
    if after:
        model = apply(bed.fit(run, model, objective, teacher, steps=steps, learning_rate=rate), plan)
    else:
        prepare_qat(model, plan, learned=True)
        model = apply(*finish_qat(bed.fit(run, model, objective, teacher, steps=steps, learning_rate=rate)))
    found = bed.measure(run, model.eval())
    return {**found, "sparsity": sparsity(model)} if dual else found


def sparsity(model: nn.Module) -> float:
    """The share of zeros among the binaries of all dual-binary layers."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    zeros = sum(float((layer.specification.quantizer.grid.signs[layer.codes.long()] == 0).sum()) for layer in layers)
    return zeros / sum(2 * layer.codes.numel() for layer in layers)


RATES = {"rate": (1e-3, 2e-3, 4e-3, 8e-3)}

paper = Paper(
    id=256,
    title="DB-LLM: Accurate Dual-Binarization for Efficient LLMs",
    claim="At 2 bits, weights split into two learned binaries and distilled with entropy weights are better than learned uniform 2-bit weights "
    "with plain distillation, and the entropy weights add to it.",
    composition='finish_qat(Distil(prepare_qat(model, Quantize(grid="dual_binary", weights=32, activations=None).plan(model), learned=True), '
    "teacher, DeviationAware(gamma)))",
    metric="loss",
    better="lower",
    method=Arm(distil, tune={"gamma": (0.3, 1.0), "rate": (2e-3, 4e-3)}, about="dual binary, entropy weights"),
    baseline=Arm(distil, {"dual": False, "gamma": None}, tune=RATES, about="uniform 2 bits, learned step, KL"),
    control=Arm(distil, {"gamma": None}, tune=RATES, about="dual binary, KL"),
    others={
        "rounded": Arm(
            distil, {"dual": False, "gamma": None, "after": True}, about="uniform 2 bits, rounded without training"
        )
    },
    comparisons=(
        Comparison(text="dual binary with entropy weights against learned uniform 2 bits"),
        Comparison(against="control", text="entropy weights against plain KL"),
        Comparison(
            method="control", against="baseline", decisive=False, text="dual binary against uniform, both with KL"
        ),
        Comparison(against="rounded", text="trained against rounded"),
    ),
    miniature=Miniature(beds=(BED,), seeds=5),
    left_out="LLaMA; text written by the teacher; GPTQ and AWQ as baselines; bitwise kernels (the sparsity of the binaries is recorded).",
)
