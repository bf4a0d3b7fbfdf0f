"""Perceiver: read any number of tokens into a few latents, again and again, then classify.

    python train.py --demo --output-dir runs/demo           # trains one
    python predict.py runs/demo/best.pt PATH...             # predicts with it

    from perceiver import Perceiver
    model = Perceiver(num_freq_bands=6, max_freq=10.0, depth=6, input_channels=1, num_classes=2)
    logits = model(torch.randn(1, 1, 76, 86))               # (batch, channels, *axes) -> (1, 2)
    model = Perceiver.from_checkpoint("runs/demo/best.pt")  # a trained one, ready to predict

The file needs PyTorch and einops only and can be copied into a notebook alone.

Sources: Jaegle et al. 2021, "Perceiver: General Perception with Iterative Attention",
arXiv:2103.03206 (section 3 and appendix D); GEGLU: Shazeer 2020, arXiv:2002.05202, section 2.
"""

import inspect
import math
import os
import reprlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from einops import rearrange
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


def fourier_positions(
    axes: tuple[int, ...], max_freq: float, num_freq_bands: int, device: torch.device
) -> Tensor:
    """Fourier features of every position of a grid (Perceiver paper, section 3.2 and appendix D).

    Each axis runs from -1 to 1. With frequencies f_1 .. f_K linear from 1 to `max_freq / 2`, a
    coordinate x gives sin(f_k pi x), cos(f_k pi x) for each k, and x itself. Returns float32
    (tokens, len(axes) * (2 * num_freq_bands + 1)), tokens in the order of a flattened grid.
    """
    coordinates = [torch.linspace(-1.0, 1.0, size, device=device) for size in axes]
    grid = torch.stack(torch.meshgrid(*coordinates, indexing="ij"), dim=-1)  # (*axes, len(axes))
    frequencies = torch.linspace(1.0, max_freq / 2, num_freq_bands, device=device)
    angles = grid[..., None] * frequencies * math.pi  # (*axes, len(axes), bands)
    features = torch.cat([angles.sin(), angles.cos(), grid[..., None]], dim=-1)
    return features.flatten(0, len(axes) - 1).flatten(1)  # (tokens, features)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for what follows with gradients, too
def known_of_positions(
    axes: tuple[int, ...], max_freq: float, num_freq_bands: int, channels: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What tokens take of their positions, which depends on the shape alone and is computed once.

    Features (tokens, width) less their mean, as they stand in a token; that mean and the sum of
    squares of what is left, (tokens, 1) each.
    """
    features = torch.zeros(math.prod(axes), 0, device=device)
    if num_freq_bands:
        features = fourier_positions(axes, max_freq, num_freq_bands, device)
    mean = features.sum(dim=1, keepdim=True) / max(features.shape[1], 1)
    features = features - mean
    padding = 1 + channels, -(1 + channels + features.shape[1]) % 16
    return F.pad(features, padding), mean, features.square().sum(dim=1, keepdim=True)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with a hidden layer four times as wide; adds its own residual."""

    def __init__(self, dim: int, activation: str, dropout: float):
        super().__init__()
        hidden = 4 * dim
        self.norm = nn.LayerNorm(dim)
        self.gated = activation == "geglu"  # gated by GELU (arXiv:2002.05202, equation 6)
        self.expand = Linear(dim, 2 * hidden if self.gated else hidden)
        self.contract = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            hidden, gate = self.expand.parts(self.norm(x), 2)  # (..., hidden) each
            hidden = hidden * F.gelu(gate)
        else:
            hidden = F.gelu(self.expand(self.norm(x)))
        return x + self.dropout(self.contract(hidden))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """softmax(q kT / sqrt(dim_head)) v for each head; (batch, sequence, heads * dim_head) each."""
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return rearrange(read, "b h n d -> b n (h d)")


class CrossAttention(nn.Module):
    """The latents read the tokens: pre-norm attention from latents to tokens, with its residual.

    Tokens come standardised and with a leading 1, so that LayerNorm's scale and shift and a
    projection W are one matrix: W (scale * t + shift) = [W shift, W diag(scale)] [1, t]. Therefore,
    with Q and O, which project the latents to queries and the result back to latents,

        score  = q . k = (Q x) . (K [1, t]) = (K^T Q x) . [1, t]
        result = O sum_m p_m v_m = O sum_m p_m V [1, t_m] = O V (sum_m p_m [1, t_m])

    and the latents can attend over the tokens themselves: the same function, in which no keys and
    values are built, and none need a gradient. `reads_directly` says where it pays.
    """

    onednn = False  # whose matrix products read the tokens: see `Perceiver.choose_products`

    def __init__(self, latent_dim: int, token_dim: int, heads: int, dim_head: int, dropout: float):
        super().__init__()
        self.heads, self.dim_head, self.dropout = heads, dim_head, dropout
        self.norm = nn.LayerNorm(latent_dim)
        self.token_scale = nn.Parameter(torch.ones(token_dim))
        self.token_shift = nn.Parameter(torch.zeros(token_dim))
        self.to_q = Linear(latent_dim, heads * dim_head, bias=False)
        self.to_k = Linear(token_dim, heads * dim_head, bias=False)
        self.to_v = Linear(token_dim, heads * dim_head, bias=False)
        self.to_out = Linear(heads * dim_head, latent_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (batch or 1, latents, latent_dim), tokens (batch, tokens, width) -> like x."""
        batch, _, width = tokens.shape
        dropout = self.dropout if self.training else 0.0
        direct = reads_directly(x.shape[1], len(self.token_scale), self.dim_head)
        if direct and not dropout and not tokens.requires_grad:
            read = read_tokens(self.query(x, width).expand(batch, -1, -1), tokens, self.onednn)
            read = rearrange(read, "b (h n) w -> b n (h w)", h=self.heads)
            o = rearrange(self.to_out.weight, "o (h d) -> h o d", h=self.heads)
            v = rearrange(self.fold(self.to_v, width), "(h d) w -> h d w", h=self.heads)
            return x + F.linear(read, rearrange(o @ v, "h o w -> o (h w)"), self.to_out.bias)
        q = self.to_q(self.norm(x)).expand(batch, -1, -1)
        k, v = (F.linear(tokens, self.fold(to, width)) for to in (self.to_k, self.to_v))
        return x + self.to_out(attend(q, k, v, self.heads, dropout))

    def query(self, x: Tensor, width: int) -> Tensor:
        """K^T Q x / sqrt(dim_head), whose products with the tokens are the scores.

        x (batch or 1, latents, latent_dim) -> (batch or 1, heads * latents, width).
        """
        k = rearrange(self.fold(self.to_k, width), "(h d) w -> h w d", h=self.heads)
        q = rearrange(self.to_q.weight * self.dim_head**-0.5, "(h d) i -> h d i", h=self.heads)
        query = F.linear(self.norm(x), (k @ q).flatten(0, 1))
        return rearrange(query, "b n (h w) -> b (h n) w", h=self.heads)

    def fold(self, projection: nn.Linear, width: int) -> Tensor:
        """Scale, shift and projection as one matrix (heads * dim_head, width)."""
        weight = projection.weight
        folded = torch.cat([(weight @ self.token_shift)[:, None], weight * self.token_scale], dim=1)
        return F.pad(folded, (0, width - folded.shape[1]))  # what a token ends in counts nothing


def reads_directly(latents: int, token_dim: int, dim_head: int) -> bool:
    """Whether a head multiplies less for a token that it reads without a key and a value."""
    return latents * token_dim <= dim_head * (latents + token_dim)


def read_tokens(query: Tensor, tokens: Tensor, onednn: bool = False) -> Tensor:
    """softmax(query tokensT) tokens: attention whose keys and values are the tokens themselves.

    Each token begins with a 1, which `ReadTokens` relies on.
    query (batch, rows, width) and tokens (batch, tokens, width) -> (batch, rows, width).
    """
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if tokens.device.type == "cpu" and not exporting:
        return ReadTokens.apply(query, tokens, onednn)
    return F.scaled_dot_product_attention(
        query[:, None], tokens[:, None], tokens[:, None], scale=1.0
    )[:, 0]


class SelfAttention(nn.Module):
    """Pre-norm multi-head attention among the latents, with its residual."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv.parts(self.norm(x), 3)
        return x + self.to_out(attend(q, k, v, self.heads, self.dropout if self.training else 0.0))


class PerceiverBlock(nn.Module):
    """One iteration: read the tokens, then think about them `self_per_cross_attn` times."""

    def __init__(self, config: dict, token_dim: int):
        super().__init__()
        dim, dropout = config["latent_dim"], config["attention_dropout"]
        heads, dim_head = config["latent_heads"], config["latent_dim_head"]
        feed_forward = partial(FeedForward, dim, config["activation"], config["ff_dropout"])
        # Latent layers before cross-attention: in another order a seed gives another model.
        latent_layers: list[nn.Module] = [feed_forward()]
        for _ in range(config["self_per_cross_attn"]):
            latent_layers += [SelfAttention(dim, heads, dim_head, dropout), feed_forward()]
        self.cross_attention = CrossAttention(
            dim, token_dim, config["cross_heads"], config["cross_dim_head"], dropout
        )
        self.checkpoint_latents = config["checkpoint_latents"]
        self.latent_layers = nn.Sequential(*latent_layers)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = self.cross_attention(x, tokens)
        if self.checkpoint_latents and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(self.latent_layers, x, use_reentrant=False)
        return self.latent_layers(x)


class Perceiver(nn.Module):
    """Perceiver classifier for inputs of any number of axes (1 sound, 2 image, 3 volume or video).

    Each position of the input is one token. What the arguments mean stands beside them; section
    numbers are the paper's. Raises ConfigError for an argument that no model can have.
    """

    def __init__(
        self,
        num_freq_bands: int = 6,  # frequencies of the positions, linear from 1 to max_freq / 2
        max_freq: float = 10.0,  # the Nyquist choice is the size of the longest axis
        depth: int = 6,  # how many times the latents read the tokens
        *,
        input_channels: int = 1,
        input_axis: int = 2,  # number of axes of the input
        num_latents: int = 512,  # length of the learned array that the tokens are read into
        latent_dim: int = 512,  # width of that array
        cross_heads: int = 1,  # heads of the cross-attention
        latent_heads: int = 8,  # heads of the self-attention among latents
        cross_dim_head: int = 64,  # width of a head of the cross-attention
        latent_dim_head: int = 64,  # width of a head of the self-attention
        num_classes: int = 2,  # number of logits
        attention_dropout: float = 0.0,  # of attention weights; 0 or more and below 1
        ff_dropout: float = 0.0,  # of feed-forward outputs
        activation: str = "geglu",  # of the feed-forward; "geglu" is gated, "gelu" is the paper's
        self_per_cross_attn: int = 1,  # self-attention layers after each cross-attention
        weight_tie_layers: bool = True,  # all iterations but the first share weights (section 3.1)
        fourier_encode_data: bool = True,  # False: the channels hold the positions already
        checkpoint_latents: bool = False,  # compute latent layers again in backward: less memory
    ):
        # What a checkpoint needs to build this model again: every argument, by name.
        config = {name: value for name, value in locals().items() if name in ARGUMENTS}
        for name, value in config.items():
            if getattr(value, "ndim", None) == 0:  # a number of NumPy's is no plain value
                config[name] = value.item()
        check_config(config)
        super().__init__()
        self.config = config
        # What inputs went through in training: kept with the weights, and read back with them.
        self.preprocessing: dict = {"mean": 0.0, "std": 1.0}
        self.products: dict[str, str] | None = None  # see `choose_products`
        # Chosen on validation: probabilities are softmax(logits / temperature).
        self.calibration: dict = {"temperature": 1.0}
        position_features = input_axis * (2 * num_freq_bands + 1) if fourier_encode_data else 0
        self.token_dim = input_channels + position_features  # 27 for the defaults

        self.latents = nn.Parameter(torch.empty(num_latents, latent_dim))
        nn.init.trunc_normal_(self.latents, std=0.02, a=-2.0, b=2.0)
        # Tied: block 0, then block 1 again and again.
        self.blocks = nn.ModuleList(
            PerceiverBlock(config, self.token_dim)
            for _ in range(min(depth, 2) if weight_tie_layers else depth)
        )
        self.norm = nn.LayerNorm(latent_dim)
        self.head = nn.Linear(latent_dim, num_classes)

    def forward(
        self, images: Tensor, return_embeddings: bool = False, kept: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, num_classes) of images (batch, input_channels, *axes), floating point.

        With `return_embeddings`, the latents after the last iteration (batch, num_latents,
        latent_dim). `kept` (tokens,) are the indices of the tokens that are read, by default all.
        Raises ValueError for a wrong number of axes or channels, an empty axis, or integer pixels.
        """
        tokens = self.tokens(images, kept)  # (batch, tokens, width), standardised
        if self.products is None and onednn_takes(tokens, len(self.latents)):
            self.choose_products()
        x = self.latents[None]  # (1, latents, latent_dim) until the first read makes it a batch
        for iteration in range(self.config["depth"]):
            x = self.block(iteration)(x, tokens)
        return x if return_embeddings else self.head(self.norm(x.mean(dim=1)))

    def choose_products(self, products: dict[str, str] | None = None) -> None:
        """Take the float32 matrix products that are faster on this CPU, or those of a resumed run.

        The first call does it where nobody did. A run keeps them, since they differ in rounding.
        """
        rows = self.config["cross_heads"] * len(self.latents)
        self.products = products or faster_products(rows, self.config["latent_dim"])
        for module in self.modules():
            if isinstance(module, Linear | CrossAttention):
                what = "layers" if isinstance(module, Linear) else "reading"
                module.onednn = self.products[what] == "oneDNN"

    def block(self, iteration: int) -> PerceiverBlock:
        """The block of an iteration, counted from 0: tied, the last one serves all that follow."""
        return self.blocks[min(iteration, len(self.blocks) - 1)]

    def tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """(batch, channels, *axes) -> tokens (batch, tokens, width), standardised, as read.

        A token is 1, then its channels and position features, with mean 0 and variance 1 (what of
        LayerNorm all iterations share), then what is read with weight 0, up to a width of 16 n.
        """
        channels, axes = self.config["input_channels"], self.config["input_axis"]
        if images.ndim != axes + 2 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise ValueError(
                f"expected an input of shape (batch, {channels}, {', '.join(['size'] * axes)}), "
                f"channels first with {axes} axes, got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"expected floating-point pixels, normalised, got {images.dtype}")
        pixels = rearrange(images, "b c ... -> b (...) c")
        bands = self.config["num_freq_bands"] if self.config["fourier_encode_data"] else 0
        about = self.config["max_freq"], bands, channels, images.device
        known = known_of_positions(tuple(images.shape[2:]), *about)
        if kept is not None:
            pixels, known = pixels[:, kept], [each[kept] for each in known]
        # Nothing of the size of the tokens is reduced: that took a fifth of a small model's step.
        positions, own, squares = (each.to(pixels) for each in known)
        features, dim = self.token_dim - channels, self.token_dim
        mean = (pixels.sum(dim=2, keepdim=True) + features * own) / dim  # (batch, tokens, 1)
        centred, shift = pixels - mean, own - mean
        squares = squares + features * shift.square() + centred.square().sum(dim=2, keepdim=True)
        scale = (squares / dim + 1e-5).rsqrt()
        tokens = torch.addcmul(shift * scale, positions, scale)  # (batch, tokens, width)
        tokens[..., 0] = 1
        tokens[..., 1 : 1 + channels] = centred * scale
        if images.is_cuda and torch.is_autocast_enabled("cuda"):  # once, not in each iteration
            tokens = tokens.to(torch.get_autocast_dtype("cuda"))
        return tokens

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> float32 of the scale that the model was trained on, same shape."""
        return (pixels.float() / 255 - self.preprocessing["mean"]) / self.preprocessing["std"]

    @torch.inference_mode()
    def predict_logits(
        self, pixels: Tensor | Iterable[Tensor], batch_size: int = 64, amp: bool | None = None
    ) -> Tensor:
        """Logits (n, num_classes) in float32, on the CPU, of uint8 pixels (n, channels, *axes).

        Dropout is off. `amp` as in `autocast`. Pixels may come as batches, each read in its turn.
        """
        logits = [torch.empty(0, self.config["num_classes"], device=self.latents.device)]
        with evaluating(self), autocast(self.latents.device, amp):
            for batch in pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels:
                if batch.dtype != torch.uint8:
                    raise ValueError(f"expected uint8 pixels, not normalised, got {batch.dtype}")
                batch = batch.to(self.latents.device, non_blocking=True)
                logits.append(self(self.normalise(batch)).float())
        return torch.cat(logits).to("cpu")  # a GPU is waited for once, and not at each batch

    def predict_proba(
        self, pixels: Tensor, batch_size: int = 64, amp: bool | None = None
    ) -> Tensor:
        """Calibrated probabilities (n, num_classes) of uint8 pixels; see `predict_logits`."""
        logits = self.predict_logits(pixels, batch_size, amp)
        return (logits.double() / self.calibration["temperature"]).softmax(dim=1)

    def checkpoint(self) -> dict:
        """What rebuilds this model: plain values, and its own tensors (no copies), to be saved."""
        return {
            "config": self.config,
            "preprocessing": self.preprocessing,
            "calibration": self.calibration,
            "model": self.state_dict(),
        }

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu") -> "Perceiver":
        """Rebuild a trained model, in evaluation mode, from `best.pt` or `last.pt` of a run.

        `model.preprocessing` then holds what its inputs need: classes, image_size (height, width),
        and mean and std of the pixels on a scale from 0 to 1; `model.calibration` the temperature
        of its probabilities. Raises as `read_checkpoint`, also for what is of no Perceiver.
        """
        checkpoint = read_checkpoint(path)
        config, weights = checkpoint["config"], checkpoint["model"]
        calibration = checkpoint.get("calibration", {"temperature": 1.0})  # old ones have none
        try:
            check_config(config)
            check_calibration(calibration)
            layers = config["self_per_cross_attn"]
            layers *= 1 if config["weight_tie_layers"] else config["depth"]
            if not isinstance(weights, dict) or len(weights) < 10 * layers:
                raise CheckpointError(f"model has fewer arrays than {layers} layers")
            with torch.device("meta"):  # shapes alone: no file makes it ask for all memory
                claimed = cls(**config)
            check_preprocessing(checkpoint["preprocessing"], claimed)
            check_weights(weights, claimed.state_dict(), os.path.getsize(path))
        except (ConfigError, CheckpointError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of this Perceiver: {error}") from error
        model = cls(**config)
        model.load_state_dict(weights)
        model.preprocessing, model.calibration = checkpoint["preprocessing"], calibration
        return model.to(device).eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards, also after an error, each module is in its own mode again."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast | nullcontext:
    """bfloat16 matrix products where enabled; by default on a GPU, and float32 on a CPU."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    enabled = device.type == "cuda" if enabled is None else enabled
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


# ---- checkpoints ---------------------------------------------------------------------------------


class ConfigError(ValueError):
    """An argument that no model can have."""


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this Perceiver."""


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running anything in it (tensors and plain values only).

    Raises OSError if it can't be opened, CheckpointError if it is truncated or no checkpoint.
    """
    if not os.path.isfile(path):  # before it is opened: a pipe waits, a device may not end
        what = "a folder, a pipe or a device," if os.path.exists(path) else "no such file,"
        raise FileNotFoundError(f"{path}: {what} expected a checkpoint, best.pt of a run's folder")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickle protocol of files that are refused anyway
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a foreign file can make the unpickler raise anything
            text = "truncated, another file, or one with code in it (none was run)"
            raise CheckpointError(f"{path}: not a readable checkpoint: {text}") from error
    for name in ("config", "model", "preprocessing"):
        if not isinstance(checkpoint, dict) or name not in checkpoint:
            raise CheckpointError(f"{path}: not a checkpoint of this Perceiver: no {name} in it")
    return checkpoint


ARGUMENTS = inspect.signature(Perceiver).parameters
# Far above any of use: sizes, axes, layers, numbers in a sample's tokens, letters of a class.
MOST_SIZE, MOST_AXES, MOST_LAYERS, MOST, LETTERS = 2**16, 16, 1000, 2**30, 100
GELUS = ("geglu", "gelu")


def check_config(config: object) -> None:
    """Raise ConfigError for the first argument of Perceiver that no model can have.

    Here and below nothing is taken for granted of a value: it may come from a foreign file.
    """
    check_names("config", config, ARGUMENTS, ConfigError)
    for name, value in config.items():
        kind = ARGUMENTS[name].annotation
        if name == "num_freq_bands" and config["fourier_encode_data"] is False:
            continue  # it has no effect
        if kind is bool:
            possible, wanted = isinstance(value, bool), "True or False"
        elif kind is int:
            most = MOST_AXES if name == "input_axis" else MOST_SIZE
            possible, wanted = is_size(value, most), f"a whole number of at least 1, at most {most}"
        elif kind is str:
            possible, wanted = type(value) is str and value in GELUS, "'geglu' or 'gelu'"
        elif name == "max_freq":
            possible, wanted = is_number(value) and value > 0, "a positive number"
        else:
            possible, wanted = is_number(value) and 0 <= value < 1, "at least 0 and below 1"
        if not possible:
            raise ConfigError(f"{name} must be {wanted}, got {shown(value)}")
    if config["depth"] * config["self_per_cross_attn"] > MOST_LAYERS:
        raise ConfigError(f"depth times self_per_cross_attn must be at most {MOST_LAYERS}")
    if config["input_channels"] == 1 and not config["fourier_encode_data"]:  # normalised to 0
        raise ConfigError("fourier_encode_data=False takes 2 input_channels or more, got 1")


def check_preprocessing(preprocessing: object, model: Perceiver) -> None:
    """Raise CheckpointError unless pixels can be normalised by it. Size and classes may lack."""
    if not isinstance(preprocessing, dict):
        raise CheckpointError(f"preprocessing is {shown(preprocessing)}")
    mean, std, classes = map(preprocessing.get, ("mean", "std", "classes"))
    size, count = preprocessing.get("image_size", [1, 1]), model.config["num_classes"]
    if not (is_number(mean, -1e6, 1e6) and is_number(std, 1e-6, 1e6)):
        raise CheckpointError(f"preprocessing with mean {shown(mean)} and std {shown(std)}")
    sizes = isinstance(size, list | tuple) and 2 <= len(size) <= MOST_AXES
    if not (sizes and all(map(is_size, size)) and math.prod(size) <= MOST // model.token_dim):
        raise CheckpointError(f"preprocessing with image_size {shown(size)}")
    names = classes if isinstance(classes, list) else []
    names = [x for x in names if isinstance(x, str) and x.isprintable() and len(x) <= LETTERS]
    different = {name.strip().lower() for name in names} - {""}
    if classes is not None and not (names and len(different) == len(classes) == count):
        text = f"{count} different names, printable, of at most {LETTERS} letters"
        raise CheckpointError(f"classes are {shown(classes)}, expected {text}")


def check_calibration(calibration: object) -> None:
    """Raise CheckpointError unless probabilities, and what is unsure, can follow from it."""
    known = calibration if isinstance(calibration, dict) else {}
    if not is_number(known.get("temperature"), 1e-6, 1e6):
        raise CheckpointError(f"calibration {shown(calibration)} has no temperature above 0")
    if not is_number(known.get("unsure_below", 0), 0, 1):
        raise CheckpointError(f"calibration {shown(calibration)}: unsure_below is no probability")


def check_weights(weights: object, expected: dict[str, Tensor], size: int) -> None:
    """Raise CheckpointError unless `load_state_dict` can take them, of a file of so many bytes."""
    check_names("model", weights, expected, CheckpointError)
    for name, tensor in weights.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not dense or tensor.is_meta or tensor.is_nested or not tensor.is_floating_point():
            raise CheckpointError(f"{name} is no array of floating-point numbers: {shown(tensor)}")
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise CheckpointError(f"{name} has the shape {shapes}")
        size -= tensor.nbytes  # a number that is repeated takes none there, and memory when loaded
        if size < 0:
            raise CheckpointError(f"{name} is larger than what the file holds")
        if not tensor.to(expected[name].dtype).isfinite().all():
            raise CheckpointError(f"{name} is not finite")


def check_names(what: str, content: object, expected: Collection[str], error: type) -> None:
    """Raise the error unless content is a dict of exactly the expected names."""
    if not isinstance(content, dict):
        raise error(f"{what} is {shown(content)}")
    for name in [*expected, *content]:
        if name not in content:
            raise error(f"{what} has no {name}")
        if name not in expected:
            raise error(f"{what} has {shown(name)}, which this Perceiver has not")


def is_size(value: object, most: int = MOST_SIZE) -> bool:
    """A whole number from 1 on. True is an int, but no size."""
    return type(value) is int and 1 <= value <= most


def is_number(value: object, low: float = -(2.0**127), high: float = 2.0**127) -> bool:
    """A plain number from low to high, by default one that is finite in float32."""
    return type(value) in (int, float) and low <= value <= high  # false for nan


def shown(value: object) -> str:
    """A value of any type and length for a message of one line."""
    try:
        return " ".join(reprlib.repr(value).split())[:100]
    except ValueError:  # Python writes no integer of more than 4300 digits
        return type(value).__name__


# ---- on a CPU: the same functions, faster --------------------------------------------------------


def onednn_takes(x: Tensor, outer: int) -> bool:
    """Whether oneDNN can multiply x (..., inner) by `outer` rows, and that is worth a call."""
    return (
        not torch.compiler.is_compiling()
        and x.numel() * outer >= 2**24
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bT + bias with oneDNN: (..., inner), (outer, inner), (outer,) -> (..., outer)."""
    # The operator that torch.compile calls for a linear layer on a CPU; it has no gradient.
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """F.linear whose three matrix products are oneDNN's."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), of_weight = ctx.saved_tensors, None
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        if wants_weight:
            # That of a 1 x 1 convolution of the rows, channels last (as these strides say): a
            # product would take copies of both, transposed.
            pixels = [t.reshape(1, -1, 1, t.shape[-1]).permute(0, 3, 1, 2) for t in (x, grad)]
            of_weight = conv2d_weight(pixels[0], (*weight.shape, 1, 1), pixels[1])[:, :, 0, 0]
        of_bias = grad.flatten(0, -2).sum(dim=0) if wants_bias else None
        return onednn_product(grad, weight.t()) if wants_x else None, of_weight, of_bias


class Linear(nn.Linear):
    """nn.Linear, on a CPU by way of oneDNN where that was measured to be faster."""

    onednn = False  # see `Perceiver.choose_products`

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, len(self.weight))(x, self.weight, self.bias)

    def product(self, x: Tensor, outer: int) -> Callable:
        return OneDNNLinear.apply if self.onednn and onednn_takes(x, outer) else F.linear

    def parts(self, x: Tensor, count: int) -> list[Tensor]:
        """The output in parts, each by its rows of the weight; hooks of the layer don't see it."""
        # Chunks of one output would have gradients of the output's size to be joined in backward.
        biases = [None] * count if self.bias is None else self.bias.chunk(count)
        product = self.product(x, len(self.weight) // count)
        return [product(x, w, b) for w, b in zip(self.weight.chunk(count), biases, strict=True)]


@torch.inference_mode(False)
@torch.enable_grad()
def faster_products(rows: int, dim: int) -> dict[str, str]:
    """Whose matrix products are faster here, "BLAS" or "oneDNN", for `layers` and for `reading`.

    A step of 76 x 86 took 1 to 7 % less by oneDNN on an AMD EPYC (228 x 260: 22 %), 10 to 20 % less
    by MKL (PyTorch's BLAS) on an Intel Xeon. Both are timed in turns, in 0.02 to 0.2 s.
    """
    if not torch.backends.mkldnn.is_available():
        return dict.fromkeys(("layers", "reading"), "BLAS")
    x, weight = (torch.zeros(min(4 * dim, 512), dim, requires_grad=True) for _ in range(2))
    query = torch.zeros(1, rows, 32, requires_grad=True)
    tokens = torch.zeros(1, max(ReadTokens.BLOCK, ReadTokens.SCORES // rows), 32)
    ways = {
        ("layers", "BLAS"): lambda: F.linear(x, weight),
        ("layers", "oneDNN"): lambda: OneDNNLinear.apply(x, weight, None),
        ("reading", "BLAS"): lambda: ReadTokens.apply(query, tokens, False),
        ("reading", "oneDNN"): lambda: ReadTokens.apply(query, tokens, True),
    }
    seconds = dict.fromkeys(ways, math.inf)
    for way in 8 * list(ways):
        started = time.perf_counter()
        ways[way]().sum().backward()
        seconds[way] = min(seconds[way], time.perf_counter() - started)
    both = ("BLAS", "oneDNN")
    return {w: min(both, key=lambda who: seconds[w, who]) for w in ("layers", "reading")}


class ReadTokens(torch.autograd.Function):
    """`read_tokens` for a CPU, block by block, so that scores stay in the processor's cache.

    FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4) whose tokens get no
    gradient: three matrix products of five are left in backward. By the leading 1 of every token a
    constant in front of a query shifts all its scores, and the first column of what is read is the
    sum of the weights. Scores are powers of two: exp2 can be four times as fast as exp (MKL, AMD).
    """

    BLOCK, SCORES = 2048, 2**19  # tokens a block at least; scores at a time: 2 MiB in float32

    @classmethod
    def blocks(cls, query: Tensor, tokens: Tensor):
        """Slices of the batch, and of the tokens, that are worked on together."""
        (batch, rows, _), length = query.shape, tokens.shape[1]
        block = min(length, max(cls.BLOCK, cls.SCORES // rows))
        group = max(1, cls.SCORES // (rows * block))
        for sample in range(0, batch, group):
            for start in range(0, length, block):
                yield slice(sample, sample + group), slice(start, start + block)

    @staticmethod
    def product(a: Tensor, b: Tensor, out: Tensor | None = None, onednn: bool = False) -> Tensor:
        """a bT: (group, rows, inner), (group, outer, inner) -> (group, rows, outer).

        BLAS writes into `out`, used again and again: new memory costs as much as the product.
        """
        if onednn and len(a) == 1 and onednn_takes(a, b.shape[1]):
            return onednn_product(a[0], b[0])[None]
        if out is not None:
            out.resize_(len(a), a.shape[1], b.shape[1])
        return torch.bmm(a, b.mT, out=out)

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, query: Tensor, tokens: Tensor, onednn: bool = False) -> Tensor:
        query = query * math.log2(math.e)
        query[..., 0] = 0  # softmax cancels what is the same for all tokens
        read, memory = torch.zeros_like(query), query.new_empty(0)
        for samples, block in ReadTokens.blocks(query, tokens):
            q, t = query[samples], tokens[samples, block]
            scores = ReadTokens.product(q, t, memory, onednn)
            top = scores.amax(dim=2)
            # Shift by the largest score of the first block; later only if one would overflow.
            if block.start == 0 or top.max() > 64:
                if block.start > 0:
                    top.clamp_(min=0)
                    read[samples].mul_(top.neg().exp2()[..., None])
                scores -= top[..., None]
                q[..., 0] -= top
            read[samples].add_(ReadTokens.product(scores.exp2_(), t.mT, onednn=onednn))
        total = read[..., :1].clone()
        read /= total
        query[..., :1] -= total.log2()  # from here on, 2 ** (query . token) is the weight itself
        ctx.save_for_backward(query, tokens, read)
        ctx.onednn = onednn
        return read

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        query, tokens, read = ctx.saved_tensors
        grad_query, *memory = torch.zeros_like(query), query.new_empty(0), query.new_empty(0)
        # Softmax: d score = weight * (d weight - sum of weight * d weight), the sum put in front.
        grad = grad.clone()
        grad[..., 0] -= (grad * read).sum(dim=-1)
        for samples, block in ReadTokens.blocks(query, tokens):
            t = tokens[samples, block]
            weights = ReadTokens.product(query[samples], t, memory[0], ctx.onednn).exp2_()
            weights *= ReadTokens.product(grad[samples], t, memory[1], ctx.onednn)
            grad_query[samples].add_(ReadTokens.product(weights, t.mT, onednn=ctx.onednn))
        return grad_query, None, None
