"""perceiver.py against perceiver-pytorch, against its own definition, and against wrong input."""

import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm

import perceiver
from benchmarks.peers import peer_names, perceiver_pytorch_like
from perceiver import CheckpointError, ConfigError, Perceiver, ReadTokens, fourier_positions

SMALL = dict(num_latents=12, latent_dim=24, depth=3, latent_heads=2, latent_dim_head=10)
GRIDS = {1: (97,), 2: (9, 14), 3: (5, 6, 7)}
CPU = torch.device("cpu")


def randomised(**arguments) -> Perceiver:
    """A small model in which no parameter, not even of LayerNorm, has its starting value."""
    torch.manual_seed(0)
    model = Perceiver(**{**SMALL, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("self_per_cross_attn", [1, 2])
@pytest.mark.parametrize("cross_heads", [1, 3])
@pytest.mark.parametrize("weight_tie_layers", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_logits_and_gradients_equal_perceiver_pytorch(
    axes, weight_tie_layers, cross_heads, self_per_cross_attn
):
    model = randomised(
        input_axis=axes,
        input_channels=2,
        weight_tie_layers=weight_tie_layers,
        cross_heads=cross_heads,
        self_per_cross_attn=self_per_cross_attn,
        num_classes=4,
    )
    peer = perceiver_pytorch_like(model)
    images = torch.randn(3, 2, *GRIDS[axes])
    labels = torch.tensor([0, 3, 1])

    ours, theirs = model(images), peer(images.movedim(1, -1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.nn.functional.cross_entropy(ours, labels).backward()
    torch.nn.functional.cross_entropy(theirs, labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = peer_names(gradients, model.config["depth"])
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("products", ["BLAS", "oneDNN"])
def test_default_model_equals_perceiver_pytorch(monkeypatch, products):
    """At the experiment's sizes layers take other paths (oneDNN) than at those above."""
    torch.manual_seed(0)
    model, taken = Perceiver(depth=2), set()
    model.choose_products({"layers": products, "reading": products})

    usual = perceiver.onednn_product

    def onednn_product(*operands):
        taken.add(len(operands))  # a layer's has a bias
        return usual(*operands)

    monkeypatch.setattr(perceiver, "onednn_product", onednn_product)
    peer = perceiver_pytorch_like(model)
    images = torch.randn(2, 1, 40, 70)
    ours, theirs = model(images), peer(images.movedim(1, -1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours[:, 0].sum().backward()
    theirs[:, 0].sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = peer_names(gradients, model.config["depth"])
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)
    assert len(taken) == (2 if products == "oneDNN" else 0)


@pytest.mark.parametrize("slow", ["BLAS", "oneDNN"])
def test_the_products_that_are_faster_are_taken(monkeypatch, slow):
    """Each is slowed down in turn, on a model whose first call is large enough to measure them."""

    def slowed(usual):
        def product(*operands, **named):
            time.sleep(0.02)
            return usual(*operands, **named)

        return product

    if slow == "oneDNN":
        monkeypatch.setattr(perceiver, "onednn_product", slowed(perceiver.onednn_product))
    else:
        for module, name in ((perceiver.F, "linear"), (torch, "bmm")):
            monkeypatch.setattr(module, name, slowed(getattr(module, name)))
    model = Perceiver(depth=1, num_latents=256, latent_dim=64)
    model(torch.randn(1, 1, 4, 4))
    assert model.products is None  # too small to be worth it
    model(torch.randn(1, 1, 60, 60))
    faster = "BLAS" if slow == "oneDNN" else "oneDNN"
    assert model.products == {"layers": faster, "reading": faster}
    assert model.blocks[0].latent_layers[0].expand.onednn == (faster == "oneDNN")
    assert model.blocks[0].cross_attention.onednn == (faster == "oneDNN")


@pytest.mark.parametrize(
    "channels, positions", [(1, True), (3, True), (5, False)], ids=["one", "three", "no positions"]
)
@pytest.mark.parametrize("offset, contrast", [(0, 1), (1000, 1), (0, 0), (-3, 1000), (7, 1e-4)])
def test_tokens_are_standardised_whatever_the_pixels(channels, positions, offset, contrast):
    """In closed form as by LayerNorm, in double precision; a leading 1 before them."""
    model = randomised(input_channels=channels, fourier_encode_data=positions)
    images = offset + contrast * torch.randn(2, channels, 9, 14)
    features = images.double().flatten(2).mT
    if positions:
        encoded = fourier_positions((9, 14), 10.0, 6, CPU).double().expand(2, -1, -1)
        features = torch.cat([features, encoded], dim=2)
    expected = layer_norm(features, features.shape[2:])
    tokens = model.tokens(images)
    assert (tokens[..., 0] == 1).all() and tokens.shape[2] % 16 == 0
    width = features.shape[2]
    # What float32 can hold of a small contrast on a large offset.
    exact = 1e-5 if positions or offset == 0 else 1e-3
    torch.testing.assert_close(tokens[..., 1 : 1 + width].double(), expected, atol=exact, rtol=0)


def test_kept_tokens_are_those_that_all_samples_and_iterations_read(monkeypatch):
    model, images, read = randomised(), torch.randn(3, 1, 9, 14), []
    usual = perceiver.read_tokens
    monkeypatch.setattr(
        perceiver, "read_tokens", lambda q, t, onednn: (read.append(t), usual(q, t, onednn))[1]
    )
    kept = torch.tensor([0, 5, 77, 125])
    model(images, kept=kept)
    assert len(read) == 3 and all(tokens is read[0] for tokens in read)
    torch.testing.assert_close(read[0], model.tokens(images)[:, kept], atol=0, rtol=0)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("cross_heads", [1, 3])
def test_direct_read_equals_keys_and_values(short_blocks, reads, axes, cross_heads):
    """An input that wants a gradient takes the plain path: the same numbers, and its gradient."""
    model = randomised(input_axis=axes, cross_heads=cross_heads)
    images = torch.randn(3, 1, *GRIDS[axes])
    direct = model(images)
    direct.square().sum().backward()
    assert len(reads) == model.config["depth"]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    images.requires_grad_()
    plain = model(images)
    plain.square().sum().backward()
    assert len(reads) == model.config["depth"]
    torch.testing.assert_close(direct, plain, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)

    theirs = images.detach().clone().requires_grad_()
    perceiver_pytorch_like(model)(theirs.movedim(1, -1)).square().sum().backward()
    torch.testing.assert_close(images.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, training, expected",
    [
        ({}, True, True),
        ({"cross_dim_head": 27}, True, True),
        ({"cross_dim_head": 9}, True, True),  # 12 latents, 27 features: 12 * 27 <= 9 * (12 + 27)
        ({"cross_dim_head": 8}, True, False),  # keys and values are so narrow that they pay
        ({"cross_dim_head": 26, "num_latents": 800}, True, False),
        ({"num_freq_bands": 40, "num_latents": 64}, True, True),  # as many latents as a head wide
        ({"num_freq_bands": 40, "num_latents": 512}, True, False),
        ({"attention_dropout": 0.1}, True, False),
        ({"attention_dropout": 0.1}, False, True),
        ({"ff_dropout": 0.1}, True, True),
    ],
)
def test_tokens_are_read_directly_where_it_pays(reads, arguments, training, expected):
    randomised(**arguments).train(training)(torch.randn(1, 1, 8, 8))
    assert bool(reads) == expected


@pytest.mark.parametrize("sharpness", [0.1, 30.0, 3000.0])
@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("offset", [-2000.0, 0.0, 2000.0])
def test_any_scores_in_any_order_are_read_exactly(short_blocks, sharpness, order, offset):
    """Later blocks may hold scores far above those of the first, whose maximum is the shift."""
    torch.manual_seed(0)
    tokens = torch.randn(3, 170, 8, dtype=torch.float64)
    tokens = tokens * torch.linspace(0.01, 1, 170, dtype=torch.float64)[:, None]
    tokens = tokens if order == "rising" else tokens.flip(1)
    tokens[..., 0] = 1
    query = sharpness * torch.randn(3, 12, 8, dtype=torch.float64)
    query[..., 0] += offset
    weights = torch.randn(3, 12, 8, dtype=torch.float64)
    results = []
    for read in (ReadTokens.apply, lambda q, t: (q @ t.mT).softmax(dim=2) @ t):
        q = query.clone().requires_grad_()
        result = read(q, tokens)
        (result * weights).sum().backward()
        results.append((result, q.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-10)
    single = ReadTokens.apply(query.float(), tokens.float())
    exact = (query.float().double() @ tokens.float().double().mT).softmax(dim=2) @ tokens
    torch.testing.assert_close(single.double(), exact, atol=1e-5 * max(1, sharpness), rtol=1e-5)


def test_nothing_but_the_tokens_is_kept_for_each_token():
    """What backward keeps grows by the tokens' own 128 bytes each, once for all iterations."""

    def kept_bytes(size: int) -> int:
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.randn(3, 1, size, size))
        return sum(storages.values())

    model = randomised(depth=4)
    model.choose_products({"layers": "BLAS", "reading": "BLAS"})  # no measurement between
    assert kept_bytes(64) - kept_bytes(32) == 3 * (64**2 - 32**2) * 128


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_latents_change_no_number(dropout):
    images, results = torch.randn(2, 1, 9, 14), []
    for checkpoint_latents in (False, True):
        model = randomised(checkpoint_latents=checkpoint_latents, ff_dropout=dropout)
        torch.manual_seed(1)
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for usual, checkpointed in zip(*results, strict=True):
        assert torch.equal(usual, checkpointed)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile takes a C++ compiler")
def test_compiled_latent_layers_change_nothing():
    model = randomised(depth=2)
    images, results = torch.randn(2, 1, 9, 14), []
    for compiled in (False, True):
        if compiled:
            for block in model.blocks:
                block.latent_layers.compile()
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == randomised(depth=2).state_dict().keys()


def test_autocast_on_a_cpu_stays_near():
    model = randomised()
    images = torch.randn(2, 1, 9, 14)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float(), model(images), atol=0.05, rtol=0.05)


def test_embeddings_equal_perceiver_pytorch_also_without_positions():
    model = randomised(fourier_encode_data=False, input_channels=5)
    images = torch.randn(2, 5, 9, 14)
    theirs = perceiver_pytorch_like(model)(images.movedim(1, -1), return_embeddings=True)
    ours = model(images, return_embeddings=True)
    assert ours.shape == (2, 12, 24)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_default_sizes_have_the_published_number_of_parameters():
    def millions(model):
        return sum(parameter.numel() for parameter in model.parameters()) / 1e6

    assert round(millions(Perceiver(6, 10.0, 6)), 1) == 15.1
    assert round(millions(Perceiver(6, 10.0, 6, weight_tie_layers=False)), 1) == 44.8


def test_position_features_follow_the_formula():
    features = fourier_positions((3, 5), 10.0, 4, CPU)
    assert features.shape == (15, 2 * (2 * 4 + 1))
    y, x = 0.0, 0.5  # row 1 of 3, column 3 of 5
    frequencies = [1.0, 1.0 + 4 / 3, 1.0 + 8 / 3, 5.0]  # linear from 1 to max_freq / 2
    expected = []
    for position in (y, x):
        expected += [math.sin(f * math.pi * position) for f in frequencies]
        expected += [math.cos(f * math.pi * position) for f in frequencies] + [position]
    torch.testing.assert_close(features[1 * 5 + 3], torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_each_iteration_reads_what_the_last_one_left():
    """In one known implementation every iteration read the initial latents: depth did nothing."""
    images = torch.randn(2, 1, 8, 8)
    shallow, deep = randomised(depth=2), randomised(depth=6)
    deep.load_state_dict(shallow.state_dict())  # tied: the same two sets of weights
    assert (shallow(images) - deep(images)).abs().max() > 1e-3
    # By hand: feeding the latents of two iterations to block 1 gives those of three iterations.
    three = randomised(depth=3)
    three.load_state_dict(shallow.state_dict())
    after_two = shallow(images, return_embeddings=True)
    after_three = shallow.blocks[1](after_two, shallow.tokens(images))
    torch.testing.assert_close(after_three, three(images, return_embeddings=True))


def test_tied_weights_are_stored_once():
    assert len(Perceiver(**{**SMALL, "depth": 5}).blocks) == 2
    assert len(Perceiver(**{**SMALL, "depth": 1}).blocks) == 1
    assert len(Perceiver(**{**SMALL, "depth": 5, "weight_tie_layers": False}).blocks) == 5


def test_latents_start_as_narrow_normal():
    latents = Perceiver(6, 10.0, 1).latents
    assert abs(latents.std().item() - 0.02) < 0.001 and abs(latents.mean().item()) < 0.001


def test_dropout_acts_in_training_only():
    images = torch.randn(2, 1, 8, 8)
    for dropout in ("attention_dropout", "ff_dropout"):
        model = randomised(**{dropout: 0.5})
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
        torch.testing.assert_close(model(images), randomised()(images), atol=1e-6, rtol=1e-6)


def test_gelu_feed_forward_has_no_gates():
    model = randomised(activation="gelu")
    assert model.blocks[0].latent_layers[0].expand.out_features == 4 * SMALL["latent_dim"]
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 2)


def test_gradient_reaches_the_input():
    model = randomised().double()
    images = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (images,))


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((2, 3, 8, 8), r"\(batch, 1, size, size\).*\(2, 3, 8, 8\)"),
        ((2, 8, 8), r"\(batch, 1, size, size\).*\(2, 8, 8\)"),
        ((2, 1, 4, 8, 8), r"2 axes.*\(2, 1, 4, 8, 8\)"),
        ((2, 1, 0, 8), r"\(2, 1, 0, 8\)"),
    ],
)
def test_wrong_shape_says_what_was_expected_and_what_came(shape, expected):
    with pytest.raises(ValueError, match=expected):
        Perceiver(**SMALL)(torch.zeros(shape))


def test_raw_pixels_are_refused():
    with pytest.raises(ValueError, match=r"floating-point.*uint8"):
        Perceiver(**SMALL)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "name, value",
    [
        ("depth", 0),
        ("cross_heads", 0),
        ("latent_heads", -1),
        ("num_latents", 0),
        ("num_freq_bands", 0),
        ("latent_dim", 2.5),
        ("max_freq", -1.0),
        ("attention_dropout", 1.0),
        ("activation", "relu"),
        ("depth", True),  # an int, but no size
        ("max_freq", "ten"),
        ("max_freq", math.inf),
        ("ff_dropout", "0.1"),
        ("attention_dropout", False),
        ("fourier_encode_data", "no"),
        ("weight_tie_layers", 1),
        ("checkpoint_latents", None),
    ],
)
def test_impossible_argument_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"{name}.*{value}"):
        Perceiver(**{name: value})


@pytest.mark.parametrize(
    "value",
    [
        None,
        -2.5,
        -1j,
        math.nan,
        -(10**5000),  # more digits than Python writes
        [10**5000],
        "x" * 10**6,
        b"1",
        {},
        object(),
        torch.zeros(3, 3),
        torch.tensor(math.nan),
        np.zeros((2, 2)),
        np.datetime64("2020-01-01"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_value_of_any_argument_is_refused_in_one_short_line(value):
    for name in Perceiver(**SMALL).config:
        with pytest.raises(ConfigError, match=rf"\A{name} must be .{{1,200}}\Z"):
            Perceiver(**{**SMALL, name: value})


def test_errors_of_the_model_are_value_errors():
    assert issubclass(ConfigError, ValueError) and issubclass(CheckpointError, ValueError)
    assert not issubclass(ConfigError, CheckpointError)


def test_single_channel_without_positions_is_refused():
    with pytest.raises(ConfigError, match="2 input_channels or more, got 1"):
        Perceiver(fourier_encode_data=False)


def test_module_needs_torch_and_einops_only():
    """A copy of perceiver.py in a notebook works alone."""
    code = """if True:
        import sys, torch, torch.utils.checkpoint, einops
        allowed = {name.split(".")[0] for name in sys.modules} | set(sys.stdlib_module_names)
        import perceiver
        new = {name.split(".")[0] for name in sys.modules} - allowed - {"perceiver"}
        sys.exit(" ".join(new) or 0)
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_numbers_of_numpy_are_sizes_and_can_be_saved(tmp_path):
    model = Perceiver(np.int64(2), np.float32(4.0), 1, num_latents=np.int32(4), latent_dim=8)
    torch.save({"config": model.config}, tmp_path / "model.pt")
    config = torch.load(tmp_path / "model.pt", weights_only=True)["config"]
    assert config["num_latents"] == 4 and type(config["num_latents"]) is int
