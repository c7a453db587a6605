"""Faults in transforms."""

FAULTS = [
    (
        "trimmed vocabulary: rows in the order they were named",
        "pruning/vocabulary.py",
        "kept = sorted({*used, *self.always})",
        "kept = list(dict.fromkeys([*used, *self.always]))",
        "tests/pruning/test_trim_vocabulary.py",
    ),
    (
        "trimmed vocabulary: padding counts",
        "pruning/vocabulary.py",
        "seen = ids.flatten() if mask is None else ids[mask.bool()]",
        "seen = ids.flatten()",
        "tests/pruning/test_trim_vocabulary.py",
    ),
    (
        "zero point sign",
        "quantization/grids.py",
        "zero = (grid.low - torch.round(low / scale.float()))",
        "zero = (grid.low + torch.round(low / scale.float()))",
        "tests/quantization/test_grids.py",
    ),
    (
        "scales of the wrong axis",
        "quantization/granularity.py",
        "x.movedim(granularity.axis, 0).reshape(x.shape[granularity.axis], -1)",
        "x.movedim(granularity.axis, -1).reshape(x.shape[granularity.axis], -1)",
        "tests/quantization/test_grids.py",
    ),
    (
        "batch-norm mean not folded",
        "quantization/folding.py",
        "shifted = (start - norm.running_mean.double()) * gain",
        "shifted = start * gain",
        "tests/quantization/test_folding.py",
    ),
    (
        "Taylor without its absolute value",
        "pruning/importance.py",
        "(parameter.detach().float() * gradient.float()).abs() / len(batches)",
        "(parameter.detach().float() * gradient.float()) / len(batches)",
        "tests/pruning",
    ),
    (
        "magnitude without the root",
        "pruning/importance.py",
        "return total if self.p == 1 else total.sqrt()",
        "return total",
        "tests/pruning",
    ),
    (
        "SVD keeps the smallest",
        "factorization/low_rank.py",
        "basis = leading(weight)[0][:, :rank]",
        "basis = leading(weight)[0][:, -rank:]",
        "tests/factorization",
    ),
    (
        "slices the other axis",
        "pruning/slicing.py",
        """axes = {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}}
    elif is_conv1d""",
        """axes = {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}}
    elif is_conv1d""",
        "tests/pruning",
    ),
    (
        "aligning: the old rows scaled",
        "conversion/classifier.py",
        'values[data["old"] :] *= data["gamma"]',
        'values[: data["old"]] *= data["gamma"]',
        "tests/conversion/test_classifier.py",
    ),
    (
        "aligning: gamma upside down",
        "conversion/classifier.py",
        "min(before / after, largest)",
        "min(after / before, largest)",
        "tests/conversion/test_classifier.py",
    ),
    (
        "blockwise: the student's own inputs",
        "conversion/blockwise.py",
        "args, kwargs, target = asked[path]",
        "args, kwargs, target = ((asked[path][0][0] * 0, *asked[path][0][1:]), *asked[path][1:])",
        "tests/conversion",
    ),
]
