"""scans/places.py: places along scans of any number of slices, and what is no scan."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import volume_towards

from dataset import Dataset
from scans.places import (
    check_scans,
    describe_lengths,
    missing_between,
    rows_of_scans,
)
from scans.slices import DataError, Options, Slice
from scans.volumes import (
    TOWARDS,
    common_direction,
    orientation,
    other_direction,
    plan_slicing,
)

AXES = str.maketrans("RAI", "LPS")


def scan(name: str, numbers) -> list[Slice]:
    return [Slice(f"{name}_{n}.png", None, "left", name, name, n) for n in numbers]


def ramp(slices: list[Slice]) -> torch.Tensor:
    """Pixels (n, 1, 2, 3) whose grey level is four times the slice's number."""
    levels = torch.tensor([4 * s.number for s in slices], dtype=torch.uint8)
    return levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 3)


def test_scans_of_the_right_length_are_their_slices():
    slices = scan("a", range(6)) + scan("b", range(10, 16))
    rows = rows_of_scans(slices, 6)
    assert rows.dtype == torch.int64 and rows.tolist() == [[*range(6)], [*range(6, 12)]]


@pytest.mark.parametrize(
    "numbers", [range(24), range(3, 60), range(0, 40, 2), [0, 1, 2, 5, 6, 7, 8, 9]]
)
def test_places_between_slices_are_interpolated_at_equal_distances(numbers):
    slices = scan("a", range(40)) + scan("b", numbers)
    rows = rows_of_scans(slices, 40)
    dataset = Dataset(slices, ramp(slices), rows, ["left", "right"])
    batch = dataset.batch(torch.tensor([1, 0]))
    assert batch.shape == (2, 1, 40, 2, 3) and batch.dtype == torch.uint8
    wanted = 4 * np.linspace(min(numbers), max(numbers), 40)
    assert np.abs(batch[0, 0, :, 0, 0].numpy() - wanted).max() <= 0.51
    assert torch.equal(batch[1, 0, :, 1, 2], ramp(slices)[:40, 0, 0, 0])
    # All slices count as its own, also those that no place falls on.
    assert dataset.members == slices
    assert dataset.unit == "scan" and dataset.names == ["a", "b"]


def test_numbers_that_can_not_be_places_count_as_an_order():
    for numbers in ([1, 2, 4, 9, 16], [1, 2, 5, 9, 400]):
        assert missing_between(np.array(numbers)) is None
        slices = scan("a", numbers)
        assert rows_of_scans(slices, 5).tolist() == [[0, 1, 2, 3, 4]]
        (line,) = describe_lengths(slices, 5)
        assert line == "slices of uneven numbers are taken in their order: a"


def test_what_is_made_of_other_lengths_is_said():
    slices = scan("a", range(40)) + scan("b", [*range(17), *range(19, 40)]) + scan("c", range(24))
    assert describe_lengths(slices, 40) == [
        "2 scans of 24 to 38 slices: resampled to 40",
        "slices are missing, and interpolated: b (2)",
    ]
    assert describe_lengths(slices[:40], 40) == []


def test_what_is_no_scan_is_refused():
    check_scans(scan("a", range(3)))
    odd = [replace(s, label="right") if s.number else s for s in scan("e", range(4))]
    slices = scan("a", range(3)) + scan("b", [0, 1]) + scan("c", [7]) + scan("d", [1, 2, 2]) + odd
    with pytest.raises(DataError) as refused:
        check_scans(slices)
    first, *lines = str(refused.value).split("\n")
    assert first.startswith("4 scans can't be read whole; names tell which images are one, and in")
    assert lines == [
        "  b: 2 slices, expected a whole scan: 3 or more",
        "  c: 1 slice, expected a whole scan: 3 or more",
        "  d: slices without a number of their own, which would tell their order",
        "  e: slices of several labels: left, right",
    ]
    assert describe_lengths(slices, 3) == []


def test_subsets_of_scans_have_the_slices_of_their_scans():
    slices = scan("a", range(4)) + scan("b", range(5)) + scan("c", range(4))
    dataset = Dataset(slices, ramp(slices), rows_of_scans(slices, 3), ["left", "right"])
    some = dataset.subset(dataset.rows[[2, 0]])
    assert some.members == slices[9:] + slices[:4] and some.sample_size == (1, 3, 2, 3)
    mean, _ = some.statistics()
    assert mean == pytest.approx(6 / 255)


def of_volume(name: str, towards: str) -> list[Slice]:
    volume = volume_towards(towards, name)
    return [Slice(name, i, "left", name, name, i, volume) for i in range(4)]


def test_volumes_that_run_in_several_directions_are_refused_and_told_how_to_be_read():
    one, same, other = of_volume("a", "LIP"), of_volume("b", "LIP"), of_volume("c", "RIP")
    assert common_direction(one + same, is_whole=True) == "LIP"
    assert common_direction(one + scan("d", range(4)), is_whole=True) == "LIP"
    check_scans(one + same)
    with pytest.raises(DataError, match="c: slices, rows and columns go to RIP, but those of a to"):
        check_scans(one + same + other)
    assert common_direction(one + other) == "IP"  # each slice alone looks the same
    assert other_direction(same[0].volume, "LIP") == "" == other_direction(one[0].volume, "")
    assert other_direction(other[0].volume, "IP") == "" == other_direction(None, "IP")
    assert "go to RIP, but those that were trained on to LIP; a model" in (
        other_direction(other[0].volume, "LIP")
    )


@pytest.mark.parametrize(
    "first, second, planes",
    [
        ("LIP", "LIA", "sagittal"),  # mirrored
        ("LIP", "RSP", "sagittal"),  # upside down
        ("PIL", "PIR", "coronal"),
        ("IPL", "IAL", "axial"),
        ("LIP", "IAL", "sagittal, coronal or axial"),  # cut along another axis
        ("LIP", "LPI", "sagittal"),  # turned
    ],
)
def test_slices_that_run_in_several_directions_are_refused_with_the_plane(first, second, planes):
    with pytest.raises(DataError, match=rf"rows and columns go .*; --plane {planes} reads all"):
        common_direction(of_volume("a", first) + of_volume("b", second))


def test_a_volume_without_geometry_tells_no_direction():
    axial = volume_towards("SPL")  # the directions that a file without any is given
    assert orientation(axial) == orientation(None) == ""
    assert orientation(replace(axial, origin=(0.0, 12.0, 3.0))) == "SPL"
    assert orientation(replace(volume_towards("LIP"), path="a.nrrd")) == ""  # it has no `space`
    assert orientation(replace(volume_towards("LIP"), path="a.npy")) == ""


def test_directions_of_oblique_volumes_are_those_that_planes_are_cut_along():
    turned = volume_towards("LIP")
    for seed in range(20):
        q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        volume = replace(turned, direction=q * np.sign(np.linalg.det(q)), slicing=None)
        assert sorted(
            orientation(plan_slicing(volume, Options(plane="stored"))).translate(AXES)
        ) == [*"LPS"]
        for plane, towards in TOWARDS.items():
            assert orientation(plan_slicing(volume, Options(plane=plane))) == towards
