"""evaluation/explain.py and the attention maps: what they give, and that they leave no trace."""

import pytest
import torch
from test_perceiver import GRIDS, randomised

from benchmarks.peers import perceiver_pytorch_like
from evaluation.explain import saliency
from perceiver import Perceiver


def modes_of(model) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("inspect", [Perceiver.attention_maps, saliency])
def test_looking_inside_leaves_no_trace(inspect):
    """Logits and gradients bit for bit, modes, `.grad`; the same result whatever the mode."""
    model = randomised(attention_dropout=0.3, ff_dropout=0.3).train()
    model.blocks[0].eval()  # frozen by someone
    modes, images = modes_of(model), torch.randn(2, 1, 9, 14)

    def step():
        torch.manual_seed(1)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        return [logits, *(parameter.grad for parameter in model.parameters())]

    before = step()
    model.zero_grad()
    result = inspect(model, images)
    assert modes_of(model) == modes and not result.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad and images.grad is None
    for old, new in zip(before, step(), strict=True):
        assert torch.equal(old, new)

    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected"):
            inspect(model, wrong)
    assert modes_of(model) == modes

    wanted = images.clone().requires_grad_()
    assert torch.equal(inspect(model, wanted), result) and wanted.grad is None
    with torch.no_grad():
        assert torch.equal(inspect(model.eval(), images), result)
    with torch.inference_mode():
        assert torch.equal(inspect(model, images.clone()), result)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inspect(model, images), result)


@pytest.mark.parametrize("checkpoint_latents", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_saliency_is_the_gradient_of_the_targets_logit(axes, checkpoint_latents):
    """Against perceiver-pytorch's; ours in training mode, where dropout must not act."""
    model = randomised(
        input_axis=axes,
        input_channels=2,
        num_classes=4,
        attention_dropout=0.3,
        ff_dropout=0.3,
        checkpoint_latents=checkpoint_latents,
    )
    peer, images = perceiver_pytorch_like(model).eval(), torch.randn(3, 2, *GRIDS[axes])
    with torch.no_grad():
        predicted = peer(images.movedim(1, -1)).argmax(dim=1)
    chosen = torch.tensor([0, 3, 1], dtype=torch.uint8)
    for target, classes in [(None, predicted), (2, torch.tensor([2, 2, 2])), (chosen, chosen)]:
        pixels = images.clone().requires_grad_()
        logits = peer(pixels.movedim(1, -1))
        sum(row[int(label)] for row, label in zip(logits, classes, strict=True)).backward()
        expected = pixels.grad.abs().max(dim=1).values
        found = saliency(model, images, target)
        assert found.shape == (3, *GRIDS[axes]) and found.min() >= 0
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_saliency_equals_finite_differences():
    model = randomised().double()
    images, step = torch.randn(1, 1, 3, 4, dtype=torch.float64), 1e-5
    found = saliency(model, images, target=1)
    for row in range(3):
        for column in range(4):
            shift = torch.zeros_like(images)
            shift[0, 0, row, column] = step
            slope = (model(images + shift) - model(images - shift))[0, 1] / (2 * step)
            torch.testing.assert_close(found[0, row, column], slope.abs(), atol=0, rtol=1e-4)


@pytest.mark.parametrize(
    "target",
    [2, -1, 0.5, True, torch.tensor([0]), torch.tensor([0, 1, 1]), torch.tensor([0, 2])],
)
def test_target_that_is_no_class_is_refused(target):
    model, images = randomised(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"target a class from 0 to 1, or one .* 2 images, got "):
        saliency(model, images, target)
