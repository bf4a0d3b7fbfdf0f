"""args.json as people edit it: what no flag takes is refused by name and value, and so is what the
checkpoint was not made with."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FLAGS, TINY, assert_same_run, write_knees
from PIL import Image

import train

MORE = ["--epochs", "4"]


@pytest.fixture
def edited(whole_run, tmp_path) -> Callable[..., Path]:
    """A finished run with other arguments in its args.json, or with more beside them."""

    def edit(changed: dict | None = None, **record) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(whole_run, folder)
        content = json.loads((folder / "args.json").read_text())
        content["arguments"] |= changed or {}
        (folder / "args.json").write_text(json.dumps(content | record))
        return folder

    return edit


def refusal(folder: Path, capsys, *more: str) -> str:
    """The one line with which a run is not gone on with; nothing of it is touched."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        code = train.main(["--resume", str(folder), *more])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return error


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("batch_size", 0, "a whole number of at least 1, got 0"),
        ("batch_size", -4, "a whole number of at least 1, got -4"),
        ("batch_size", None, "text or a number, got null"),
        ("batch_size", "16", 'a number, got "16"'),
        ("batch_size", [16], "text or a number, got [16]"),
        ("seed", 1.5, "a whole number, got 1.5"),
        ("epochs", 1e300, "a whole number of at least 1, got 1e+300"),
        ("lr", float("nan"), "a number above 0, got nan"),
        ("data_dir", 5, "text, got 5"),
        ("data_dir", "a\0b", r'text, got "a\u0000b"'),
        ("classes", "left", 'a list of 1 or more, got "left"'),
        ("classes", [1, 2], "text, got [1, 2]"),
        ("image_size", [16], "a list of 2, got [16]"),
        ("image_size", ["a", 16], "a whole number of at least 1, got a"),
        ("plane", "x", "one of stored, sagittal, coronal, axial, got"),
        ("name_pattern", {"a": 1}, 'text or a number, got {"a": 1}'),
        ("labels", "table.csv", 'a list of 1 or more, got "table.csv"'),
        ("augment", 1, "true or false, got 1"),
        ("compile", None, "true or false, got null"),
        ("amp", "no", 'true or false, got "no"'),
        ("val_fraction", 5, "a number above 0 and below 1, got 5"),
        ("cache_dir", True, "text or a number, got true"),
    ],
)
def test_a_value_that_no_flag_takes_is_refused(edited, capsys, name, value, expected):
    error = refusal(edited({name: value}), capsys)
    assert f"args.json: {name}: expected {expected}" in error


def test_what_is_no_argument_is_refused(edited, capsys):
    assert "args.json: learning is no argument" in refusal(edited({"learning": 1}), capsys)


@pytest.mark.parametrize(
    "name, value",
    [
        ("data", 5),
        ("data", None),
        ("data", {"slices": "a", "crc32": 0}),
        ("resumed", {"a": 1}),
        ("resumed", None),
        ("directory", 5),
        ("arguments", []),
    ],
    ids=str,
)
def test_a_record_that_no_run_writes_is_refused(edited, capsys, name, value):
    error = refusal(edited(**{name: value}), capsys)
    assert "args.json" in error and name in error


@pytest.mark.parametrize(
    "name, value",
    [
        ("image_size", [20, 20]),
        ("batch_size", 8),
        ("seed", 3),
        ("lr", 0.5),
        ("lr_decay", 0.5),
        ("classes", ["right", "left"]),
        ("plane", "axial"),
        ("slices", 20),
        ("series", "DESS"),
        ("name_pattern", "(?P<scan>.*)"),
        ("num_latents", 16),
        ("activation", "gelu"),
        ("augment", False),
        ("class_weights", "balanced"),
        ("token_fraction", 0.5),
        ("val_fraction", 0.3),
        ("split", "scan"),
        ("split_file", "nowhere.csv"),
        ("grad_accumulation", 2),  # with dropout
        ("dry_run", True),
    ],
)
def test_an_argument_that_the_checkpoint_was_not_made_with_is_refused(edited, capsys, name, value):
    error = refusal(edited({name: value}), capsys, *MORE)
    assert f"args.json: {name} is " in error and "last.pt was made with" in error


@pytest.mark.slow
def test_a_run_goes_on_again_and_again_with_an_image_that_has_changed(
    edited, knees, tmp_path, capsys
):
    """What last.pt was made with is what counts, whatever args.json says of the first images."""
    folder, moved = edited(), tmp_path / "knees"
    shutil.copytree(knees, moved)
    image = sorted(moved.iterdir())[0]
    Image.open(image).point(lambda grey: 255 - grey).save(image)
    for epochs, said in ((4, "warning: the images are not exactly"), (5, "the images are those")):
        more = ["--data-dir", str(moved), "--epochs", str(epochs)]
        assert train.main(["--resume", str(folder), *more]) == 0
        assert said in capsys.readouterr().out


def test_a_split_that_was_edited_is_refused(edited, capsys):
    folder = edited()
    text = (folder / "split.csv").read_text()
    rows = text.splitlines()
    tested = next(row.split(",")[2] for row in rows if row.startswith("test,"))  # a patient
    moved = [row.replace("test,", "train,") if tested in row else row for row in rows]
    kept = next(row.split(",")[2] for row in rows if row.startswith("train,"))
    moved = [row.replace("train,", "test,") if kept in row else row for row in moved]
    (folder / "split.csv").write_text("\n".join(moved) + "\n")
    assert "other labels, names or subsets" in refusal(folder, capsys, *MORE)


@pytest.mark.slow
@pytest.mark.parametrize("name, value", [("image_size", [20, 20]), ("lr", 0.5), ("depth", 3)])
def test_a_checkpoint_of_before_arguments_were_kept_says_what_it_can(
    edited, whole_run, capsys, name, value
):
    folder = edited({name: value})
    for path in (folder / "last.pt", folder / "best.pt"):
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["arguments"], checkpoint["data"]
        torch.save(checkpoint, path)
    assert f"args.json: {name} is " in refusal(folder, capsys, *MORE)
    shutil.copy(whole_run / "args.json", folder)
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole_run)


@pytest.mark.parametrize(
    "name, value", [("arguments", 5), ("arguments", {"seed": torch.zeros(3)}), ("data", [1])]
)
def test_what_a_foreign_checkpoint_says_of_arguments_is_one_line(edited, capsys, name, value):
    folder = edited()
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**checkpoint, name: value}, folder / "last.pt")
    assert "last.pt" in refusal(folder, capsys, *MORE)


@pytest.mark.parametrize("lost", ["missing", "a pipe", "truncated", "older"])
@pytest.mark.parametrize("last_is_best", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_whose_best_checkpoint_is_lost_is_not_trained_on(edited, capsys, lost, last_is_best):
    """It could not be tested honestly. Where last.pt is the same, that is said."""
    folder = edited()
    best, last = folder / "best.pt", folder / "last.pt"
    checkpoint = torch.load(last, weights_only=True)
    for row, loss in zip(checkpoint["progress"]["rows"], (2, 1, 3), strict=True):
        row["val_loss"] = loss * (0.1 if last_is_best and loss == 3 else 1.0)
    torch.save(checkpoint, last)
    best.unlink()
    if lost == "a pipe":
        os.mkfifo(best)
    elif lost == "truncated":
        best.write_bytes(last.read_bytes()[:3000])
    elif lost == "older":
        del checkpoint["progress"]["rows"][1:]
        torch.save(checkpoint, best)
    assert train.main(["--resume", str(folder), *MORE]) == 2
    error = capsys.readouterr().err
    said = {"missing": "No such file", "a pipe": lost, "truncated": lost, "older": "another run"}
    epoch = 3 if last_is_best else 2
    assert f"{best}: " in error and said[lost] in error and len(error.splitlines()) == 1
    assert f"expected the checkpoint of epoch {epoch}, the best so far" in error
    if last_is_best:
        assert f"put a copy of {last}, which is the same, in its place" in error
        best.unlink(missing_ok=True)
        shutil.copy(last, best)
        assert train.main(["--resume", str(folder), *MORE]) == 0
    else:
        assert "put it back, or start a new run" in error


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "no last.pt", "too long"])
def test_what_is_no_run_is_one_line(edited, capsys, kind):
    folder = edited() if kind != "too long" else Path("x" * 300)
    if kind != "too long":
        (folder / "last.pt").unlink()
    if kind == "a pipe":
        os.mkfifo(folder / "last.pt")
    elif kind == "a folder":
        (folder / "last.pt").mkdir()
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(folder)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.splitlines()) == 1
    assert f"{folder}" in error and kind in error and "nothing to resume from" in error


@pytest.mark.parametrize("rows", [[5], [{"lr": "x"}], [{}]], ids=str)
def test_rows_of_metrics_that_are_none_are_refused(edited, capsys, rows):
    folder = edited()
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    checkpoint["progress"]["rows"] = rows
    torch.save(checkpoint, folder / "last.pt")
    assert "last.pt" in refusal(folder, capsys, *MORE)


@pytest.mark.slow
def test_a_run_is_gone_on_with_from_any_folder(tmp_path, monkeypatch, capsys):
    """Its paths are those that were typed, where they were typed; files may be named otherwise."""
    write_knees(tmp_path / "knees", patients=4, slices=4)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = ["--data-dir", "knees", *TINY, "--epochs", "1"]
    assert train.main([*arguments, "--output-dir", "first"]) == 0
    again = [*arguments, "--split-file", "first/split.csv", "--output-dir", "run"]
    assert train.main(again) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    same = ["--split-file", "../knees/../first/split.csv", "--output-dir", "../run"]
    assert train.main(["--resume", "../run", "--epochs", "2", *same]) == 0
    assert "next: python predict.py ../run/best.pt ../knees/" in capsys.readouterr().out
    assert not list((tmp_path / "elsewhere").iterdir())  # the cache is where it was
    monkeypatch.chdir(tmp_path)
    assert train.main(["--resume", "run", "--epochs", "3"]) == 0
    with pytest.raises(SystemExit):
        train.main(["--resume", "run", "--split-file", "other.csv"])
    error = capsys.readouterr().err
    assert f"--split-file {tmp_path / 'other.csv'} (the run was started with --split-file" in error


@pytest.mark.parametrize("flag", ["--dry-run", "--amp", "--echo 2"])
def test_flags_are_named_as_they_are_typed(whole_run, capsys, flag):
    with pytest.raises(SystemExit):
        train.main(["--resume", str(whole_run), *flag.split()])
    error = capsys.readouterr().err
    with_what = "with --no-amp" if flag == "--amp" else "without it"
    assert f"error: {flag} (the run was started {with_what}): can't be changed" in error


def test_edited_arguments_are_those_of_the_whole_run(whole_run):
    """What is edited above is what the run was not made with."""
    record = json.loads((whole_run / "args.json").read_text())["arguments"]
    assert record["augment"] is True and record["ff_dropout"] and len(FLAGS) > len(TINY)
