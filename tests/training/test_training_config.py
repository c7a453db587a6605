"""TrainingConfig: what it accepts, refuses, counts and stores."""

import json

import pytest

from limbeck.errors import UsageError
from limbeck.training import TrainingConfig

WRONG = [
    ({"epochs": None}, "exactly one"),
    ({"steps": 3}, "exactly one"),
    ({"epochs": 0}, "epochs=0"),
    ({"epochs": float("inf")}, "epochs=inf"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": None}, "batch_size=None"),
    ({"batch_size": True}, "batch_size=True"),
    ({"gradient_accumulation": 9, "batch_size": 8}, "gradient_accumulation=9"),
    ({"optimizer": "adam"}, "adamw"),
    ({"learning_rate": "1e-3"}, "write 0.001"),
    ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    ({"weight_decay": -1e-4}, "weight_decay"),
    ({"momentum": 1.0}, "momentum=1.0"),
    ({"schedule": "cosin"}, "'cosine'"),
    ({"warmup": 1}, "fraction"),
    ({"milestones": (0.7, 0.5)}, "rising"),
    ({"milestones": 0.5}, "list"),
    ({"milestones": (100, 150)}, "between 0 and 1"),
    ({"decay": 0.0}, "decay=0.0"),
    ({"gradient_clipping": 0.0}, "gradient_clipping=0.0"),
    ({"precision": "fp16"}, "bf16"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ({"mixup": -0.1}, "Beta"),
    ({"evaluate_every": 0}, "evaluate_every=0"),
    ({"checkpoint_every": 1.5}, "checkpoint_every=1.5"),
    ({"average": 1.0}, "average=1.0"),
    ({"augment": 1}, "true or false"),
    ({"divergence": "explode"}, "warn"),
    ({"limit": 0}, "limit=0"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_refused_with_the_field_named(change, words):
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        TrainingConfig(**{"epochs": 1, **change})


def test_steps_of_an_epoch_leave_the_small_batch_out():
    config = TrainingConfig(epochs=2.5, batch_size=10)
    assert config.steps_per_epoch(39) == 3
    assert config.total_steps(39) == 8  # round(2.5 * 3)
    assert TrainingConfig(epochs=3, batch_size=10, limit=25).total_steps(39) == 6
    assert TrainingConfig(epochs=3, batch_size=100).total_steps(39) == 3
    assert TrainingConfig(steps=7, batch_size=10).total_steps(39) == 7


def test_json_round_trip():
    config = TrainingConfig(steps=5, optimizer="sgd", milestones=[0.25], average=0.99)
    stored = json.loads(json.dumps(config.to_json()))
    assert TrainingConfig.from_json(stored) == config
    with pytest.raises(UsageError, match="'learning_rate'"):
        TrainingConfig.from_json({"steps": 5, "learning_rat": 0.1})


def test_identity_leaves_out_what_only_watches():
    first = TrainingConfig(steps=5, checkpoint_every=2, log_every=1)
    assert first.identity() == TrainingConfig(steps=5).identity()
    assert first.identity() != TrainingConfig(steps=5, learning_rate=0.1).identity()
