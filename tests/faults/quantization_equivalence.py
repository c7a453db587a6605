"""Faults in transforms that must leave a model's output as it is."""

TESTS = "tests/quantization/test_equivalence.py"
FORMULAS = "tests/quantization/test_equivalence_formulas.py"
FOLDS, ROTATE = "quantization/equivalence/folds.py", "quantization/equivalence/rotate.py"

FAULTS = [
    ("fold: readers divided", FOLDS, "weight.double() * _along(fold.to_readers(scale), weight)", "weight.double() / _along(fold.to_readers(scale), weight)", TESTS),
    ("fold: shift sign", FOLDS, "(source.bias[part].double() - shift)", "(source.bias[part].double() + shift)", TESTS + "::test_folds_with_a_shift_keep_the_output_too"),
    ("fold: source bias kept", FOLDS, "(source.bias[part].double() / scale)", "(source.bias[part].double() / 1)", TESTS),
    ("fold: grouped queries in the other order", FOLDS, "x.unflatten(0, (self.groups, 1, self.width))", "x.unflatten(0, (1, self.groups * self.width, 1))", TESTS),
    ("smoothing: exponents swapped", "quantization/equivalence/smooth.py", "clamp_min(SMALLEST).pow(1 - alpha)", "clamp_min(SMALLEST).pow(alpha)", FORMULAS + "::test_smoothing_scale_is_the_formula"),
    ("equalization: ratio upside down", "quantization/equivalence/smooth.py", "(first / second).sqrt()", "(second / first).sqrt()", TESTS),
    ("AWQ: error without unscaling", "quantization/equivalence/awq.py", ".double() / scale - weight.double()", ".double() - weight.double()", FORMULAS + "::test_awq_against_a_naive_search"),
    ("AWQ: gram of the wrong side", "quantization/equivalence/awq.py", "((change @ gram) * change).sum(1)", "((change @ gram) * change).sum(0)", FORMULAS + "::test_clip_limits_against_a_naive_search"),
    ("clip: largest error kept", "quantization/equivalence/awq.py", "torch.where(error < least, limit, best)", "torch.where(error > least, limit, best)", FORMULAS + "::test_clip_limits_against_a_naive_search"),
    ("rotation: mean turned too", "quantization/equivalence/hadamard.py", "signs[0] = 1.0", "signs[0] = -1.0", FORMULAS + "::test_rotations_are_orthogonal_and_keep_the_mean_where_asked"),
    ("rotation: reader by the transpose", ROTATE, "_set(columns(reader), q.T @", "_set(columns(reader), q @", TESTS),
    ("rotation: norm's bias dropped", ROTATE, "reader.bias.double() + bias @ weight", "reader.bias.double()", TESTS),
    ("rotation: heads' output turned back", ROTATE, 'torch.einsum("gij,gri...->grj...", turns, heads)', 'torch.einsum("gji,gri...->grj...", turns, heads)', TESTS),
    ("layout: a tied head is scaled", "quantization/equivalence/layouts.py", "        if others:\n            left |=", "        if False:\n            left |=", TESTS),
    ("allocation: budget of the solver dropped", "search/allocate.py", "LinearConstraint(cost / unit, -np.inf, budget / unit)", "LinearConstraint(cost / unit, -np.inf, np.inf)", "tests/search/test_allocate.py::test_the_solver_knows_the_budget"),
    ("allocation: frontier counts the rest twice", "search/allocate.py", "total[order] + later <= budget", "total[order] + 2 * later <= budget", "tests/search/test_allocate.py"),
    ("Hutchinson: signs that are never negative", "search/sensitivity.py", "generator=draws) * 2.0 - 1.0", "generator=draws) * 1.0", "tests/search/test_sensitivity.py"),
    ("output KL the other way round", "search/sensitivity.py", "kl_divergence(expected, log_probabilities(first_tensor(call(model, batch))))", "kl_divergence(log_probabilities(first_tensor(call(model, batch))), expected)", "tests/search/test_sensitivity.py"),
    ("mixed precision: bits for bytes", "quantization/mixed_precision.py", "made.weight.numel() * width / 8", "made.weight.numel() * width", "tests/quantization/test_mixed_precision.py"),
    ("mixed precision: Hessian without the rounding error", "quantization/mixed_precision.py", "float((value - own[path]).double().square().sum())", "float(own[path].double().square().sum())", "tests/quantization/test_mixed_precision.py"),
    ("logarithmic codes: floor of the exponent", "quantization/activations.py", "return torch.round(exponent).clamp(0, last)", "return torch.floor(exponent).clamp(0, last)", "tests/quantization/test_activations.py"),
    ("logarithmic values: 0 forgotten", "quantization/activations.py", "if zero else values", "if False else values", "tests/quantization/test_activations.py"),
    ("reparameterization: shift sign", "quantization/equivalence/reparameterize.py", "shifts[fold.source] = -scale * (zero - middle)", "shifts[fold.source] = scale * (zero - middle)", "tests/quantization/test_activations.py"),
    ("reparameterization: zero points of another range", "quantization/equivalence/reparameterize.py", "torch.round(-low / scale)", "torch.round(low / scale)", "tests/quantization/test_activations.py"),
    ("RepQuant: calibrated ranges kept", "quantization/equivalence/reparameterize.py", 'folded.decisions["ranges"].get(path, entry["input"])', 'entry["input"]', "tests/quantization/test_activations.py"),
    ("outlier score over the other axis", "quantization/scored_bits.py", "size.amax(0)[mean > 0]", "size.amax(1)[mean > 0]", "tests/quantization/test_scored_bits.py"),
    ("scored bits: lowest first", "quantization/scored_bits.py", "tuple(-s for s in scores[path])", "tuple(s for s in scores[path])", "tests/quantization/test_scored_bits.py"),
    ("importance without the residual", "quantization/scored_bits.py", "F.cosine_similarity(x, x + branch, dim=-1)", "F.cosine_similarity(x, branch, dim=-1)", "tests/quantization/test_scored_bits.py"),
    ("batch-norm images: variance for deviation", "datasets/batch_norm_images.py", "(norm.running_var + norm.eps).sqrt()", "(norm.running_var + norm.eps)", "tests/datasets/test_batch_norm_images.py"),
]  # fmt: skip
