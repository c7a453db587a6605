"""Faults in experiments."""

FAULTS = [
    (
        "verdict: lower counted as higher",
        "experiments/statistics.py",
        'sign = 1.0 if better == "higher" else -1.0',
        "sign = 1.0",
        "tests/experiments",
    ),
    (
        "interval: n degrees of freedom",
        "experiments/statistics.py",
        "t.ppf(0.5 + level / 2, n - 1)",
        "t.ppf(0.5 + level / 2, n)",
        "tests/experiments",
    ),
    (
        "looks: error not split",
        "experiments/statistics.py",
        "return 1 - error / looks",
        "return 1 - error",
        "tests/experiments",
    ),
    (
        "margin on the wrong side",
        "experiments/statistics.py",
        "if difference.low > -margin:",
        "if difference.low > margin:",
        "tests/experiments",
    ),
    (
        "tuning on the test split",
        "experiments/runner.py",
        'seed, "validation", chosen)',
        'seed, "test", chosen)',
        "tests/experiments",
    ),
]
