"""Bugs, planted: each ends in a traceback. What a user can cause is one line, in every program."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from conftest import TINY
from torch.nn import Sequential

import dataset
import predict
import train
from common.program import MissingPackage, UserError
from perceiver import CheckpointError, ConfigError, FeedForward
from scans import images, listing
from scans.slices import DataError

ROOT = Path(__file__).parent.parent
PROGRAMS = ["train.py", "predict.py", "dataset.py", "dataset.py --write-slices"]
main_of = {"train.py": train.main, "predict.py": predict.main, "dataset.py": dataset.main}


@pytest.fixture
def arguments_of(finished_run, knees, tmp_path) -> Callable[[str], list[str]]:
    """What each program is run with; nothing is kept of slices that were decoded before."""
    cache = ["--cache-dir", str(tmp_path / "cache")]
    size = ["--image-size", "16", "16", "--contact-sheet", str(tmp_path / "sheet.png")]
    run = ["--output-dir", str(tmp_path / "run"), "--epochs", "1"]
    known = {
        "train.py": ["--data-dir", str(knees), *TINY, *run, *cache],
        "predict.py": [str(finished_run / "best.pt"), str(knees), "-o", str(tmp_path / "out")],
        "dataset.py": [str(knees), *size, *cache],
        "dataset.py --write-slices": [str(knees), "--write-slices", str(tmp_path / "slices")],
    }
    return known.__getitem__


def assert_traceback(program: str, arguments: list[str], bug: type[Exception], capsys) -> None:
    with pytest.raises(bug) as caught:
        main_of[program.split()[0]](arguments)
    assert caught.type is bug, "no error type of ours was made of it"
    assert "knee" not in capsys.readouterr().err, "no file of the user is blamed"


def assert_line(program: str, arguments: list[str], code: int, text: str, capsys) -> None:
    assert main_of[program.split()[0]](arguments) == code
    assert capsys.readouterr().err.splitlines() == [f"{program.split()[0]}: {text}"]


# ---- bugs ----------------------------------------------------------------------------------------


def misspelt_resize(image, image_size):
    return image.resizee(image_size)


def mismatched(*_, **__):
    return np.ones(3) + np.ones(4)


def not_a_number(*_, **__):
    return int("x")


@pytest.mark.parametrize("program", PROGRAMS[:3])
def test_a_typo_in_the_decoder_blames_no_file(
    program, arguments_of, monkeypatch, capsys, in_this_process
):
    monkeypatch.setattr(images, "resize", misspelt_resize)
    assert_traceback(program, arguments_of(program), AttributeError, capsys)


def test_a_typo_in_the_reader_blames_no_file_that_is_to_be_written(
    arguments_of, monkeypatch, tmp_path, capsys, in_this_process
):
    def misspelt(image, mode):
        return image.converrt(mode)

    monkeypatch.setattr(images.Image.Image, "convert", misspelt)
    program = "dataset.py --write-slices"
    assert_traceback(program, arguments_of(program), AttributeError, capsys)
    assert not (tmp_path / "slices").exists()


@pytest.mark.parametrize("reduction", ["sum", "mean"], ids=["training", "validation"])
def test_a_batch_of_a_wrong_size_is_a_bug(reduction, arguments_of, monkeypatch, capsys):
    usual = F.cross_entropy

    def wrong_size(logits, labels, *more, **flags):
        labels = labels[:-1] if flags.get("reduction", "mean") == reduction else labels
        return usual(logits, labels, *more, **flags)

    monkeypatch.setattr(F, "cross_entropy", wrong_size)
    assert_traceback("train.py", arguments_of("train.py"), ValueError, capsys)


@pytest.mark.parametrize(
    "program, function",
    [
        pytest.param("train.py", "evaluation.plots.draw_roc", marks=pytest.mark.slow),
        ("train.py", "evaluation.curves.draw_curves"),
        ("predict.py", "evaluation.plots.draw_montage"),
        ("dataset.py", "scans.overview.draw_contact_sheet"),
    ],
)
def test_a_bug_in_a_picture(program, function, arguments_of, monkeypatch, capsys):
    monkeypatch.setattr(function, mismatched)
    more = ["--attention", "attention"] if program == "predict.py" else []
    if more:  # one slice is enough
        checkpoint, folder, *rest = arguments_of(program)
        more = [checkpoint, str(sorted(Path(folder).iterdir())[0]), *rest, *more]
    assert_traceback(program, more or arguments_of(program), ValueError, capsys)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_bug_in_the_lister(program, arguments_of, monkeypatch, capsys):
    monkeypatch.setattr(listing, "walk", not_a_number)
    assert_traceback(program, arguments_of(program), ValueError, capsys)


@pytest.mark.slow
def test_a_bug_ends_a_program_with_a_traceback_and_not_with_exit_2(arguments_of):
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from scans import cache\n"
        "cache.positions_by_scan = lambda slices: slices.misspelt()\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    started = []
    for program in PROGRAMS[:3]:
        command = [sys.executable, "-c", code, str(ROOT / program), *arguments_of(program)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in started:
        error = process.communicate(timeout=120)[1].splitlines()
        assert process.returncode == 1
        assert any(line.startswith("Traceback") for line in error)
        assert error[-1].startswith("AttributeError: ") and "misspelt" in error[-1]


def failing_layers(error: Exception):
    def forward(self, x):
        raise error

    return forward


def test_what_compiling_finds_wrong_in_the_code_is_a_bug(arguments_of, monkeypatch, capsys):
    from torch._dynamo.exc import TorchRuntimeError

    monkeypatch.setattr(FeedForward, "forward", failing_layers(TorchRuntimeError("shapes differ")))
    monkeypatch.setattr(Sequential, "compile", lambda self: None)
    arguments = [*arguments_of("train.py"), "--compile"]
    assert_traceback("train.py", arguments, TorchRuntimeError, capsys)


# ---- what a user can cause -----------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "error, code, text",
    [
        (UserError("name another"), 2, "name another"),
        (DataError("knee.png: damaged"), 2, "knee.png: damaged"),
        (MissingPackage("needs: pip install it"), 2, "needs: pip install it"),
        (
            PermissionError(errno.EACCES, "Permission denied", "knees"),
            2,
            "knees: Permission denied",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.csv"),
            1,
            "out.csv: No space left on device; what was there is whole",
        ),
        (FileExistsError("out exists; name a new folder"), 2, "out exists; name a new folder"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "",
)
def test_what_a_user_can_mend_is_one_line(
    program, error, code, text, arguments_of, monkeypatch, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(listing, "walk", fail)
    assert_line(program, arguments_of(program), code, text, capsys)


def test_a_compiler_that_is_missing_is_one_line_with_its_reason(arguments_of, monkeypatch, capsys):
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    error = InductorError(InvalidCxxCompiler(), None)
    monkeypatch.setattr(FeedForward, "forward", failing_layers(error))
    monkeypatch.setattr(Sequential, "compile", lambda self: None)
    arguments = [*arguments_of("train.py"), "--compile"]
    assert train.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("train.py: --compile: InvalidCxxCompiler: No working C++ compiler found")
    assert line.endswith("; leave it out\n") and line.count("\n") == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_the_system_says_of_no_file_is_a_bug(program, arguments_of, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(listing, "walk", fail)
    with pytest.raises(OSError, match="Invalid argument"):
        main_of[program.split()[0]](arguments_of(program))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "program, error, is_line",
    [
        ("train.py", ConfigError("depth must be 1 or more"), True),
        ("train.py", CheckpointError("last.pt: damaged"), True),
        ("predict.py", CheckpointError("best.pt: damaged"), True),
        # No flag of these is an argument of a model: only a bug can get there.
        ("predict.py", ConfigError("depth must be 1 or more"), False),
        ("dataset.py", ConfigError("depth must be 1 or more"), False),
    ],
    ids=str,
)
def test_errors_of_the_model_are_lines_where_a_user_names_a_model(
    program, error, is_line, arguments_of, monkeypatch, capsys
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(listing, "walk", fail)
    if is_line:
        assert_line(program, arguments_of(program), 2, str(error), capsys)
    else:
        assert_traceback(program, arguments_of(program), type(error), capsys)
