"""training/augment.py: what changes, from what it follows, and no side without its label."""

import pytest
import torch

from training import augment
from training.augment import Augmentation

LABELS = torch.arange(40) % 2
OF = 40, (1, 24, 40), torch.device("cpu")  # how many, size and device of `wedges(LABELS)`


def wedges(labels: torch.Tensor) -> torch.Tensor:
    """An L-shaped object, mirrored where the label is 0: no rotation turns one into the other."""
    images = torch.zeros(len(labels), 1, 24, 40, dtype=torch.uint8)
    images[..., 6:18, 16:19] = 200
    images[..., 15:18, 16:26] = 200
    return torch.where(labels.bool()[:, None, None, None], images, images.flip(3))


def handedness(images: torch.Tensor) -> torch.Tensor:
    """Sign of a third moment that changes under a mirror and not under a rotation (batch,)."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    weight = images[:, 0].float().clamp(min=40) - 40
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    dx = x - (weight * x).sum(dim=(1, 2), keepdim=True)
    dy = y - (weight * y).sum(dim=(1, 2), keepdim=True)

    def moment(p, q):
        return (weight * dx**p * dy**q).sum(dim=(1, 2))

    # Hu's seventh invariant (Hu 1962): it changes its sign under reflection alone.
    a, b = moment(3, 0) - 3 * moment(1, 2), 3 * moment(2, 1) - moment(0, 3)
    c, d = moment(3, 0) + moment(1, 2), moment(2, 1) + moment(0, 3)
    return (b * c * (c**2 - 3 * d**2) - a * d * (3 * c**2 - d**2)).sign()


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("mirror_swap", [False, True])
def test_no_image_is_mirrored_without_its_label(strength, mirror_swap):
    images = wedges(LABELS)
    right = handedness(wedges(torch.ones(1, dtype=torch.long)))
    everything = torch.arange(len(images))
    swapped = 0
    for epoch in range(5):
        changed, labels = Augmentation(*OF, 0, epoch, strength, mirror_swap)(
            images, LABELS, everything
        )
        assert torch.equal(handedness(changed) == right, labels.bool())
        swapped += (labels != LABELS).sum().item()
    assert 60 < swapped < 140 if mirror_swap else swapped == 0


def test_changes_follow_from_seed_epoch_and_index_not_from_the_batch():
    images = wedges(LABELS)
    change = Augmentation(*OF, seed=1, epoch=2, mirror_swap=True)
    everything = torch.arange(len(images))
    whole, labels = change(images, LABELS, everything)
    batch = torch.tensor([7, 3, 31])
    some, some_labels = Augmentation(*OF, 1, 2, mirror_swap=True)(
        images[batch], LABELS[batch], batch
    )
    assert torch.equal(some, whole[batch]) and torch.equal(some_labels, labels[batch])
    for seed, epoch in ((0, 2), (1, 3)):
        other, _ = Augmentation(*OF, seed, epoch)(images, LABELS, everything)
        assert (other - whole).abs().flatten(1).amax(dim=1).min() > 20


def test_without_changes_images_pass_untouched():
    images = wedges(LABELS)
    passed, labels = Augmentation(*OF, 0, 0, strength=0.0)(images, LABELS, torch.arange(40))
    assert passed is images and labels is LABELS


def test_a_quarter_turn_and_a_shift_land_where_they_should(monkeypatch):
    """In pixels, although the image is not square: checked against a turn of the pixels."""
    monkeypatch.setattr(augment, "ROTATION", 90.0)
    image = torch.zeros(1, 1, 24, 40)
    image[..., 4:10, 17:29] = torch.rand(6, 12)
    turned = Augmentation.move(image, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    square = image[..., 8:32]  # the middle
    expected = torch.rot90(square, -1, dims=(2, 3))
    if not torch.allclose(turned[..., 8:32], expected, atol=1e-4):
        expected = torch.rot90(square, 1, dims=(2, 3))
    torch.testing.assert_close(turned[..., 8:32], expected, atol=1e-4, rtol=0)
    monkeypatch.setattr(augment, "SHIFT", 0.25)
    shifted = Augmentation.move(image, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(shifted[..., :18, :], image[..., 6:, :], atol=1e-4, rtol=0)


def test_changes_are_small_and_pixels_stay_in_range():
    images = wedges(LABELS)
    changed, _ = Augmentation(*OF, 0, 0)(images, LABELS, torch.arange(40))
    assert changed.min() >= 0 and changed.max() <= 255
    assert (changed - images).abs().mean() < 40


def test_half_the_strength_is_half_of_each_change():
    """Of the places that pixels come from, and of the intensities of a grey image."""
    halved, usual = (Augmentation(*OF, 0, 0, strength) for strength in (0.5, 1.0))
    grey = torch.full((40, 1, 24, 40), 128, dtype=torch.uint8)
    middle = (..., slice(11, 13), slice(19, 21))  # where nothing black comes in
    changes = [
        change(grey, LABELS, torch.arange(40))[0][middle] - 128 for change in (halved, usual)
    ]
    assert changes[1].abs().mean() > 5
    torch.testing.assert_close(2 * changes[0], changes[1], atol=1e-3, rtol=0)
    columns = [  # how many bright pixels each holds
        (change(wedges(LABELS), LABELS, torch.arange(40))[0] > 100).float().mean((1, 2))
        for change in (halved, usual)
    ]
    still = (wedges(LABELS) > 100).float().mean((1, 2))
    moved = [(each - still).abs().sum() for each in columns]
    assert 0 < moved[0] < 0.8 * moved[1]


def scans_of(images: torch.Tensor, count: int) -> torch.Tensor:
    """(n, 1, height, width) -> (n / count, 1, count, height, width)."""
    return images.view(-1, 1, count, *images.shape[2:])


def test_all_slices_of_a_scan_are_changed_alike_but_for_their_noise(monkeypatch):
    monkeypatch.setattr(augment, "NOISE", 0.0)
    scans = wedges(LABELS[:8]).unsqueeze(2).expand(-1, -1, 5, -1, -1)
    change = Augmentation(8, (1, 5, 24, 40), OF[2], 0, 0)
    changed, labels = change(scans, LABELS[:8], torch.arange(8))
    assert changed.shape == scans.shape and torch.equal(labels, LABELS[:8])
    assert not torch.equal(changed, scans.float())
    assert torch.equal(changed, changed[:, :, :1].expand_as(changed))
    monkeypatch.undo()
    noisy, _ = Augmentation(8, (1, 5, 24, 40), OF[2], 0, 0)(scans, LABELS[:8], torch.arange(8))
    assert not torch.equal(noisy[:, :, 0], noisy[:, :, 1])


def test_a_scan_of_one_slice_is_changed_as_that_slice():
    images, everything = wedges(LABELS), torch.arange(40)
    slices, _ = Augmentation(*OF, 0, 3)(images, LABELS, everything)
    scans, _ = Augmentation(40, (1, 1, 24, 40), OF[2], 0, 3)(images[:, :, None], LABELS, everything)
    assert torch.equal(scans[:, :, 0], slices)


def test_mirrored_slices_are_in_the_reverse_order_with_the_other_label():
    scans = scans_of(wedges(LABELS[:1]).expand(40, -1, -1, -1).clone(), 4)
    scans += torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1, 1)
    labels = LABELS[:10]
    change = Augmentation(10, (1, 4, 24, 40), OF[2], 0, 0, 0.0, True, "slices")
    changed, swapped = change(scans, labels, torch.arange(10))
    turned = swapped != labels
    assert 0 < turned.sum() < 10
    assert torch.equal(changed[turned], scans[turned].flip(2))
    assert torch.equal(changed[~turned], scans[~turned])


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_bending_folds_no_image(strength):
    """Everywhere the map from places of the result to those of the source keeps its orientation."""
    height = width = 64
    change = Augmentation(1000, (1, height, width), OF[2], 0, 0, 0.0, bend=0.08)
    bent = change.displacements(torch.arange(1000), (height, width))
    shape = torch.Size([1000, 1, height, width])
    x, y = change.sources(shape, strength * change.draws[:, :4], bent).unbind(-1)
    across = torch.stack([x.diff(dim=2)[:, :-1], y.diff(dim=2)[:, :-1]])
    down = torch.stack([x.diff(dim=1)[:, :, :-1], y.diff(dim=1)[:, :, :-1]])
    assert (across[0] * down[1] - down[0] * across[1]).min() > 0
    assert bent.abs().max() > 0.08  # in half sizes: that it does bend
