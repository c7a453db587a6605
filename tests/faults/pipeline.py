"""Faults in pipeline."""

FAULTS = [
    (
        "hooks stay",
        "signals.py",
        """for handle in self._handles:
            handle.remove()""",
        """for handle in self._handles:
            pass""",
        "tests/test_signals.py",
    ),
    (
        "manifest not checked",
        "artifact.py",
        """manifest.verified(folder, name, listing)
    past""",
        """pass
    past""",
        "tests/test_artifact.py tests/test_artifact_damage.py",
    ),
    (
        "drop has the wrong sign",
        "budget.py",
        'lost = reference.value - result.value if reference.better == "higher"',
        'lost = result.value - reference.value if reference.better == "higher"',
        "tests/test_budget.py",
    ),
    (
        "comparison: the sides swapped",
        "comparison.py",
        "for side in (row, reference)]",
        "for side in (reference, row)]",
        "tests/test_comparison.py",
    ),
    (
        "comparison: chooses on the test split",
        "comparison.py",
        'SPLIT = "validation"',
        'SPLIT = "test"',
        "tests/test_comparison.py",
    ),
]
