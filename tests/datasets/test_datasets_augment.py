import pytest
import torch

from limbeck.datasets.augment import PermutedPatches, Rotations, StrongView, Translated, Turned
from limbeck.errors import UsageError

IMAGES = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"pixel_values": IMAGES, "labels": torch.tensor([2, 0, -100]), "index": torch.arange(3), "epoch": 4}


def test_rotations_turn_images_and_name_the_turns():
    out = Rotations()(BATCH)
    for turn in range(4):
        rows = slice(3 * turn, 3 * turn + 3)
        expected = IMAGES
        for _ in range(turn):
            expected = expected.transpose(2, 3).flip(2)
        assert torch.equal(out["pixel_values"][rows], expected)
        assert out["joint_labels"][rows].tolist() == [8 + turn, turn, -100]
        assert out["index"][rows].tolist() == [0, 1, 2]
    assert out["labels"].tolist() == [2, 0, -100] + [-100] * 9
    assert Rotations(all_labels=True)(BATCH)["labels"].tolist() == [2, 0, -100] * 4
    assert out["epoch"] == 4 and BATCH["pixel_values"].shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    "batch",
    [{"labels": BATCH["labels"]}, {**BATCH, "pixel_values": torch.zeros(3, 1, 4, 5)}, {"pixel_values": IMAGES}],
)
def test_rotations_refuse_what_they_cannot_turn(batch):
    with pytest.raises(UsageError):
        Rotations()(batch)


def test_a_strong_view_is_an_affine_change_with_a_hole():
    torch.manual_seed(0)
    batch = {"pixel_values": torch.randn(64, 1, 10, 10)}
    out = StrongView(strength=0.5, cut=0.4)(batch)["pixel_values"]
    holes = (out == 0).flatten(1).sum(1)
    assert int(holes.max()) == 16 and int(holes.min()) >= 4  # 4x4, cut off at the border
    for before, after in zip(batch["pixel_values"], out):
        kept = after != 0
        x, y = before[kept], after[kept]
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        torch.testing.assert_close(y, slope * x + (y - slope * x).mean(), atol=1e-4, rtol=1e-4)
        assert 0.5 <= float(slope) <= 1.5


def test_a_strong_view_of_strength_nothing_is_the_image_and_draws_follow_the_seed():
    assert torch.equal(StrongView(0.0, 0.0)(BATCH)["pixel_values"], IMAGES)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(StrongView()(BATCH)["pixel_values"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    with pytest.raises(UsageError, match="strength"):
        StrongView(strength=1.0)


def test_a_translation_moves_every_pixel():
    out = Translated(1, 2)(BATCH)["pixel_values"]
    for row in range(4):
        for column in range(4):
            assert torch.equal(out[:, :, (row + 1) % 4, (column + 2) % 4], IMAGES[:, :, row, column])
    assert torch.equal(Translated(0, 0)(BATCH)["pixel_values"], IMAGES)


def test_permuted_patches_are_the_same_patches_elsewhere():
    out = PermutedPatches(2)(BATCH)["pixel_values"]
    places = [(row, column) for row in (0, 2) for column in (0, 2)]
    before = [IMAGES[:, :, r : r + 2, c : c + 2] for r, c in places]
    after = [out[:, :, r : r + 2, c : c + 2] for r, c in places]
    found = [next(i for i, patch in enumerate(before) if torch.equal(patch, moved)) for moved in after]
    assert sorted(found) == [0, 1, 2, 3] != found
    assert torch.equal(PermutedPatches(2)(BATCH)["pixel_values"], out)
    for patch in (3, 4):
        with pytest.raises(UsageError, match="several"):
            PermutedPatches(patch)(BATCH)


def test_a_turn_of_a_right_angle_is_a_rotation_and_of_nothing_the_image():
    torch.testing.assert_close(Turned(0.0)(BATCH)["pixel_values"], IMAGES)
    turned = Turned(90.0)(BATCH)["pixel_values"]
    torch.testing.assert_close(turned, torch.rot90(IMAGES, 1, (2, 3)), atol=1e-5, rtol=1e-4)
    middle = Turned(45.0)({"pixel_values": torch.ones(1, 1, 6, 6)})["pixel_values"]
    torch.testing.assert_close(middle, torch.ones(1, 1, 6, 6))
