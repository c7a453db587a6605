"""Every fault to plant still has its place, and tests that should notice."""

from pathlib import Path

import plant_faults

ROOT = Path(__file__).parent.parent


def test_every_fault_has_its_place_and_its_tests():
    lost = []
    for name, file, text, becomes, tests in plant_faults.every():
        source = ROOT / "limbeck" / file
        if not source.exists() or source.read_text().count(text) != 1 or text == becomes:
            lost.append(f"{name}: its text does not stand once in {file}")
        for test in tests.split():
            path, _, function = test.partition("::")
            if not (ROOT / path).exists() or (
                function and f"def {function.partition('[')[0]}(" not in (ROOT / path).read_text()
            ):
                lost.append(f"{name}: there is no {test}")
    assert not lost, "\n".join(lost)
