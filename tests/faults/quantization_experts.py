"""Faults in bits of experts, least numbers in an allocation, and experts left out while a mixture runs."""

BITS = "tests/quantization/test_expert_bits.py"
FEWER = "tests/inference/test_fewer_experts.py"
ALLOCATE = "tests/search/test_allocate.py"

FAULTS = [
    (
        "experts: the change of the output without the routing weight",
        "quantization/expert_bits.py",
        "change = share * (rounded",
        "change = (rounded",
        BITS,
    ),
    (
        "experts: routing of the weights after they are normalized",
        "quantization/expert_bits.py",
        "probability.flatten().double().cpu()",
        "weight.flatten().double().cpu()",
        BITS,
    ),
    (
        "experts: errors not squared",
        "quantization/expert_bits.py",
        "used * error**self.error",
        "used * error",
        BITS,
    ),
    (
        "experts: at least becomes at most",
        "search/allocate.py",
        "for own in names]), count, np.inf)",
        "for own in names]), 0, count)",
        ALLOCATE,
    ),
    (
        "experts: attention given in the place of received",
        "inference/experts.py",
        "attention.float().mean(1).sum(1) /",
        "attention.float().mean(1).sum(2) /",
        FEWER,
    ),
    (
        "experts: positions counted from the wrong end",
        "inference/experts.py",
        "torch.arange(length, 0, -1, device",
        "torch.arange(1, length + 1, device",
        FEWER,
    ),
    (
        "experts: the important ones lose theirs",
        "inference/experts.py",
        "dropped = dropped & ~self._protected(path, x)",
        "dropped = dropped & self._protected(path, x)",
        FEWER,
    ),
    (
        "experts: the one that is left keeps its weight",
        "inference/experts.py",
        "    alone[:, 0] = 1.0",
        "    alone[:, 0] = weight[:, 0]",
        FEWER,
    ),
    (
        "experts: those of weight 0 are computed",
        "models/mixture_of_experts.py",
        "((chosen == index) & (weight > 0))",
        "(chosen == index)",
        FEWER,
    ),
]
