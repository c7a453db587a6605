"""Faults in pieces that several rooms share."""

FAULTS = [
    ("log mass: the highest score not added", "objectives/logits/partitions.py", ".log() + highest.squeeze(-1) - ", ".log() - ", "tests/objectives/test_objective_partitions.py"),
    ("places: the teacher's size before the labels'", "objectives/adapters.py", "[:, 0] if like is None else like", "[:, 0]", "tests/objectives/test_places.py"),
    ("vocabulary: counts for shares", "pruning/vocabulary.py", "return counts / counts.sum().clamp_min(1)", "return counts", "tests/pruning/test_trim_vocabulary.py"),
    ("accumulation: labels only, whatever the terms read", "training/procedures.py", "labels=not every", "labels=True", "tests/training/test_training_trainer.py tests/training/test_training_masked_images.py tests/objectives/test_places.py"),
    ("batch-norm images: the mean left out", "datasets/batch_norm_images.py", "(found - mean).square() + ", "", "tests/datasets/test_batch_norm_images.py"),
    ("experts: transposed weights kept", "conversion/experts.py", "weight = weight.t() if transposed else weight", "weight = weight", "tests/conversion/test_experts.py"),
    ("experts: weights of the first choice for all", "conversion/experts.py", "top_k_weights[row, place, None]", "top_k_weights[row, 0 * place, None]", "tests/conversion/test_experts.py"),
]  # fmt: skip
