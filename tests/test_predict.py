"""predict.py as a user runs it: rows, summary, exit codes."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from dataset import list_labelled
from evaluation import answers
from evaluation.explain import file_name
from perceiver import Perceiver
from scans.slices import DataError, Options, by_scan

ROOT = Path(__file__).parent.parent


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_of_a_folder_are_those_of_the_test(finished_run, knees, tmp_path, capsys):
    """Training's own test and predict.py give the same probabilities for the same slices."""
    output = tmp_path / "out"
    assert predict.main([str(finished_run / "best.pt"), str(knees), "-o", str(output)]) == 0
    rows = {row["path"]: row for row in read_csv(output / "predictions.csv")}
    assert len(rows) == 128
    columns = ["path", "scan", "label", "p_left", "p_right", "error"]
    assert list(next(iter(rows.values()))) == columns
    for tested in read_csv(finished_run / "test_predictions.csv"):
        row = rows[tested["path"]]
        assert float(row["p_right"]) == pytest.approx(float(tested["p_right"]), abs=2e-5)
        assert (row["scan"], row["label"]) == (tested["scan"], tested["label"])
    summary = capsys.readouterr().out.splitlines()
    assert len(summary) == 16 and all("8 slices" in line for line in summary)
    right = sum(("RIGHT" in line.split()[0]) == (line.split()[1] == "right") for line in summary)
    assert right >= 15


def test_files_that_cannot_be_read_get_a_row_each_and_the_rest_go_on(
    finished_run, knees, tmp_path, capsys
):
    good = sorted(knees.iterdir())[0]
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(good.read_bytes()[:70])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty folder").mkdir()
    paths = [damaged, good, tmp_path / "text.png", tmp_path / "gone.png", tmp_path / "empty folder"]
    output = tmp_path / "out"
    code = predict.main(
        [str(finished_run / "best.pt"), *map(str, paths), "--output", str(output), "-b", "1"]
    )
    assert code == 1
    rows = read_csv(output / "predictions.csv")
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [bool(row["error"]) for row in rows] == [True, False, True, True, True]
    assert rows[1]["label"] and float(rows[1]["p_left"]) + float(
        rows[1]["p_right"]
    ) == pytest.approx(1)
    errors = capsys.readouterr().err.splitlines()
    assert "was trained or chosen on 1 of 4 scans" in errors[0]
    assert len(errors) == 5 and "gone.png: no such file" in errors[3]


def test_probabilities_stay_with_their_files_across_chunks(
    finished_run, knees, tmp_path, monkeypatch
):
    """With a damaged file in every chunk, no row gets a neighbour's probability."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, path in enumerate(sorted(knees.iterdir())[:24]):
        (folder / path.name).write_bytes(path.read_bytes() if i % 5 else b"damaged")
    checkpoint, one, many = str(finished_run / "best.pt"), tmp_path / "1", tmp_path / "7"
    assert predict.main([checkpoint, str(folder), "-o", str(one)]) == 1
    monkeypatch.setattr(answers, "CHUNK", 7)
    assert predict.main([checkpoint, str(folder), "-o", str(many)]) == 1
    for a, b in zip(*(read_csv(d / "predictions.csv") for d in (one, many)), strict=True):
        assert (a["path"], a["error"]) == (b["path"], b["error"])
        if not a["error"]:
            assert float(a["p_right"]) == pytest.approx(float(b["p_right"]), abs=2e-5)


def test_images_without_akoa_names_are_scans_by_folder_and_name(finished_run, tmp_path):
    names = ["mine/a_1.png", "mine/a_2.png", "mine/b-1.png", "other/7.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 30)).save(tmp_path / name)
    output = tmp_path / "out"
    arguments = [str(finished_run / "best.pt"), *(str(tmp_path / name) for name in names)]
    assert predict.main([*arguments, "-o", str(output)]) == 0
    scans = [
        str(Path(row["scan"]).relative_to(tmp_path)) for row in read_csv(output / "predictions.csv")
    ]
    assert scans == ["mine/a", "mine/a", "mine/b", "other"]


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04 half a zip file"])
def test_checkpoint_that_is_none_is_one_line_and_exit_2(tmp_path, knees, capsys, content):
    path = tmp_path / "bad.pt"
    if content is not None:
        path.write_bytes(content)
    assert predict.main([str(path), str(knees), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "bad.pt" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_line_on_one_file(finished_run, knees):
    tested = {row["scan"] for row in read_csv(finished_run / "test_predictions.csv")}
    path = next(path for path in sorted(knees.iterdir()) if path.name[: -len("_0.png")] in tested)
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(path.name.rsplit("_", 1)[0]) and "1 slice (" in done.stdout


def test_output_never_replaces_a_checkpoint_or_an_image(finished_run, knees, capsys):
    checkpoint = finished_run / "best.pt"
    before = checkpoint.read_bytes()
    for output in (checkpoint, next(knees.iterdir())):
        assert predict.main([str(checkpoint), str(knees), "-o", str(output)]) == 2
        assert str(output) in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


# ---- scans, verdicts, audits ---------------------------------------------------------------------


@pytest.fixture
def archive(knees, tmp_path) -> Path:
    """The knees of three patients; one scan has the wrong side in its name, one no side."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for path in sorted(knees.iterdir()):
        if path.name[:10] in ("OAI9000000", "OAI9000001", "OAI9000002"):
            name = path.name
            if name.startswith("OAI9000001") and "LEFT" in name:
                name = name.replace("LEFT", "RIGHT").replace("_1_0_", "_1_9_")
            if name.startswith("OAI9000002") and "LEFT" in name:
                name = name.replace("_LEFT", "")
            shutil.copy(path, folder / name)
    return folder


def test_scans_are_compared_with_the_side_that_their_name_gives(
    finished_run, archive, tmp_path, capsys
):
    output = tmp_path / "out"
    assert predict.main([str(finished_run / "best.pt"), str(archive), "-o", str(output)]) == 0
    rows = read_csv(output / "scans.csv")
    columns = "scan,patient,label,p_left,p_right,slices,agreement,expected,verdict"
    assert ",".join(rows[0]) == columns and len(rows) == 6
    verdicts = {row["scan"]: row["verdict"] for row in rows}
    swapped = "OAI9000001_BaseLine_1_9_RIGHT.nii.gz"
    nameless = "OAI9000002_BaseLine_1_0.nii.gz"
    assert verdicts.pop(swapped) == "mismatch" and verdicts.pop(nameless) == "unknown"
    assert set(verdicts.values()) == {"ok"}
    slices = read_csv(output / "predictions.csv")
    for row in rows:
        p_right = [float(s["p_right"]) for s in slices if s["scan"] == row["scan"]]
        assert len(p_right) == int(row["slices"]) == 8
        assert float(row["p_right"]) == pytest.approx(sum(p_right) / 8, abs=1e-5)
        agreeing = sum((p > 0.5) == (row["label"] == "right") for p in p_right)
        assert float(row["agreement"]) == pytest.approx(agreeing / 8, abs=1e-3)
    assert "mismatch, expected right" in capsys.readouterr().out


def test_audit_that_can_compare_nothing_says_so_and_exits_2(finished_run, tmp_path, capsys):
    for i in range(3):
        Image.new("L", (20, 30)).save(tmp_path / f"knee_{i}.png")
    assert predict.main([str(finished_run / "best.pt"), str(tmp_path), "--audit"]) == 2
    output, error = capsys.readouterr()
    assert "1 unknown" in output and "nothing could be compared" in error


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=" ".join)
def test_audit_of_labelled_files_that_cannot_be_read_compares_nothing(
    finished_run, knees, tmp_path, capsys, flags
):
    (tmp_path / sorted(knees.iterdir())[0].name).write_bytes(b"damaged")
    checkpoint = str(finished_run / "best.pt")
    assert predict.main([checkpoint, str(tmp_path), "--audit", *flags]) == 2
    assert "nothing could be compared, as nothing can be read" in capsys.readouterr().err
    for i in range(3):  # these can be read, but nothing tells their label
        Image.new("L", (20, 30)).save(tmp_path / f"knee_{i}.png")
    assert predict.main([checkpoint, str(tmp_path), "--audit", *flags]) == 2
    output, error = capsys.readouterr()
    assert "nothing could be compared, as nothing tells a label" in error
    assert "1 scans" not in output and "1 slices" not in output


def test_audit_prints_what_needs_a_person_and_exits_3(finished_run, archive, capsys):
    checkpoint = str(finished_run / "best.pt")
    assert predict.main([checkpoint, str(archive), "--audit"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("OAI9000001_BaseLine_1_9_RIGHT")
    assert lines[1] == "6 scans: 4 ok, 1 mismatch, 0 unsure, 1 unknown"
    for path in archive.glob("*_1_9_*"):
        path.unlink()
    assert predict.main([checkpoint, str(archive), "--audit"]) == 0


def test_scans_below_the_threshold_are_unsure_and_come_after_mismatches(
    finished_run, archive, tmp_path, capsys
):
    checkpoint = torch.load(finished_run / "best.pt", weights_only=True)
    checkpoint["calibration"]["unsure_below"] = 1.0
    torch.save(checkpoint, tmp_path / "unsure.pt")
    assert predict.main([str(tmp_path / "unsure.pt"), str(archive), "--audit", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in rows] == ["unsure"] * 6
    of_label = [row[f"p_{row['expected']}"] for row in rows if row["expected"]]
    assert of_label == sorted(of_label)


def test_probabilities_are_those_of_the_temperature_in_the_checkpoint(finished_run, knees, capsys):
    checkpoint = torch.load(finished_run / "best.pt", weights_only=True)
    path = str(sorted(knees.iterdir())[0])
    margins = []
    for temperature in (1.0, 3.0):
        checkpoint["calibration"]["temperature"] = temperature
        torch.save(checkpoint, "t.pt")
        assert predict.main(["t.pt", path, "--json"]) == 0
        p = json.loads(capsys.readouterr().out)["p_right"]
        margins.append(math.log(p / (1 - p)))
    assert margins[0] == pytest.approx(3 * margins[1], rel=1e-2)


def test_paths_come_from_standard_input_a_manifest_or_a_pattern(
    finished_run, knees, tmp_path, monkeypatch, capsys
):
    checkpoint, found = str(finished_run / "best.pt"), sorted(knees.iterdir())[:16]
    given = io.BytesIO("".join(f"{path}\n" for path in found).encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given))
    assert predict.main([checkpoint, "-", "--json"]) == 0
    first = capsys.readouterr().out
    assert [json.loads(line)["verdict"] for line in first.splitlines()] == ["ok", "ok"]

    rows = [
        f"{path},{'left' if 'LEFT' in path.name else 'right'},Z,{path.name[20:25]}"
        for path in found
    ]
    (tmp_path / "knees.csv").write_text("\n".join(["path,side,patient,scan", *rows]) + "\n")
    assert predict.main([checkpoint, str(tmp_path / "knees.csv"), "--json"]) == 0
    manifest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["patient"] for row in manifest] == ["Z", "Z"]

    for path in found:
        side = "L" if "LEFT" in path.name else "R"
        shutil.copy(path, tmp_path / f"7_{side}_{path.stem.rsplit('_', 1)[1]}.png")
    pattern = r"(?P<patient>\d+)_(?P<side>[LR])_(?P<slice>\d+)"
    (tmp_path / "knees.csv").unlink()
    assert predict.main([checkpoint, str(tmp_path), "--json", "--name-pattern", pattern]) == 0
    named = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["expected"] for row in named) == ["left", "right"]
    assert [row["p_right"] for row in named] == [row["p_right"] for row in manifest]


def test_attention_is_drawn_for_each_slice_and_each_scan(finished_run, knees, tmp_path):
    paths = [str(path) for path in sorted(knees.iterdir())[:3]]
    flags = ["--attention", str(tmp_path / "a")]
    assert predict.main([str(finished_run / "best.pt"), *paths, *flags]) == 0
    pictures = list((tmp_path / "a").iterdir())
    assert len(pictures) == 4
    assert sum(picture.name.startswith("scan_") for picture in pictures) == 1
    for picture in pictures:
        assert Image.open(picture).convert("L").getextrema() == (0, 255)


def test_a_volume_has_the_side_of_its_position_if_it_is_asked_for(finished_run, tmp_path, capsys):
    sitk = pytest.importorskip("SimpleITK")
    for name, x in (("a.nii.gz", -90.0), ("b_LEFT.nrrd", 60.0)):
        pixels = np.random.default_rng(0).integers(0, 999, (12, 20, 24)).astype(np.int16)
        image = sitk.GetImageFromArray(pixels)
        image.SetOrigin((x, 0.0, 5.0))
        sitk.WriteImage(image, str(tmp_path / name))
    for flag, side in (([], ""), (["--side-by-position"], "right")):
        predict.main([str(finished_run / "best.pt"), str(tmp_path), "--json", *flag])
        said = capsys.readouterr()
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert [(row["expected"], row["slices"]) for row in rows] == [(side, 12), ("left", 12)]
        assert ("1 scan whose side nothing but the position" in said.err) == (not flag)


def folders_of_sides(
    root: Path, knees: Path, count: int, name: str = "{i}.png", swap=False
) -> None:
    """left/ and right/ with `count` slices each, of patients whose names say nothing of a side."""
    for side in ("LEFT", "RIGHT"):
        other = {"LEFT": "RIGHT", "RIGHT": "LEFT"}[side] if swap else side
        folder = root / other.lower()
        folder.mkdir(parents=True)
        for i, path in enumerate(sorted(knees.glob(f"*_{side}*"))[:count]):
            shutil.copy(path, folder / name.format(i=i))


def test_scans_of_two_folders_stay_apart_and_are_those_of_training(
    finished_run, knees, tmp_path, capsys
):
    checkpoint = str(finished_run / "best.pt")
    folders_of_sides(tmp_path / "A", knees, 8, "p01_{i}.png")
    folders_of_sides(tmp_path / "B", knees, 8, "p01_{i}.png", swap=True)
    both = [str(tmp_path / "A"), str(tmp_path / "B")]
    assert predict.main([checkpoint, "--audit", *both, "--json"]) == 3  # flags may stand between
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["scan"] for row in rows} == {
        f"{tmp_path}/B/{side}/p01" for side in ("left", "right")
    }

    folders_of_sides(tmp_path / "C", knees, 40)
    shutil.copytree(tmp_path / "C" / "left", tmp_path / "D" / "left")
    for folder, scans in (("C", ["left", "right"]), ("D", ["left"])):
        assert predict.main([checkpoint, str(tmp_path / folder), "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["scan"] for row in rows] == scans
    listing = list_labelled(tmp_path / "C", None, Options(patients="scan"))
    assert [len(scan) for scan in by_scan(listing.slices).values()] == [40, 40]


@pytest.mark.slow
def test_paths_from_standard_input_keep_the_sides_of_their_folders(finished_run, knees, tmp_path):
    folders_of_sides(tmp_path / "A", knees, 8, "p01_{i}.png", swap=True)
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", "-", "--audit"]
    names = b"\n".join(os.fsencode(path) for path in sorted((tmp_path / "A").rglob("*.png")))
    done = subprocess.run(command, input=names, capture_output=True)
    assert done.returncode == 3 and b"2 mismatch" in done.stdout
    assert b"left/p01   right  p_right" in done.stdout and b"  8 slices" in done.stdout
    done = subprocess.run(command, input=names + b"\n" + names, capture_output=True)
    assert b"  8 slices" in done.stdout  # a slice given twice counts once
    done = subprocess.run(command, input=b"", capture_output=True)
    assert done.returncode == 2 and b"no path was given" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_contradictions_are_said_and_damaged_volumes_do_not_stop_the_others(
    finished_run, knees, tmp_path, capsys
):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, (8, 20, 24), np.int16))
    image.SetOrigin((60.0, 0.0, 5.0))
    sitk.WriteImage(image, str(tmp_path / "knee_RIGHT.nii.gz"))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "knee_RIGHT.nii.gz").read_bytes()[:100])
    path = next(knees.glob("*RIGHT*"))
    (tmp_path / "left").mkdir()
    shutil.copy(path, tmp_path / "left" / path.name)
    assert predict.main([str(finished_run / "best.pt"), str(tmp_path), "--json"]) == 1
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["expected"] for row in rows] == ["", ""]
    assert "the name says right, its folder left" in output.err
    assert "knee_RIGHT.nii.gz: the name says right, its position left" in output.err
    assert output.err.count("cut.nii.gz") == 1
    with pytest.raises(DataError, match=r"cut\.nii\.gz"):
        list_labelled(tmp_path)


def test_pictures_of_names_that_are_alike_do_not_replace_each_other():
    names = [file_name(name) for name in ("a b.png", "a_b.png", "\udcff" * 300, "ж" * 300)]
    assert len(set(names)) == 4 and all(len(name.encode()) < 200 for name in names)


def test_export_never_replaces_a_checkpoint(finished_run, capsys):
    checkpoint = finished_run / "best.pt"
    assert predict.main([str(checkpoint), "--export", str(checkpoint)]) == 2
    assert "expected a name that ends in .onnx" in capsys.readouterr().err
    Perceiver.from_checkpoint(checkpoint)


def test_a_checkpoint_of_the_last_version_says_what_it_said(tmp_path):
    """tests/data/last_version.json holds what that version's model said of the same pixels."""
    known = json.loads((ROOT / "tests/data/last_version.json").read_text())
    pixels = np.random.default_rng(known["seed"]).integers(0, 160, (8, 16, 16), np.uint8)
    (tmp_path / "slices").mkdir()
    for i, image in enumerate(pixels):
        image[:, :8] += np.uint8(10 * i)
        Image.fromarray(image).save(tmp_path / "slices" / f"knee_{i}.png")
    checkpoint, output = str(ROOT / "tests/data/last_version.pt"), tmp_path / "out"
    assert predict.main([checkpoint, str(tmp_path / "slices"), "-o", str(output)]) == 0
    rows = read_csv(output / "predictions.csv")
    assert [row["path"][-5] for row in rows] == list("01234567")
    for row, expected in zip(rows, known["probabilities"], strict=True):
        assert [float(row["p_left"]), float(row["p_right"])] == pytest.approx(expected, abs=2e-5)
    (scan,) = read_csv(output / "scans.csv")
    mean = np.mean(known["probabilities"], axis=0)
    assert float(scan["p_right"]) == pytest.approx(mean[1], abs=2e-5)
    assert float(scan["p_left"]) == pytest.approx(mean[0], abs=2e-5)


@pytest.mark.parametrize("content", [b"", b"damaged", "folder"])
def test_nothing_that_can_be_read_is_a_row_with_the_error_and_exit_1(
    finished_run, tmp_path, capsys, content
):
    path = tmp_path / "knee_1.png"
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    output = tmp_path / "out"
    assert predict.main([str(finished_run / "best.pt"), str(path), "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"predict.py: {path}: ") and len(error.splitlines()) == 1
    (row,) = read_csv(output / "predictions.csv")
    assert row["path"] == str(path) and row["error"] and not row["label"]
    assert read_csv(output / "scans.csv") == []


@pytest.mark.slow
def test_a_full_standard_output_is_one_line_and_exit_1(finished_run, knees):
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", knees]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


# ---- before the work -----------------------------------------------------------------------------


def test_what_is_no_file_or_folder_is_named_by_kind(finished_run, knees, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device")):
        assert predict.main([str(path), str(knees)]) == 2
        assert capsys.readouterr().err == f"predict.py: {path}: {kind}, expected a file\n"
    for flag in ("--output", "--attention"):
        arguments = [str(finished_run / "best.pt"), str(knees), flag, str(tmp_path / "pipe")]
        assert predict.main(arguments) == 2
        told = f"predict.py: {flag} {tmp_path / 'pipe'}: is no folder; name one\n"
        assert capsys.readouterr().err == told


@pytest.mark.slow
def test_without_matplotlib_attention_is_refused_before_the_work(finished_run, knees, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", knees]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command += ["--attention", tmp_path / "pictures"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("predict.py: matplotlib can't be imported (none here): pip")
    assert len(done.stderr.splitlines()) == 1
