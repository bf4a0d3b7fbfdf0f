"""Attention maps and saliency: what they give, and that they leave no trace."""

import pytest
import torch
from PIL import Image
from test_perceiver import CPU, GRIDS, randomised
from torch.nn.functional import layer_norm
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import perceiver_pytorch_like
from dataset import list_slices, load_dataset
from evaluation import explain, plots
from evaluation.explain import attention_maps, saliency
from evaluation.predictions import predict
from perceiver import fourier_positions


def by_hand(model, images, maps=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of all iterations and the last latents, from keys and values as they are defined.

    With `maps`, the values are weighed with those, and no weights are computed.
    """
    heads, dim_head = model.config["cross_heads"], model.config["cross_dim_head"]
    positions = fourier_positions(
        tuple(images.shape[2:]), model.config["max_freq"], model.config["num_freq_bands"], CPU
    )
    tokens = torch.cat([images.flatten(2).mT, positions.expand(len(images), -1, -1)], dim=2)
    x, used = model.latents.expand(len(images), -1, -1), []
    for iteration in range(model.config["depth"]):
        block = model.blocks[iteration] if iteration < len(model.blocks) else model.blocks[-1]
        cross = block.cross_attention
        normed = layer_norm(tokens, tokens.shape[2:], cross.token_scale, cross.token_shift)
        queries = layer_norm(x, x.shape[2:], cross.norm.weight, cross.norm.bias)
        q, k, v = (
            (inputs @ to.weight.T).unflatten(2, (heads, dim_head)).transpose(1, 2)
            for inputs, to in [(queries, cross.to_q), (normed, cross.to_k), (normed, cross.to_v)]
        )  # (batch, heads, latents or tokens, dim_head)
        if maps is None:
            used.append((q @ k.mT / dim_head**0.5).softmax(dim=3))
        else:
            used.append(maps[:, iteration].flatten(3))
        read = (used[-1] @ v).transpose(1, 2).flatten(2)
        x = x + read @ cross.to_out.weight.T + cross.to_out.bias
        x = block.latent_layers(x)
    return torch.stack(used, dim=1), x


@pytest.mark.parametrize("cross_dim_head", [64, 6])  # tokens as they are, keys and values
@pytest.mark.parametrize("cross_heads", [1, 3])
@pytest.mark.parametrize("weight_tie_layers", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_attention_maps_are_the_weights_of_the_forward_pass(
    short_blocks, reads, axes, weight_tie_layers, cross_heads, cross_dim_head
):
    model = randomised(
        input_axis=axes,
        input_channels=2,
        weight_tie_layers=weight_tie_layers,
        cross_heads=cross_heads,
        cross_dim_head=cross_dim_head,
    )
    images = torch.randn(3, 2, *GRIDS[axes])
    maps = attention_maps(model, images)
    assert maps.shape == (3, 3, cross_heads, 12, *GRIDS[axes])
    assert bool(reads) == (cross_dim_head == 64)
    # Relative too: the mean weight is 0.01, but a wrong one must not hide below a tolerance.
    expected, _ = by_hand(model, images)
    torch.testing.assert_close(maps.flatten(4), expected, atol=1e-6, rtol=1e-4)
    assert expected.std() > 1e-3  # not all alike
    torch.testing.assert_close(maps.flatten(4).sum(dim=4), torch.ones(3, 3, cross_heads, 12))

    average = attention_maps(model, images, average=True)
    torch.testing.assert_close(average, maps.mean(dim=(2, 3)), atol=1e-7, rtol=1e-5)

    _, latents = by_hand(model, images, maps)
    forward = model(images, return_embeddings=True)
    torch.testing.assert_close(latents, forward, atol=1e-5, rtol=1e-5)


def test_averaged_attention_maps_never_hold_the_full_array(short_blocks):
    """Nor does the full array cost more than once itself: what is written is written in place."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not function.is_view and result is not args[0]:
                self.elements = max(self.elements, result.numel())
            return result

    model = randomised(num_latents=200, depth=2, cross_heads=2)
    images = torch.randn(2, 1, 40, 50)
    with Largest() as averaged:
        attention_maps(model, images, average=True)
    assert averaged.elements == 2 * 40 * 50 * 32  # the tokens; one sample has 800,000 weights
    with Largest() as full:
        assert attention_maps(model, images).numel() == full.elements


def modes_of(model) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("inspect", [attention_maps, saliency])
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


@pytest.mark.slow
def test_montage_is_in_the_order_of_slices_whatever_that_of_the_paths(tmp_path, monkeypatch):
    """Each slice has a grey of its own; the paths come as a shell's glob gives them."""
    folder, numbers = tmp_path / "knees", range(12)
    folder.mkdir()
    (tmp_path / "drawn").mkdir()
    for number in numbers:
        grey = Image.new("L", (12, 10), 20 * number)
        grey.save(folder / f"OAI9000001_BaseLine_3_00000_SAG_3D_DESS_WE_LEFT.nii.gz_{number}.png")
    paths = sorted(folder.iterdir())
    assert [path.stem.rpartition("_")[2] for path in paths[:4]] == ["0", "1", "10", "11"]
    model = randomised(num_classes=2)
    model.preprocessing |= {"image_size": [10, 12]}
    montages = []
    monkeypatch.setattr(plots, "draw_montage", lambda *args: montages.append(args))
    for given in (paths, paths[::-1]):
        listing = list_slices(given)
        dataset = load_dataset(listing, (10, 12), tmp_path / "cache")
        montages.clear()
        predictions = predict(model, dataset)
        explain.draw_attention(model, predictions, ["ok"], tmp_path / "drawn", workers=1)
        ((_, labels, images, maps, *_),) = montages
        assert [label.partition(":")[0] for label in labels] == list(map(str, numbers))
        assert [int(image.mean()) for image in images] == [20 * number for number in numbers]
        for i, s in enumerate(predictions.samples):  # what is said of each is its own
            assert labels[s.number].endswith(f" {predictions.probabilities[i, 1]:.3f}")
            image = model.normalise(dataset.batch(torch.tensor([i])))
            own = attention_maps(model, image, average=True)[0, -1]
            assert maps[s.number] == pytest.approx(own.numpy(), rel=1e-4)
