"""Learning rates, optimizers, averaged weights and mixed samples, against PyTorch and by hand."""

import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FLAGS, assert_same_run
from torch.optim import lr_scheduler

import train
import training.epoch
from benchmarks import references
from perceiver import Perceiver
from training import recipe
from training.arguments import DEMO, OF_SCANS, RECIPES
from training.augment import Augmentation
from training.epoch import Target, summed_loss
from training.lamb import Lamb
from training.recipe import draw_mix, learning_rate, parameter_groups, update_average

EVERYTHING = (
    "--optimizer lamb --lr 0.01 --weight-decay 0.1 --schedule constant-cosine --warmup-epochs 0.5 "
    "--clip-gradient 1 --label-smoothing 0.1 --mixup 0.4 --ema 0.9 --augment "
    "--augment-strength 1.5 --bend 0.05"
).split()
PERCEIVER = dict(num_latents=3, latent_dim=8, latent_heads=2, latent_dim_head=4, cross_dim_head=8)


def small_model(seed: int = 0) -> Perceiver:
    torch.manual_seed(seed)
    return Perceiver(2, 4.0, 2, **PERCEIVER)


# ---- learning rate -------------------------------------------------------------------------------


def rates(epochs: int = 4, steps: int = 5, **changed) -> list[float]:
    """Ours of each step."""
    usual = dict(lr=0.1, lr_decay=0.9, schedule="exponential", epochs=epochs, warmup_epochs=0.0)
    args = SimpleNamespace(**usual | changed)
    return [
        learning_rate(args, epoch, step, steps)
        for epoch in range(1, epochs + 1)
        for step in range(steps)
    ]


def rates_of(scheduler, steps: int, **arguments) -> list[float]:
    """PyTorch's of each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule, found = scheduler(optimizer, **arguments), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_exponential_rates_are_those_of_pytorch():
    each = rates_of(lr_scheduler.ExponentialLR, 20, gamma=0.9)
    assert rates(schedule="exponential-steps") == pytest.approx(each)
    assert rates() == pytest.approx([each[epoch] for epoch in range(4) for _ in range(5)])


def test_a_cosine_is_that_of_pytorch():
    each = rates_of(lr_scheduler.CosineAnnealingLR, 20, T_max=20)
    assert rates(schedule="cosine") == pytest.approx(each)


def test_a_constant_cosine_is_constant_for_half_and_then_a_cosine():
    each = rates(schedule="constant-cosine")
    assert each[:10] == [0.1] * 10
    assert each[10:] == pytest.approx(rates_of(lr_scheduler.CosineAnnealingLR, 10, T_max=10))


@pytest.mark.parametrize("schedule", recipe.SCHEDULES)
def test_a_warm_up_rises_in_a_line_and_leaves_the_rest_as_it_is(schedule):
    each = rates(schedule=schedule, lr_decay=1.0, warmup_epochs=1.2)
    assert each[:6] == pytest.approx([0.1 * (i + 1) / 6 for i in range(6)])
    assert each[6] == pytest.approx(0.1) and min(each) > 0
    if schedule == "cosine":
        assert each[6:] == pytest.approx(rates_of(lr_scheduler.CosineAnnealingLR, 14, T_max=14))


# ---- optimizers ----------------------------------------------------------------------------------


def lamb_by_hand(w: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """Algorithm 2 of arXiv:1904.00962, line by line, in float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        update = r + decay * w
        length = np.linalg.norm(update)
        ratio = np.linalg.norm(w) / length if length and np.linalg.norm(w) else 1.0
        w = w - 0.01 * ratio * update
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_lamb_by_hand(decay, start):
    rng = np.random.default_rng(0)
    before, gradients = start * rng.normal(size=(4, 3)), [*rng.normal(size=(7, 4, 3))]
    weight = torch.nn.Parameter(torch.tensor(before))
    optimizer = Lamb([weight], lr=0.01, weight_decay=decay)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    expected = lamb_by_hand(before, gradients, decay)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9)


def test_weights_decay_and_biases_norms_and_latents_do_not():
    model = small_model()
    decaying, others = parameter_groups(model, "adamw")
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for p in decaying} | {id(p) for p in others} == names.keys()
    assert len(decaying) + len(others) == len(names)
    of_others = {names[id(p)] for p in others}
    assert "latents" in of_others and "head.bias" in of_others
    assert all("weight" in names[id(p)] and p.ndim == 2 for p in decaying)
    assert not any("norm" in names[id(p)] or "token_" in names[id(p)] for p in decaying)


@pytest.mark.parametrize("name", references.NETWORKS)
def test_the_same_decays_in_other_models(name):
    like = small_model()
    model = references.Reference(references.NETWORKS[name](like, (8, 8)), like)
    decaying, _ = parameter_groups(model, "adamw")
    names = [name for name, p in model.named_parameters() if any(p is q for q in decaying)]
    assert names and all(name.endswith("weight") for name in names)


def test_a_decay_is_decoupled_from_the_gradient():
    """Without a gradient, a step is w - lr * decay * w and nothing else."""
    args = train.parse_args("--data-dir x --optimizer adamw --weight-decay 0.5 --lr 0.1".split())
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = recipe.new_optimizer(args, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.head.weight.detach(), 0.95 * before["head.weight"])
    assert torch.equal(model.latents.detach(), before["latents"])


# ---- average and mix -----------------------------------------------------------------------------


def test_an_average_takes_what_batch_norm_has_seen():
    model, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    model(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    update_average(average, model, 0.9, steps=1)
    assert average.running_mean.equal(model.running_mean) and average.running_mean.any()


def test_an_average_of_weights_by_hand():
    model, average = small_model(1), small_model(2)
    before = average.head.weight.detach().clone()
    update_average(average, model, 0.999, steps=1)  # of short memory at the start: 2 / 11
    expected = 2 / 11 * before + 9 / 11 * model.head.weight.detach()
    torch.testing.assert_close(average.head.weight.detach(), expected)
    update_average(average, model, 0.999, steps=10**6)
    expected = 0.999 * expected + 0.001 * model.head.weight.detach()
    torch.testing.assert_close(average.head.weight.detach(), expected)


def test_what_is_tested_is_the_average_and_what_goes_on_are_the_weights(knees, tmp_path):
    flags = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *FLAGS]
    assert train.main([*flags, "--ema", "0.99", "--epochs", "1"]) == 0
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["weights"].keys() == last["model"].keys()
    assert not torch.equal(last["weights"]["head.weight"], last["model"]["head.weight"])
    model = Perceiver.from_checkpoint(tmp_path / "run" / "best.pt")
    assert torch.equal(model.head.weight, last["model"]["head.weight"])


@pytest.mark.slow
def test_an_average_counts_the_steps_of_all_epochs(knees, tmp_path, monkeypatch):
    counts, usual = [], update_average

    def update(average, model, decay, steps):
        counts.append(steps)
        usual(average, model, decay, steps)

    monkeypatch.setattr(training.epoch, "update_average", update)
    flags = ["--data-dir", str(knees), "--output-dir", str(tmp_path / "run"), *FLAGS]
    assert train.main([*flags, "--ema", "0.99", "--epochs", "2"]) == 0
    assert counts == [*range(1, len(counts) + 1)] and len(counts) % 2 == 0


def test_a_mix_is_of_the_batch_and_mostly_its_own():
    batch = torch.arange(100, 164)
    mixes = [draw_mix(batch, 0.4, seed) for seed in range(200)]
    assert all(sorted(mix.partners.tolist()) == batch.tolist() for mix in mixes)
    shares = np.array([mix.share for mix in mixes])
    assert shares.min() >= 0.5 and shares.max() <= 1 and len(set(shares)) == 200
    # Of Beta(a, a), the mean of |x - 1/2| is 1 / (4^a a B(a, a)).
    beta = math.gamma(0.4) ** 2 / math.gamma(0.8)
    assert shares.mean() == pytest.approx(0.5 + 1 / (4**0.4 * 0.4 * beta), abs=0.03)
    assert torch.equal(draw_mix(batch, 0.4, 7).partners, mixes[7].partners)
    assert draw_mix(batch, 0.0, 7).share == 1


def test_a_mixed_and_smoothed_loss_is_the_cross_entropy_with_the_mixed_and_smoothed_labels():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    targets = [Target(labels, 0.7), Target(labels.roll(1), 0.3)]
    aim = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels.roll(1), 3)
    aim = 0.9 * aim + 0.1 / 3
    expected = -(aim * logits.log_softmax(dim=1)).sum()
    assert summed_loss(logits, targets, 0.1, None).item() == pytest.approx(expected.item())


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(knees, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "run"
    flags = ["--data-dir", str(knees), "--output-dir", str(folder)]
    assert train.main([*flags, *FLAGS, *EVERYTHING]) == 0
    return folder


@pytest.mark.slow
def test_a_stopped_run_with_everything_ends_like_a_whole_one(whole, knees, tmp_path, monkeypatch):
    folder, calls, usual = tmp_path / "run", [], Augmentation.__call__

    def call(self, *batch):
        calls.append(None)
        if len(calls) == 15:  # two a step, of samples and partners
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, *batch)

    flags = ["--data-dir", str(knees), "--output-dir", str(folder), *FLAGS, *EVERYTHING]
    with monkeypatch.context() as patch:
        patch.setattr(Augmentation, "__call__", call)
        assert train.main(flags) == 128 + signal.SIGTERM
    assert train.main(["--resume", str(folder)]) == 0
    assert_same_run(folder, whole)
    weights = [torch.load(run / "last.pt", weights_only=True)["weights"] for run in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_in_parts_it_is_the_same_batch(knees, tmp_path):
    flags = ["--data-dir", str(knees), *FLAGS, *EVERYTHING, "--epochs", "1", "--ff-dropout", "0"]
    flags += ["--attention-dropout", "0"]
    losses = []
    for parts in ("1", "3"):
        folder = tmp_path / parts
        more = ["--output-dir", str(folder), "--grad-accumulation", parts]
        assert train.main([*flags, *more]) == 0
        rows = torch.load(folder / "last.pt", weights_only=True)["progress"]["rows"]
        losses.append((rows[0]["train_loss"], rows[0]["val_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_where_a_cosine_ends_can_not_be_moved(whole, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--resume", str(whole), "--epochs", "9"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "--epochs 9 (the run was started with --epochs" in error
    assert "--schedule constant-cosine ends where its --epochs do" in error


def test_what_cannot_be_changed_is_named_and_nothing_else(whole_run, capsys):
    with pytest.raises(SystemExit):
        train.main(["--resume", str(whole_run), "--schedule", "cosine"])
    error = capsys.readouterr().err
    assert "error: --schedule cosine (the run was started" in error and "--epochs" not in error


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no array", "another shape", "none"])
def test_damaged_weights_are_named(whole, tmp_path, capsys, damage):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    if damage == "none":
        del checkpoint["weights"]
    elif damage == "no array":
        checkpoint["weights"]["latents"] = 3
    else:
        checkpoint["weights"]["latents"] = torch.zeros(3)
    torch.save(checkpoint, path)
    assert train.main(["--resume", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "weights in training" in line


def test_a_run_of_before_there_were_optimizers_is_gone_on_with_by_adam_alone(
    whole_run, tmp_path, capsys
):
    """Others keep their state in another order; fused ones would write past its end."""
    shutil.copytree(whole_run, tmp_path / "run")
    path, record = tmp_path / "run" / "last.pt", tmp_path / "run" / "args.json"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["arguments"]["optimizer"]
    torch.save(checkpoint, path)
    record.write_text(record.read_text().replace('"optimizer": "adam"', '"optimizer": "adamw"'))
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'optimizer is "adamw", but {path} was made with "adam"' in line


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--weight-decay 0.1", "--weight-decay takes --optimizer adamw or lamb"),
        ("--recipe adamw --optimizer adam", "--recipe adamw sets it: add --weight-decay 0"),
        ("--warmup-epochs 20", "--warmup-epochs 20: expected fewer than --epochs"),
        ("--recipe adamw --lr-decay 0.9", "--lr-decay has no effect on --schedule cosine"),
        ("--mixup 0.2 -b 1", "--mixup mixes the samples of a batch: --batch-size 1 has one alone"),
        ("--augment-strength 2", "--augment-strength takes --augment"),
        ("--bend 0.1", "argument --bend: expected a number from 0 to 0.08, got 0.1"),
        ("--weight-decay 1e39", "argument --weight-decay: expected a number from 0 to 1000, got "),
        ("--ema 1", "argument --ema: expected a number of at least 0 and below 1, got 1"),
        ("--mixup nan", "argument --mixup: expected a number of at least 0, got nan"),
        ("--clip-gradient -1", "argument --clip-gradient: expected a number of at least 0, got -1"),
        ("--optimizer sgd", "argument --optimizer: invalid choice: 'sgd'"),
    ],
)
def test_what_does_not_go_together_is_said(flags, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse_args(["--data-dir", "x", *flags.split()])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


# ---- named recipes -------------------------------------------------------------------------------


def test_a_recipe_changes_defaults_and_named_flags_win():
    args = train.parse_args(["--data-dir", "x", "--recipe", "adamw", "--lr", "0.01"])
    assert (args.optimizer, args.schedule, args.lr) == ("adamw", "cosine", 0.01)
    args = train.parse_args(["--demo", "--recipe", "imagenet"])
    assert (args.optimizer, args.lr, args.clip_gradient) == ("lamb", 4e-3, 10.0)
    assert args.image_size == DEMO["image_size"]
    train.parse_args(["--demo", "--recipe", "adamw"])  # whose --lr-decay nobody named
    args = train.parse_args(["--data-dir", "x", "--recipe", "adamw", "--input", "scan"])
    assert args.query_scale == OF_SCANS["query_scale"]  # measured on scans, as 16 was not


def test_what_help_says_of_a_recipe_does_the_same(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in RECIPES:
        flags = said.split(f"--recipe {name} is ")[1].split(". --recipe")[0].removesuffix(".")
        typed, named = (
            vars(train.parse_args(["--data-dir", "x", *more]))
            for more in (flags.split(), ["--recipe", name])
        )
        assert named | {"recipe": None} == typed


@pytest.mark.slow
def test_a_resumed_run_keeps_its_recipe(knees, tmp_path, capsys):
    flags = ["--data-dir", str(knees), "--output-dir", str(tmp_path), *FLAGS, "--recipe", "adamw"]
    assert train.main([*flags, "--epochs", "2", "--weight-decay", "0.1"]) == 0
    told = "--recipe adamw: --optimizer adamw --lr 0.01 --weight-decay 0.1 --schedule cosine "
    assert told in capsys.readouterr().out
    assert train.parse_args(["--resume", str(tmp_path)]).weight_decay == 0.1
    with pytest.raises(SystemExit):
        train.main(["--resume", str(tmp_path), "--recipe", "imagenet"])
    told = "--recipe imagenet (the run was started with --recipe adamw)"
    assert told in capsys.readouterr().err
