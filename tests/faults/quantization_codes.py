"""Faults in power exponents, double rounding and jointly learned codebooks."""

POWERS = "tests/quantization/test_power_search.py"
SWITCHING = "tests/training/test_training_bit_switching.py"
JOINT = "tests/quantization/test_joint_codebooks.py"

FAULTS = [
    (
        "powers: the derivative in the exponent without its sign",
        "quantization/power_grid.py",
        "return levels, -levels *",
        "return levels, levels *",
        POWERS + "::test_levels_and_their_slopes",
    ),
    (
        "powers: the exponent of the worst error",
        "quantization/power_grid.py",
        "torch.where(error < least, value, exponent)",
        "torch.where(error > 0, value, exponent)",
        POWERS + "::test_each_row_has_the_exponent_that_trying_them_all_finds",
    ),
    (
        "powers: up or down from one code too low",
        "quantization/power_search.py",
        "low.maximum(floor + 1 - self.reach)",
        "low.maximum(floor - self.reach)",
        POWERS + "::test_a_position_may_travel_over_all_codes_or_within_reach",
    ),
    (
        "powers: rows that lose keep what was learned",
        "quantization/power_search.py",
        "keep, grid = errors[0] <= errors[1]",
        "keep, grid = errors[0] >= errors[1]",
        POWERS + "::test_learning_pays_and_is_never_worse",
    ),
    (
        "switching: bits cut off in the place of rounding",
        "quantization/bit_switching.py",
        "(highest - width)\n    return straight_through(ratio, ratio.round())",
        "(highest - width)\n    return straight_through(ratio, ratio.floor())",
        SWITCHING + "::test_every_width_is_the_stored_one_rounded_again",
    ),
    (
        "switching: one normalization for all widths",
        "quantization/bit_switching.py",
        "return self.norms[str(self.width)](x)",
        'return self.norms["8"](x)',
        SWITCHING + "::test_widths_take_turns_and_only_their_norms_and_scales_move",
    ),
    (
        "switching: rates of scales that grow with their gradients",
        "quantization/switched_training.py",
        "self.width) * (1 - mean)",
        "self.width) * (1 + mean)",
        SWITCHING + "::test_the_scales_rate_follows_from_their_gradients",
    ),
    (
        "switching: sensitive layers draw all widths alike",
        "quantization/switched_training.py",
        "alike if trace < mean else by_width",
        "by_width if trace < mean else alike",
        SWITCHING + "::test_rates_and_chances_of_widths",
    ),
    (
        "codebooks: proximal gradients that grow with the distance",
        "quantization/joint_codebooks.py",
        "/ (1 + apart.abs() / delta",
        "* (1 + apart.abs() / delta",
        JOINT + "::test_both_gradients_follow_their_formulas",
    ),
    (
        "codebooks: shares that mix to the mirrored weight",
        "quantization/joint_codebooks.py",
        "(1 - part).unsqueeze(2)",
        "part.unsqueeze(2)",
        JOINT + "::test_shares_begin_where_they_mix_to_the_weight",
    ),
    (
        "codebooks: runs of rows repeated in turn",
        "quantization/granularity.py",
        "parameter.repeat_interleave(granularity.size)[: shape[0]]",
        "parameter.repeat(granularity.size)[: shape[0]]",
        JOINT + "::test_runs_of_rows_share_and_come_back",
    ),
    (
        "codebooks: readers keep the old order of neurons",
        "quantization/neuron_order.py",
        "                if old >= 0:",
        '                if old >= 0 and member.axis == "out":',
        JOINT + "::test_another_order_of_neurons_computes_the_same_and_sizes_rise",
    ),
]
