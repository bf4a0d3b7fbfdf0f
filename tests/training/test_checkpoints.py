"""What a run goes on from: odd and hostile files are refused, and so is what changes its result."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FLAGS, assert_same_run
from PIL import Image

import train
from common.files import locked
from perceiver import Perceiver


def change(content: dict, *keys, value) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


@pytest.mark.parametrize(
    "keys, value",
    [
        (["optimizer", "state", 0, "exp_avg"], torch.zeros(3)),  # Adam would write past its end
        (["optimizer", "state", 0, "exp_avg_sq"], float("nan")),
        (["optimizer", "state", 0, "step"], torch.ones((), device="meta")),
        (["optimizer", "state", 0, "exp_avg"], torch.ones(2, 2).to_sparse()),
        (["optimizer", "state", 0, "step"], torch.tensor(-1e30)),
        (["optimizer"], {}),
        (["progress"], {"epoch": "x"}),
        (["progress", "step"], -1),
        (["preprocessing"], [1]),
        (["preprocessing", "mean"], float("nan")),
        (["preprocessing", "image_size"], ["a", "b"]),
        (["config", "depth"], 1),
    ],
    ids=str,
)
def test_a_checkpoint_with_odd_contents_is_refused(whole_run, tmp_path, capsys, keys, value):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    if keys[-1] == "exp_avg_sq":
        value = checkpoint["optimizer"]["state"][0]["exp_avg_sq"] * value
    change(checkpoint, *keys, value=value)
    torch.save(checkpoint, folder / "last.pt")
    assert train.main(["--resume", str(folder), "--epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'last.pt'}: " in error and len(error.splitlines()) == 1


class Hostile:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["hostile", "truncated", "foreign", "infinite"])
def test_an_unusable_checkpoint_is_refused_and_runs_nothing(whole_run, tmp_path, capsys, content):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    folder.mkdir()
    for name in ("args.json", "split.csv", "last.pt"):
        (folder / name).write_bytes((whole_run / name).read_bytes())
    last = folder / "last.pt"
    if content == "hostile":
        last.write_bytes(pickle.dumps({"model": Hostile(mark)}))
    elif content == "truncated":
        last.write_bytes(last.read_bytes()[:-1000])
    elif content == "foreign":
        torch.save({"state_dict": {}}, last)
    else:
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["model"]["latents"][0, 0] = float("inf")
        torch.save(checkpoint, last)
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(last) in error and len(error.splitlines()) == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--lr", "0.5"),
        ("--seed", "1"),
        ("--image-size", "8 8"),
        ("--grad-accumulation", "2"),  # with dropout
        ("--output-dir", "elsewhere"),
        ("--no-augment", ""),
    ],
)
def test_arguments_that_would_change_the_result_are_refused(whole_run, capsys, flag, value):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(whole_run), flag, *value.split()])
    assert stopped.value.code == 2
    assert f"error: {flag}" in capsys.readouterr().err


def test_a_run_folder_is_kept_to_one_process(whole_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    with locked(folder):
        assert train.main(["--resume", str(folder), "--epochs", "4"]) == 2
    assert "another process is training in it" in capsys.readouterr().err
    assert_same_run(folder, whole_run)


@pytest.mark.slow
def test_other_slices_are_refused_and_other_pixels_are_said(whole_run, knees, tmp_path, capsys):
    folder, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole_run, folder)
    shutil.copytree(knees, other)
    path = sorted(other.iterdir())[0]
    Image.new("RGB", (16, 16)).save(path)
    resume = ["--resume", str(folder), "--data-dir", str(other)]
    assert train.main(resume) == 0
    assert "warning: the images are not exactly those" in capsys.readouterr().out
    path.unlink()
    assert train.main(resume) == 2
    assert "127 slices; the run was started with 128" in capsys.readouterr().err


def test_nothing_to_resume_from_is_an_error_and_never_a_fresh_start(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "nothing to resume from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_resumed_run_takes_the_matrix_products_it_took_before(whole_run, tmp_path, monkeypatch):
    """Whatever would be measured now: the two round differently."""
    record = json.loads((whole_run / "args.json").read_text())
    assert set(record["products"]) == {"layers", "reading"}
    folder, taken, usual = tmp_path / "run", [], Perceiver.choose_products

    def choose_products(self, products=None):
        taken.append(products)
        usual(self, products)

    monkeypatch.setattr(Perceiver, "choose_products", choose_products)
    shutil.copytree(whole_run, folder)
    for layers in ("BLAS", "oneDNN"):
        products = {"layers": layers, "reading": "BLAS"}
        (folder / "args.json").write_text(json.dumps({**record, "products": products}))
        taken.clear()
        assert train.main(["--resume", str(folder)]) == 0
        assert taken and all(chosen == products for chosen in taken)
        assert json.loads((folder / "args.json").read_text())["products"] == products


@pytest.mark.slow
def test_a_run_with_a_share_of_the_tokens_goes_on_to_the_bit(knees, tmp_path):
    """Each step draws its own, in the middle of an epoch, too; evaluation reads all."""
    arguments = ["--data-dir", str(knees), *FLAGS, "--token-fraction", "0.3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*arguments, "--output-dir", str(whole)]) == 0
    stop = [*arguments, "--output-dir", str(stopped), "--save-every-steps", "1"]
    with pytest.raises(KeyError), pytest.MonkeyPatch.context() as patch:
        steps, usual = [], torch.optim.Adam.step

        def step(self, *given):
            steps.append(None)
            if len(steps) == 7:
                raise KeyError
            return usual(self, *given)

        patch.setattr(torch.optim.Adam, "step", step)
        train.main(stop)
    assert train.main(["--resume", str(stopped)]) == 0
    assert_same_run(whole, stopped)


@pytest.mark.parametrize("products", ["x", 5, {"layers": "BLAS"}, {"layers": 1, "reading": 2}])
def test_products_that_no_run_writes_are_one_line(whole_run, tmp_path, capsys, products):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    record = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**record, "products": products}))
    assert train.main(["--resume", str(folder), "--epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert "args.json: products are" in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_run_of_before_products_were_kept_keeps_those_of_its_first_resumption(
    whole_run, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    record = json.loads((folder / "args.json").read_text())
    del record["products"]
    (folder / "args.json").write_text(json.dumps(record))
    assert train.main(["--resume", str(folder)]) == 0
    assert set(json.loads((folder / "args.json").read_text())["products"]) == {"layers", "reading"}
