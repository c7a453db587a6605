"""Faults in pieces that several rooms share."""

FAULTS = [
    ("log mass: the highest score not added", "objectives/logits/partitions.py", ".log() + highest.squeeze(-1) - ", ".log() - ", "tests/objectives/test_objective_partitions.py"),
    ("places: the teacher's size before the labels'", "objectives/adapters.py", "[:, 0] if like is None else like", "[:, 0]", "tests/objectives/test_places.py"),
    ("vocabulary: counts for shares", "pruning/vocabulary.py", "return counts / counts.sum().clamp_min(1)", "return counts", "tests/pruning/test_trim_vocabulary.py"),
    ("accumulation: labels only, whatever the terms read", "training/procedures.py", "labels=not every", "labels=True", "tests/training/test_training_trainer.py tests/training/test_training_masked_images.py tests/objectives/test_places.py"),
    ("batch-norm images: the mean left out", "datasets/batch_norm_images.py", "(found - mean).square() + ", "", "tests/datasets/test_batch_norm_images.py"),
]  # fmt: skip
