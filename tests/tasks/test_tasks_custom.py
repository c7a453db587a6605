import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from limbeck.errors import DataError, UsageError
from limbeck.tasks import CustomTask, Task

X = torch.arange(60.0).reshape(20, 3)
Y = torch.arange(20) % 4


class Rows(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"pixel_values": X[index], "labels": Y[index].item()}


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], 0


KINDS = {
    "pair of tensors": lambda: (X, Y),
    "pair of arrays": lambda: (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
    "columns": lambda: {"pixel_values": X, "labels": Y},
    "torch dataset of tuples": lambda: TensorDataset(X, Y),
    "torch dataset of mappings": Rows,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
    "hub dataset": lambda: datasets.Dataset.from_dict(
        {"pixel_values": X.tolist(), "labels": Y.tolist(), "note": ["n"] * 20}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_batches(kind):
    task = Task.from_data({"train": KINDS[kind](), "validation": (X, Y), "test": (X, Y)}, classes=4)
    assert isinstance(task, CustomTask) and task.size("train") == 20
    for seed in (None, 3):
        for batch in task.batches("train", 8, seed=seed):
            assert set(batch) == {"pixel_values", "labels", "index"}
            assert batch["pixel_values"].dtype == torch.float32 and batch["labels"].dtype == torch.int64
            assert torch.equal(batch["pixel_values"], X[batch["index"]])
            assert torch.equal(batch["labels"], Y[batch["index"]])
    skipped = list(task.batches("train", 8, seed=3))[1:]
    for left, right in zip(skipped, task.batches("train", 8, seed=3, skip=1), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_the_digest_is_of_the_numbers_not_of_the_kind():
    made = {CustomTask({"train": kind(), "test": (X, Y)}, classes=4).digest() for kind in KINDS.values()}
    assert len(made) == 1
    others = [
        CustomTask({"train": (X + 1, Y), "test": (X, Y)}, classes=4),
        CustomTask({"train": (X, Y), "test": (X, Y)}, classes=5),
        CustomTask({"train": (X, Y), "test": (X, Y)}, classes=4, version="1"),
    ]
    assert len(made | {task.digest() for task in others}) == 4


def test_validation_is_carved_from_train():
    task = CustomTask({"train": (X, Y), "test": (X, Y)}, holdout=0.25)
    rest, held = (torch.cat([b["pixel_values"] for b in task.batches(s, 7)]) for s in ("train", "validation"))
    assert len(rest) == 15 and len(held) == 5
    assert torch.equal(torch.cat([rest, held])[:, 0].sort().values, X[:, 0])


def test_a_collate_function_of_a_loader_is_used():
    def collate(examples):
        return {"words": torch.stack([x for x, _ in examples]), "target": torch.tensor([int(y) for _, y in examples])}

    loader = DataLoader(TensorDataset(X, Y), collate_fn=collate)
    task = CustomTask({"train": loader, "test": loader}, inputs=["words"], labels="target")
    batch = next(task.batches("test", 4))
    assert torch.equal(batch["words"], X[:4]) and torch.equal(batch["labels"], Y[:4])
    assert set(task.example(2)) == {"words"}


def test_several_inputs():
    data = TensorDataset(X, X + 1, Y)
    task = CustomTask({"train": data, "test": data}, inputs=["left", "right"])
    assert list(task.example(2)) == ["left", "right"] and torch.equal(task.example(2)["right"], X[:2] + 1)


def test_bytes_become_numbers_in_0_to_1():
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    task = CustomTask({"train": (images, Y[:6]), "test": (images, Y[:6])}, holdout=0.5)
    assert torch.equal(next(task.batches("test", 6))["pixel_values"], images.float() / 255)


def test_metric_and_loss():
    weights = torch.tensor([[1.0], [0.5], [0.0]])
    target = X @ weights

    def r2(predicted, wanted):
        return 1 - ((predicted - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()

    task = CustomTask(
        {"train": (X, target), "test": (X, target)}, metric=r2, metric_name="r2", loss=torch.nn.functional.mse_loss
    )
    assert (task.metric, task.better, task.classes) == ("r2", "higher", None)
    made = task.evaluate(lambda b: b["pixel_values"] @ weights + 1, "test", batch_size=7)
    assert made["loss"] == pytest.approx(1)
    assert made["r2"] == pytest.approx(1 - 20 / ((target - target.mean()) ** 2).sum().item())
    with pytest.raises(UsageError, match="need a loss"):
        CustomTask({"train": (X, target[:, 0]), "test": (X, target[:, 0])}).evaluate(
            lambda b: b["pixel_values"], "test"
        )


def test_default_metric_ignores_positions_that_do_not_count():
    labels = torch.tensor([0, 1, -100, 2])
    data = (torch.eye(4)[[0, 0, 1, 2]], labels)
    task = CustomTask({"train": data, "test": data}, holdout=0.3, classes=4)
    assert task.evaluate(lambda b: b["pixel_values"], "test")["accuracy"] == pytest.approx(2 / 3)


def test_augmentation_draws_from_the_generator():
    def noise(batch, draws):
        return {
            **batch,
            "pixel_values": batch["pixel_values"] + torch.rand(batch["pixel_values"].shape, generator=draws),
        }

    task = CustomTask({"train": (X, Y), "test": (X, Y)}, augment=noise, augmentation="noise 1")
    whole = list(task.batches("train", 4, seed=0, augment=True))
    for left, right in zip(whole[2:], task.batches("train", 4, seed=0, augment=True, skip=2), strict=True):
        assert torch.equal(left["pixel_values"], right["pixel_values"])
    assert task.augmentation == "noise 1"
    with pytest.raises(UsageError, match="name your augmentation"):
        CustomTask({"train": (X, Y), "test": (X, Y)}, augment=noise)


@pytest.mark.parametrize(
    "splits, message",
    [
        ({"train": (X, Y)}, "splits must be train, test"),
        ({"train": (X, Y), "test": (X, Y), "dev": (X, Y)}, "splits must be"),
        ({"train": (X, Y), "test": (X[:0], Y[:0])}, "split 'test' is empty"),
        ({"train": (X, Y[:5]), "test": (X, Y)}, "split 'train': the columns must be of one length"),
        ({"train": Endless(), "test": (X, Y)}, "split 'train' is a Endless; it must be"),
        ({"train": {"image": X, "labels": Y}, "test": (X, Y)}, "no column 'pixel_values', only"),
        ({"train": {"pixel_values": X, "target": Y}, "test": (X, Y)}, "no column 'labels'"),
        ({"train": {"pixel_values": ["a"], "labels": [0]}, "test": (X, Y)}, "holds no numbers"),
        ({"train": TensorDataset(X, X, Y), "test": (X, Y)}, "a tuple of pixel_values and the label"),
    ],
)
def test_bad_data(splits, message):
    with pytest.raises(DataError, match=message):
        CustomTask(splits)


def test_label_outside_the_classes():
    task = CustomTask({"train": (X, Y), "test": (X, Y + 2)}, classes=["a", "b", "c", "d"])
    assert task.classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="split 'test' has the label 4, outside the 4 classes"):
        list(task.batches("test", 20))
