"""Faults in the 2:4 grid and in weights from residuals."""

GRID = "tests/quantization/test_two_of_four.py"
RESIDUALS = "tests/training/test_training_residuals.py"

FAULTS = [
    (
        "two of four: the two smallest are kept",
        "quantization/two_of_four.py",
        "return x.float().masked_fill(two_of_four(x.float().abs(), -1), 0)",
        "return x.float().masked_fill(~two_of_four(x.float().abs(), -1), 0)",
        GRID,
    ),
    (
        "two of four: places of what was given, not of the codes",
        "quantization/two_of_four.py",
        "stays = ~two_of_four(codes.abs(), -1)",
        "stays = ~two_of_four(codes, -1)",
        GRID,
    ),
    (
        "two of four: scales of what is dropped, too",
        "quantization/two_of_four.py",
        "return kept, own.parameters(kept)[0]",
        "return kept, own.parameters(x.flip(-1))[0] * 0 + own.parameters(x + 1)[0]",
        GRID,
    ),
    (
        "residuals: batches of different sizes count alike",
        "training/residuals.py",
        "sums[index] += float(loss.value) * size\n            count += size",
        "sums[index] += float(loss.value)\n            count += 1",
        RESIDUALS,
    ),
    (
        "residuals: small ones weigh most",
        "training/residuals.py",
        "len(places) * value / total",
        "len(places) * (1 - value / total)",
        RESIDUALS,
    ),
]
