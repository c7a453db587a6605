"""Semantic segmentation: masks become labels, move with their images, and are measured place by place."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.artifact import load
from limbeck.datasets.load import data_folder, find_folder
from limbeck.errors import DataError, UsageError
from limbeck.models import unet
from limbeck.pipeline import run_recipe
from limbeck.recipe import Recipe
from limbeck.tasks import SemanticSegmentation

needs_camvid = pytest.mark.skipif(
    find_folder("camvid") is None,
    reason=f"data set 'camvid' is not in {data_folder()} (set LIMBECK_DATA, or: make data)",
)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def streets(folder, counts=(("train", 12), ("validation", 4), ("test", 5)), void=255, height=8, width=12, first=0):
    """Images whose red tells the class, in bands 0, 1 and 2 of changing height, and a column of void."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    draw = np.random.default_rng(0)
    for split, count in counts:
        images, masks = [], []
        for _ in range(count):
            rows = np.sort(draw.integers(1, height - 1, 2))
            mask = np.searchsorted(rows, np.arange(height), side="right")[:, None].repeat(width, 1).astype(np.uint8)
            image = np.stack([mask * 100, draw.integers(0, 90, mask.shape), 0 * mask], -1).astype(np.uint8)
            mask = mask + first
            mask[:, 0] = void
            images.append(png(image)), masks.append(png(mask.astype(np.uint8)))
        rows = datasets.Dataset.from_dict({"image": images, "mask": masks}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "streets"


def test_batches_have_a_label_for_every_place(folder):
    task = SemanticSegmentation(streets(folder), mean=(0, 0, 0), std=(1, 1, 1))
    assert task.classes == ("0", "1", "2") and [task.size(s) for s in task.splits()] == [12, 4, 5]
    batch = next(task.batches("train", 5))
    assert batch["pixel_values"].shape == (5, 3, 8, 12) and batch["labels"].shape == (5, 8, 12)
    assert batch["labels"].dtype == torch.long and (batch["labels"][:, :, 0] == -100).all()
    seen = batch["labels"] != -100
    assert torch.equal((batch["pixel_values"][:, 0] * 2.55).round().long()[seen], batch["labels"][seen])
    assert set(task.example(2)) == {"pixel_values"}


def test_void_may_be_any_number_and_the_others_keep_their_order(folder):
    first = SemanticSegmentation(streets(folder))
    again = SemanticSegmentation(streets(folder, void=0, first=1), ignored=(0,), classes=("sky", "house", "road"))
    assert again.classes == ("sky", "house", "road")
    assert torch.equal(next(first.batches("test", 5))["labels"], next(again.batches("test", 5))["labels"])
    with pytest.raises(DataError, match="number 255, which is none of the 3 classes"):
        SemanticSegmentation(streets(folder), classes=("a", "b", "c"), ignored=(7,))
    with pytest.raises(UsageError, match="two classes"):
        SemanticSegmentation(streets(folder), classes=("a",))


def test_a_mask_moves_with_its_image_and_what_comes_in_is_void(folder):
    task = SemanticSegmentation(streets(folder), mean=(0, 0, 0), std=(1, 1, 1), crop=3)
    plain, moved = (next(task.batches("train", 12, seed=1, augment=on)) for on in (False, True))
    assert not torch.equal(plain["labels"], moved["labels"])
    red, labels = (moved["pixel_values"][:, 0] * 2.55).round().long(), moved["labels"]
    assert torch.equal(red[labels != -100], labels[labels != -100])
    assert (labels == -100).sum() > (plain["labels"] == -100).sum()
    mirrored = [bool((row[:, -1] == -100).all()) for row in SemanticSegmentation(streets(folder))._examples(
        "train", torch.arange(12), torch.Generator().manual_seed(0))["labels"]]  # fmt: skip
    assert 0 < sum(mirrored) < 12


def test_a_model_that_knows_is_perfect_and_coarse_answers_are_resized(folder):
    task = SemanticSegmentation(streets(folder), size=(16, 12), mean=(0, 0, 0), std=(1, 1, 1))

    def knows(batch):
        red = (batch["pixel_values"][:, :1] * 2.55).expand(-1, 3, -1, -1)
        return -100 * (red - torch.arange(3.0).reshape(1, 3, 1, 1)).abs()

    inside = task.evaluate(knows, "test")
    assert inside["accuracy"] > 0.85 and next(iter(inside)) == task.metric == "mean_iou"
    whole = SemanticSegmentation(streets(folder), mean=(0, 0, 0), std=(1, 1, 1))
    assert whole.evaluate(knows, "test")["mean_iou"] == 1 and whole.evaluate(knows, "test")["loss"] < 1e-6
    small = whole.evaluate(lambda batch: torch.nn.functional.avg_pool2d(knows(batch), 4), "test")
    assert 0.3 < small["mean_iou"] < 1
    always = whole.evaluate(
        lambda batch: torch.tensor([1.0, 0, 0])[None, :, None, None].expand(len(batch["labels"]), 3, 8, 12)
    )
    assert always["class_accuracy"] == pytest.approx(1 / 3)
    assert always["mean_iou"] == pytest.approx(always["accuracy"] / 3)  # the other two classes have no overlap


def test_loss_is_that_of_the_places_that_count(folder):
    task = SemanticSegmentation(streets(folder))
    batch, logits = next(task.batches("train", 3)), torch.randn(3, 3, 8, 12)
    rows = [
        -logits[b, :, i, j].log_softmax(0)[batch["labels"][b, i, j]]
        for b in range(3) for i in range(8) for j in range(12) if batch["labels"][b, i, j] != -100
    ]  # fmt: skip
    torch.testing.assert_close(task.loss(logits, batch), sum(rows) / len(rows))


def test_a_missing_validation_split_is_held_out_and_the_digest_tells_settings_apart(folder):
    counts = (("train", 12), ("test", 5))
    made = [
        SemanticSegmentation(streets(folder, counts), holdout=0.25, size=size, examples=examples)
        for size, examples in ((None, None), ((4, 6), None), (None, {"train": 5}))
    ]
    assert [made[0].size(s) for s in made[0].splits()] == [9, 3, 5] and made[2].size("train") == 5
    assert len({task.digest() for task in made}) == 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"size": 8}, "size"), ({"size": (8, 0)}, "size"), ({"crop": -1}, "crop"), ({"mean": (0, 0, 0)}, "mean and std"),
     ({"mean": (0,), "std": (1,)}, "3 values")],
)  # fmt: skip
def test_nonsense_is_refused(folder, wrong, named):
    with pytest.raises(UsageError, match=named):
        SemanticSegmentation(streets(folder), **wrong)


def test_answers_of_another_shape_are_refused(folder):
    task = SemanticSegmentation(streets(folder))
    with pytest.raises(UsageError, match=r"must give \(B, 3, h, w\)"):
        task.evaluate(lambda batch: unet((4, 8), 7)(batch["pixel_values"]))


@needs_camvid
def test_camvid_has_eleven_classes():
    task = SemanticSegmentation(size=(24, 32), examples={"train": 8, "validation": 4, "test": 4})
    assert len(task.classes) == 11 and task.classes[3] == "road"
    labels = next(task.batches("train", 8))["labels"]
    assert labels.shape == (8, 24, 32) and set(labels.unique().tolist()) <= {-100, *range(11)}
    assert (labels == 3)[:, 16:].float().mean() > 0.4  # the lower third is mostly road


@pytest.mark.slow
def test_a_recipe_distils_prunes_and_quantizes_a_segmenter_and_exports_it(folder, tmp_path):
    train = "{steps: 3, batch_size: 4}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
name: streets
task: {{class: SemanticSegmentation, dataset: {streets(folder)}}}
teacher: {{model: {{class: unet, widths: [16, 16], classes: 3, layers: 1}}, train: {train}}}
student: {{class: unet, widths: [8, 8], classes: 3, layers: 1}}
steps:
  - distill:
      objective:
        - {{class: AtPlaces, objective: {{class: CrossEntropy}}}}
        - {{class: AtPlaces, objective: {{class: SoftTargets, temperature: 2}}, weight: 0.5}}
        - {{class: MaskedHints, student: up.0, masks: 3, weight: 0.1}}
      train: {train}
  - prune: {{scorer: {{class: Taylor}}, keep: 0.5}}
  - fold_batch_norm:
  - quantize: {{bits: 8, activations: static}}
exports: [onnx]
measure: {{rounds: 3, threads: 1}}
""")
    run_recipe(Recipe.load(recipe), tmp_path / "out", progress=False)
    report = json.loads((tmp_path / "out" / "artifact" / "report.json").read_text())
    assert all(0 <= stage["measurements"]["mean_iou"]["value"] <= 1 for stage in report["stages"])
    assert "int8" in report["stages"][-1]["form"]
    assert load(tmp_path / "out" / "artifact")(torch.randn(1, 3, 8, 12)).shape == (1, 3, 8, 12)
