"""An epoch: parts of a batch, weights of classes, and what is not finite."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import FLAGS, TINY

import train
import training.epoch
from dataset import Dataset
from perceiver import Perceiver
from scans.slices import Slice
from training.epoch import Progress, balanced_weights, kept_tokens, train_one_epoch
from training.recipe import Mix


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_it(knees, tmp_path):
    losses = []
    for parts in ("1", "3"):
        folder = tmp_path / parts
        arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *TINY]
        assert train.main([*arguments, "--epochs", "2", "--grad-accumulation", parts]) == 0
        losses.append(torch.load(folder / "last.pt", weights_only=True)["progress"]["rows"])
    for one, three in zip(*losses, strict=True):
        assert one["train_loss"] == pytest.approx(three["train_loss"], abs=1e-5)
        assert one["val_loss"] == pytest.approx(three["val_loss"], abs=1e-5)


def test_weights_that_are_not_finite_are_never_saved(knees, tmp_path, capsys):
    """The gradient was finite; the step after it was too long for float32."""
    folder = tmp_path / "run"
    arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS]
    assert train.main([*arguments, "--lr", "1e39", "--save-every-steps", "1"]) == 1
    assert "weights became non-finite in epoch 1" in capsys.readouterr().err
    Perceiver.from_checkpoint(folder / "last.pt")


def test_a_non_finite_gradient_is_named_and_spoils_nothing(knees, tmp_path, monkeypatch, capsys):
    folder, steps, usual = tmp_path / "run", [], Perceiver.normalise
    gradients, step = [], torch.optim.Adam.step

    def normalise(self, pixels):
        steps.append(None)
        return usual(self, pixels) * (float("nan") if len(steps) == 9 else 1)

    def record(self, *arguments):
        gradients.extend(p.grad for group in self.param_groups for p in group["params"])
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Perceiver, "normalise", normalise)
        patch.setattr(torch.optim.Adam, "step", record)
        code = train.main(["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS])
    error = capsys.readouterr().err
    assert code == 1 and "non-finite in epoch 2, step 2, at learning rate 0.00995" in error
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    named = (folder / "failed_batch.txt").read_text().splitlines()
    assert len(named) == 16 and all(Path(path).exists() for path in named)
    for name in ("last.pt", "best.pt"):
        weights = torch.load(folder / name, weights_only=True)["model"].values()
        assert all(torch.isfinite(tensor).all() for tensor in weights)


# ---- weights of classes --------------------------------------------------------------------------


def unbalanced() -> Dataset:
    """Six slices of class a, three of b, one of c and none of d; two more are of no subset."""
    labels = ["a"] * 6 + ["b"] * 3 + ["c"] + ["d"] * 2
    slices = [Slice(str(i), None, label, "p", "s", i) for i, label in enumerate(labels)]
    pixels = torch.randint(0, 256, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return Dataset(slices, pixels.to(torch.uint8), torch.arange(10), ["a", "b", "c", "d"])


def test_balanced_weights_by_hand():
    weights = balanced_weights(unbalanced())
    assert weights[:3].tolist() == pytest.approx([10 / 24, 10 / 12, 10 / 4])
    assert weights[3].isfinite()  # of a class that is not there; nothing is multiplied by it
    of_each = weights[unbalanced().labels]
    sums = [of_each[:6].sum().item(), of_each[6:9].sum().item()]
    assert sums == pytest.approx([of_each[9].item()] * 2)


@pytest.mark.parametrize("flag, weighted", [([], False), (["--class-weights", "balanced"], True)])
def test_the_loss_is_weighted_where_it_is_asked_for(flag, weighted):
    """By hand, over one batch and its step."""
    torch.manual_seed(0)
    subset, sizes = unbalanced(), dict(num_latents=2, latent_dim=4, latent_heads=1, num_classes=4)
    model = Perceiver(2, 4.0, 1, latent_dim_head=4, **sizes)
    logits = model(model.normalise(subset.pixels[:10])).detach()
    before, labels = model.head.bias.detach().clone(), subset.labels
    weights = torch.tensor([10 / 24, 10 / 12, 10 / 4, 0]) if weighted else torch.ones(4)
    losses = -logits.log_softmax(dim=1)[torch.arange(10), labels] * weights[labels]
    # Of the last bias, the gradient of the loss is the mean of weight * (probability - target).
    gradient = weights[labels, None] * (logits.softmax(dim=1) - F.one_hot(labels, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    args = train.parse_args(["--data-dir", "x", "-b", "10", "--lr", "1", *flag])
    given = balanced_weights(subset) if args.class_weights == "balanced" else None
    progress = Progress()
    train_one_epoch(model, subset, optimizer, progress, args, None, given)
    assert progress.loss_sum == pytest.approx(losses.sum().item(), rel=1e-5)
    change = model.head.bias.detach() - before
    torch.testing.assert_close(change, -gradient.mean(dim=0), atol=1e-6, rtol=1e-4)


def test_a_step_is_of_mixed_samples_smoothed_labels_and_a_clipped_gradient(monkeypatch):
    """By hand, over one batch and its step."""
    torch.manual_seed(0)
    subset, sizes = unbalanced(), dict(num_latents=2, latent_dim=4, latent_heads=1, num_classes=4)
    model = Perceiver(2, 4.0, 1, latent_dim_head=4, **sizes)
    before, labels = copy.deepcopy(model), subset.labels[:10]
    monkeypatch.setattr(
        training.epoch, "draw_mix", lambda batch, *_: Mix((batch + 3) % 10, share=0.7)
    )
    flags = "-b 10 --lr 1 --mixup 0.4 --label-smoothing 0.1 --clip-gradient 0.02".split()
    args = train.parse_args(["--data-dir", "x", *flags])
    optimizer, progress = torch.optim.SGD(model.parameters(), lr=1.0), Progress()
    train_one_epoch(model, subset, optimizer, progress, args, None)

    pixels = subset.pixels[:10].float()
    logits = before(before.normalise(0.7 * pixels + 0.3 * pixels.roll(-3, dims=0)))
    aims = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(labels.roll(-3), 4)
    loss = -((0.9 * aims + 0.1 / 4) * logits.log_softmax(dim=1)).sum()
    (loss / 10).backward()
    norm = torch.stack([p.grad.norm() for p in before.parameters()]).norm()
    assert norm > 0.1 and progress.loss_sum == pytest.approx(loss.item(), rel=1e-5)
    for (name, after), was in zip(model.named_parameters(), before.parameters(), strict=True):
        change = -0.02 / norm * was.grad
        torch.testing.assert_close((after - was).detach(), change, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_run_is_weighted_if_the_flag_says_so_and_stays_so(knees, tmp_path, capsys):
    """Half of the right knees are left out; a weighted run is another one, and resumes as one."""
    shutil.copytree(knees, tmp_path / "knees")
    for path in (tmp_path / "knees").glob("*RIGHT*_[4-7].png"):
        path.unlink()
    losses = []
    arguments = ["--data-dir", str(tmp_path / "knees"), *TINY, "--epochs", "1"]
    for name, flag in (("plain", []), ("none", ["none"]), ("balanced", ["balanced"])):
        flag = ["--class-weights", *flag] if flag else []
        assert train.main([*arguments, "--output-dir", str(tmp_path / name), *flag]) == 0
        progress = torch.load(tmp_path / name / "last.pt", weights_only=True)["progress"]
        losses.append(progress["rows"][0]["train_loss"])
    assert losses[0] == losses[1] and abs(losses[2] - losses[0]) > 1e-3
    capsys.readouterr()
    record = json.loads((tmp_path / "plain" / "args.json").read_text())
    del record["arguments"]["class_weights"]  # as of a version that had no such flag
    (tmp_path / "plain" / "args.json").write_text(json.dumps(record))
    for name, other in (("plain", "balanced"), ("none", "balanced"), ("balanced", "none")):
        with pytest.raises(SystemExit) as stopped:
            train.main(["--resume", str(tmp_path / name), "--class-weights", other])
        assert stopped.value.code == 2
        assert (
            f"error: --class-weights {other} (the run was started with" in capsys.readouterr().err
        )


# ---- less than all tokens ------------------------------------------------------------------------


def test_a_share_of_the_tokens_follows_from_the_seed():
    cpu, size = torch.device("cpu"), (1, 9, 14)
    first, again, other = (kept_tokens(size, 0.25, seed, cpu) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first) == len(set(first.tolist())) == round(0.25 * 126)
    assert torch.equal(first, first.sort().values) and first.min() >= 0 and first.max() < 126
    assert kept_tokens(size, 1.0, 1, cpu) is None
    assert len(kept_tokens(size, 1e-9, 1, cpu)) == 1


@pytest.mark.slow
def test_parts_of_a_batch_read_the_same_tokens(knees, tmp_path):
    losses = []
    for parts in ("1", "3"):
        folder = tmp_path / parts
        arguments = ["--data-dir", str(knees), "--output-dir", str(folder), *TINY]
        arguments += ["--epochs", "2", "--token-fraction", "0.3", "--grad-accumulation", parts]
        assert train.main(arguments) == 0
        losses.append(torch.load(folder / "last.pt", weights_only=True)["progress"]["rows"])
    for one, three in zip(*losses, strict=True):
        assert one["train_loss"] == pytest.approx(three["train_loss"], abs=1e-4)
