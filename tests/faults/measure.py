"""Faults in measure."""

FAULTS = [
    (
        "exposure: rank among the worse",
        "measure/exposure.py",
        "(scores > scores[own])",
        "(scores < scores[own])",
        "tests/measure/test_exposure.py",
    ),
    (
        "layer similarity: not centred",
        "measure/alignment.py",
        "product - torch.outer(sums[a], sums[b]) / count",
        "product",
        "tests/objectives/test_layers.py",
    ),
    (
        "attention information: not normalized by its root",
        "measure/attention.py",
        ".clamp(min=0).sqrt()",
        ".clamp(min=0)",
        "tests/measure/test_attention_patterns.py",
    ),
    (
        "segmentation: the union counts the overlap twice",
        "measure/segmentation.py",
        "confusion.sum(0) + confusion.sum(1) - right",
        "confusion.sum(0) + confusion.sum(1)",
        "tests/measure/test_segmentation_metrics.py",
    ),
    (
        "segmentation: void places are measured",
        "measure/segmentation.py",
        "counted = labels != IGNORED",
        "counted = labels >= IGNORED",
        "tests/measure/test_segmentation_metrics.py",
    ),
    (
        "linear probe: tested features are not brought to scale",
        "measure/probe.py",
        "(x - centre) / scale, (other - centre) / scale",
        "(x - centre) / scale, other",
        "tests/measure/test_measure_probe.py",
    ),
    (
        "parameter distance: sum of absolute values",
        "measure/alignment.py",
        ".square().sum().item() for a, b in pairs)",
        ".abs().sum().item() for a, b in pairs)",
        "tests/measure/test_measure_probe.py",
    ),
]
