"""predict.py as a user runs it: rows, summary, exit codes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import predict

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
    assert len(errors) == 4 and "gone.png: no such file" in errors[2]


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
    monkeypatch.setattr(predict, "CHUNK", 7)
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
    assert scans == ["mine/a", "mine/a", "mine/b", "other/slices"]


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
    path = sorted(knees.iterdir())[0]
    command = [sys.executable, ROOT / "predict.py", finished_run / "best.pt", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(path.name.rsplit("_", 1)[0]) and "1 slices" in done.stdout


def test_output_never_replaces_a_checkpoint_or_an_image(finished_run, knees, capsys):
    checkpoint = finished_run / "best.pt"
    before = checkpoint.read_bytes()
    for output in (checkpoint, next(knees.iterdir())):
        assert predict.main([str(checkpoint), str(knees), "-o", str(output)]) == 2
        assert str(output) in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
