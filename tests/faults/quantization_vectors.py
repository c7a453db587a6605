"""Faults in pyramids with Beta lengths and in the feedback between vectors."""

FEEDBACK = "tests/quantization/test_vector_feedback.py"

FAULTS = [
    (
        "vectors: errors pushed away",
        "quantization/vector_feedback.py",
        "target = torch.nn.functional.pad(original[:, own] - shift",
        "target = torch.nn.functional.pad(original[:, own] + shift",
        FEEDBACK + "::test_it_equals_the_naive_computation",
    ),
    (
        "vectors: the metric turned around",
        "quantization/vector_feedback.py",
        "= block @ block.t()",
        "= block.t() @ block",
        FEEDBACK + "::test_it_equals_the_naive_computation",
    ),
    (
        "vectors: codes in the order of rounding",
        "quantization/vector_feedback.py",
        "codes[v], values = put(",
        "codes[low // entries], values = put(",
        FEEDBACK + "::test_it_equals_the_naive_computation",
    ),
    (
        "vectors: every group of a convolution with the first scales",
        "quantization/vector_feedback.py",
        "scales.chunk(len(hessian), dim=1)",
        "[scales[:, : len(weight) // len(hessian)]] * len(hessian)",
        FEEDBACK + "::test_each_group_of_a_convolution_has_its_own_hessian",
    ),
    (
        "pyramid: levels at the edges of their cells",
        "quantization/pyramids.py",
        "dtype=torch.float64) + 0.5) / 2**bits",
        "dtype=torch.float64) + 0.0) / 2**bits",
        FEEDBACK + "::test_lengths_lie_at_quantiles_of_a_beta_distribution",
    ),
    (
        "pyramid: the scale of Beta lengths is the largest",
        "quantization/pyramids.py",
        '(lengths.norm(dim=1) if self.gains == "beta" else lengths.amax(1))',
        "lengths.amax(1)",
        FEEDBACK + "::test_the_scale_of_beta_lengths_is_the_norm",
    ),
    (
        "pyramid: lengths fitted without the metric",
        "quantization/pyramids.py",
        "turned = unit.to(metric.dtype) @ metric",
        "turned = unit.to(metric.dtype)",
        FEEDBACK + "::test_it_equals_the_naive_computation",
    ),
]
