"""Faults in ways of rounding."""

GPTQ = "tests/quantization/test_gptq.py"
STREAM = "tests/quantization/test_streaming.py"
ADAPTIVE = "tests/quantization/test_adaptive_rounding.py"
DECOUPLED = "tests/quantization/test_decoupled.py"
CODES = "tests/quantization/test_code_tuning.py"

FAULTS = [
    (
        "rounding: GPTQ's errors pushed away",
        "quantization/gptq.py",
        "target[j] -= coupling",
        "target[j] += coupling",
        GPTQ,
    ),
    (
        "rounding: GPTQ's factor not reversed",
        "quantization/gptq.py",
        "return factor.flip(0, 1)",
        "return factor.t()",
        GPTQ,
    ),
    (
        "rounding: GPTQ in rising order",
        "quantization/gptq.py",
        "argsort(descending=True, stable=True)",
        "argsort(descending=False, stable=True)",
        GPTQ,
    ),
    (
        "rounding: GPTQ's columns not put back",
        "quantization/gptq.py",
        "    back[perm] = codes",
        "    back[:] = codes",
        GPTQ,
    ),
    (
        "rounding: groups' scales from the weights as they were",
        "quantization/gptq.py",
        "moved = (original[low:high] + shift)",
        "moved = original[low:high]",
        GPTQ,
    ),
    (
        "rounding: Hessian without its 2",
        "quantization/hessian.py",
        "return 2.0 / self.positions",
        "return 1.0 / self.positions",
        STREAM + "::test_hessians_are_those_of_the_output_error_and_leave_hidden_positions_out",
    ),
    (
        "rounding: hidden positions counted",
        "quantization/hessian.py",
        "        x = x[mask]\n",
        "        x = x\n",
        STREAM,
    ),
    (
        "rounding: a convolution's groups mixed up",
        "quantization/hessian.py",
        "patches.unflatten(1, (module.groups, -1))",
        "patches.unflatten(1, (-1, module.groups)).transpose(1, 2)",
        STREAM,
    ),
    (
        "rounding: blocks see float inputs",
        "quantization/streaming.py",
        "chain.final = _advance(block, calls, chain.hidden, last)",
        "chain.final = _advance(fetch(member), calls, chain.hidden, last)",
        STREAM,
    ),
    (
        "rounding: penalty of undecided weights upside down",
        "quantization/adaptive_rounding.py",
        "return (1 - (2 * rectified_sigmoid(v) - 1)",
        "return ((2 * rectified_sigmoid(v) - 1)",
        ADAPTIVE,
    ),
    (
        "rounding: HQQ's shrinkage with another power",
        "quantization/half_quadratic.py",
        ".pow(p - 1)",
        ".pow(p)",
        ADAPTIVE,
    ),
    (
        "rounding: HQQ's offset with the wrong sign",
        "quantization/half_quadratic.py",
        "rows(residue - codes *",
        "rows(residue + codes *",
        ADAPTIVE,
    ),
    (
        "rounding: decoupleQ's scale and offset not coupled",
        "quantization/decoupled.py",
        "qo = product.unflatten(2, (groups, size)).sum(3)",
        "qo = 0 * product.unflatten(2, (groups, size)).sum(3)",
        DECOUPLED,
    ),
    (
        "rounding: decoupleQ keeps what is worse",
        "quantization/decoupled.py",
        "better = found < least",
        "better = found > least",
        DECOUPLED,
    ),
    (
        "rounding: decoupleQ's training is kept whatever it did",
        "quantization/decoupled.py",
        "if not block_error(segment, targets, weights(forms) | leaves) < before:",
        "if False:",
        DECOUPLED,
    ),
    (
        "rounding: decoupleQ trains the stored scales themselves",
        "quantization/decoupled.py",
        "scale, shape = packed.scale.float().clone()",
        "scale, shape = packed.scale.float()",
        DECOUPLED,
    ),
    (
        "rounding: codes of the groups that moved least",
        "quantization/code_tuning.py",
        "norms.flatten().topk(",
        "(-norms.flatten()).topk(",
        CODES,
    ),
    (
        "rounding: the second moment not corrected",
        "quantization/code_tuning.py",
        "(self.moment / (1 - DECAY ** self.moves.item()))",
        "(self.moment / 1.0)",
        CODES,
    ),
]
