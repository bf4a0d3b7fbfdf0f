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
import reprlib
import textwrap
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from einops import rearrange
from torch import Tensor, nn


@lru_cache(maxsize=8)
def fourier_positions(
    axes: tuple[int, ...], max_freq: float, num_freq_bands: int, device: torch.device
) -> Tensor:
    """Fourier features of every position of a grid (Perceiver paper, section 3.2 and appendix D).

    Each axis runs from -1 to 1. With frequencies f_1 .. f_K linear from 1 to `max_freq / 2`, a
    coordinate x gives sin(f_k pi x), cos(f_k pi x) for each k, and x itself.

    Returns a float32 tensor (tokens, len(axes) * (2 * num_freq_bands + 1)), tokens in the order of
    a flattened grid. It depends on the shape alone, so it is computed once a shape and kept.
    """
    coordinates = [torch.linspace(-1.0, 1.0, size, device=device) for size in axes]
    grid = torch.stack(torch.meshgrid(*coordinates, indexing="ij"), dim=-1)  # (*axes, len(axes))
    frequencies = torch.linspace(1.0, max_freq / 2, num_freq_bands, device=device)
    angles = grid[..., None] * frequencies * math.pi  # (*axes, len(axes), bands)
    features = torch.cat([angles.sin(), angles.cos(), grid[..., None]], dim=-1)
    return features.flatten(0, len(axes) - 1).flatten(1)  # (tokens, features)


class GEGLU(nn.Module):
    """x, gate -> x * gelu(gate): a linear unit gated by GELU (arXiv:2002.05202, equation 6)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)  # (..., 2 * hidden) -> twice (..., hidden)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Pre-norm feed-forward block with a hidden layer four times as wide; adds its own residual."""

    def __init__(self, dim: int, activation: str, dropout: float, multiplier: int = 4):
        super().__init__()
        hidden = dim * multiplier
        self.norm = nn.LayerNorm(dim)
        if activation == "geglu":  # half of its inputs are gates
            self.expand, self.activation = Linear(dim, 2 * hidden), GEGLU()
        else:
            self.expand, self.activation = Linear(dim, hidden), nn.GELU()
        self.contract = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.contract(self.activation(self.expand(self.norm(x)))))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
    """softmax(q kT / sqrt(dim_head)) v for each head; (batch, sequence, heads * dim_head) each."""
    q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=heads) for t in (q, k, v))
    read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return rearrange(read, "b h n d -> b n (h d)")


class CrossAttention(nn.Module):
    """The latents read the tokens: pre-norm attention from latents to tokens, with its residual.

    Tokens come standardised and with a leading 1, so that LayerNorm's scale and shift and a
    projection W are one matrix: W (scale * t + shift) = [W shift, W diag(scale)] [1, t]. Therefore

        score  = q . k = q . K [1, t] = (K^T q) . [1, t]
        result = sum_m p_m v_m = sum_m p_m V [1, t_m] = V (sum_m p_m [1, t_m])

    and the latents can attend over the tokens themselves as keys and values: K^T q is the query,
    and V projects what comes out, a few latents in place of all tokens. It is the same function.
    No keys and values are built, and none need a gradient. It pays while tokens are not wider than
    a head.
    """

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
        width = tokens.shape[2]
        dropout = self.dropout if self.training else 0.0
        if len(self.token_scale) <= self.dim_head and not dropout and not tokens.requires_grad:
            query = self.query(x, width).expand(tokens.shape[0], -1, -1)
            read = rearrange(read_tokens(query, tokens), "b (h n) w -> b h n w", h=self.heads)
            v_weight = rearrange(self.fold(self.to_v, width), "(h d) w -> h d w", h=self.heads)
            read = torch.einsum("b h n w, h d w -> b n h d", read, v_weight).flatten(2)
        else:
            q = self.to_q(self.norm(x)).expand(tokens.shape[0], -1, -1)
            k, v = (F.linear(tokens, self.fold(to, width)) for to in (self.to_k, self.to_v))
            read = attend(q, k, v, self.heads, dropout)
        return x + self.to_out(read)

    def query(self, x: Tensor, width: int) -> Tensor:
        """K^T q / sqrt(dim_head), whose products with the tokens are the scores.

        x (batch or 1, latents, latent_dim) -> (batch or 1, heads * latents, width); the batch is 1
        in the first iteration, where one x serves all samples.
        """
        q = self.to_q(self.norm(x)) * self.dim_head**-0.5
        q = rearrange(q, "b n (h d) -> b n h d", h=self.heads)
        k_weight = rearrange(self.fold(self.to_k, width), "(h d) w -> h d w", h=self.heads)
        return torch.einsum("b n h d, h d w -> b h n w", q, k_weight).flatten(1, 2)

    def weights(self, x: Tensor, tokens: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """What `forward` weighs the tokens with, a sample and a few rows at a time.

        Gives sample, rows (of heads * latents) and their weights (rows, tokens), which sum to 1.
        """
        query = self.query(x, tokens.shape[2]).expand(len(tokens), -1, -1)
        block = max(1, ReadTokens.SCORES // tokens.shape[1])
        for sample in range(len(tokens)):
            for start in range(0, query.shape[1], block):
                rows = slice(start, start + block)
                scores = query[sample, rows] @ tokens[sample].mT
                yield sample, rows, scores.softmax(dim=1)

    def fold(self, projection: nn.Linear, width: int) -> Tensor:
        """Scale, shift and projection as one matrix (heads * dim_head, width)."""
        weight = projection.weight
        folded = torch.cat([(weight @ self.token_shift)[:, None], weight * self.token_scale], dim=1)
        return F.pad(folded, (0, width - folded.shape[1]))  # tokens end in zeros, too


def read_tokens(query: Tensor, tokens: Tensor) -> Tensor:
    """softmax(query tokensT) tokens: attention whose keys and values are the tokens themselves.

    Each token begins with a 1, which `ReadTokens` relies on.
    query (batch, rows, width) and tokens (batch, tokens, width) -> (batch, rows, width).
    """
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if tokens.device.type == "cpu" and not exporting:
        return ReadTokens.apply(query, tokens)
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
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.to_out(attend(q, k, v, self.heads, self.dropout if self.training else 0.0))


class PerceiverBlock(nn.Module):
    """One iteration: read the tokens, then think about them `self_per_cross_attn` times."""

    def __init__(self, config: dict, token_dim: int):
        super().__init__()
        dim, dropout = config["latent_dim"], config["attention_dropout"]
        heads, dim_head = config["latent_heads"], config["latent_dim_head"]

        def feed_forward() -> FeedForward:
            return FeedForward(dim, config["activation"], config["ff_dropout"])

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
        config = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        for name, value in config.items():
            if getattr(value, "ndim", None) == 0:  # a number of NumPy's is no plain value
                config[name] = value.item()
        check_config(config)
        super().__init__()
        self.config = config
        # What inputs went through in training: kept with the weights, and read back with them.
        self.preprocessing: dict = {"mean": 0.0, "std": 1.0}
        # Chosen on validation: probabilities are softmax(logits / temperature).
        self.calibration: dict = {"temperature": 1.0}
        position_features = input_axis * (2 * num_freq_bands + 1) if fourier_encode_data else 0
        token_dim = input_channels + position_features  # 27 for the defaults

        self.latents = nn.Parameter(torch.empty(num_latents, latent_dim))
        nn.init.trunc_normal_(self.latents, std=0.02, a=-2.0, b=2.0)
        # Tied: block 0, then block 1 again and again.
        self.blocks = nn.ModuleList(
            PerceiverBlock(config, token_dim)
            for _ in range(min(depth, 2) if weight_tie_layers else depth)
        )
        self.norm = nn.LayerNorm(latent_dim)
        self.head = nn.Linear(latent_dim, num_classes)

    def forward(self, images: Tensor, return_embeddings: bool = False) -> Tensor:
        """Logits (batch, num_classes) of images (batch, input_channels, *axes), floating point.

        With `return_embeddings`, the latents after the last iteration (batch, num_latents,
        latent_dim). Raises ValueError for a wrong number of axes or channels, an empty axis, or
        integer pixels.
        """
        tokens = self.tokens(images)  # (batch, tokens, features), standardised
        x = self.latents[None]  # (1, latents, latent_dim) until the first read makes it a batch
        for iteration in range(self.config["depth"]):
            x = self.block(iteration)(x, tokens)
        if return_embeddings:
            return x
        return self.head(self.norm(x.mean(dim=1)))

    def block(self, iteration: int) -> PerceiverBlock:
        """The block of an iteration, counted from 0: tied, the last one serves all that follow."""
        return self.blocks[min(iteration, len(self.blocks) - 1)]

    def tokens(self, images: Tensor) -> Tensor:
        """(batch, channels, *axes) -> tokens (batch, tokens, width), standardised, as read.

        A token is 1, then its channels and position features, with mean 0 and variance 1 (the part
        of LayerNorm that all iterations share), then zeros up to a width that matrix products like.
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
        parts = [pixels]
        if self.config["fourier_encode_data"]:
            bands = self.config["max_freq"], self.config["num_freq_bands"]
            positions = fourier_positions(tuple(images.shape[2:]), *bands, images.device)
            # shape[0], because len() would fix the batch size of an exported model.
            parts.append(positions.to(pixels).expand(pixels.shape[0], -1, -1))
        dim = sum(part.shape[2] for part in parts)
        one = pixels.new_ones(1).expand(*pixels.shape[:2], 1)
        zeros = pixels.new_zeros(1).expand(*pixels.shape[:2], -(1 + dim) % 16)
        tokens = torch.cat([one, *parts, zeros], dim=2)
        # In place: this is the one array that grows with batch and tokens.
        features = tokens[..., 1 : 1 + dim]
        before = features.clone() if images.requires_grad else features
        variance, mean = torch.var_mean(before, 2, correction=0, keepdim=True)
        features.sub_(mean).mul_((variance + 1e-5).rsqrt())
        if torch.is_autocast_enabled(images.device.type) and images.device.type != "cpu":
            tokens = tokens.to(torch.get_autocast_dtype(images.device.type))
        return tokens

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> float32 of the scale that the model was trained on, same shape."""
        return (pixels.float() / 255 - self.preprocessing["mean"]) / self.preprocessing["std"]

    @torch.inference_mode()
    def predict_logits(
        self, pixels: Tensor, batch_size: int = 64, amp: bool | None = None
    ) -> Tensor:
        """Logits (n, num_classes) in float32, on the CPU, of uint8 pixels (n, channels, *axes).

        Dropout is off. Apply `.softmax(dim=1)` for probabilities. `amp` as in `autocast`.
        """
        device = self.latents.device
        if pixels.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels, not normalised, got {pixels.dtype}")
        logits = [torch.empty(0, self.config["num_classes"])]
        with evaluating(self), autocast(device, amp):
            for start in range(0, len(pixels), batch_size):
                batch = pixels[start : start + batch_size].to(device)
                logits.append(self(self.normalise(batch)).float())
        return torch.cat([batch.to("cpu") for batch in logits])

    def predict_proba(
        self, pixels: Tensor, batch_size: int = 64, amp: bool | None = None
    ) -> Tensor:
        """Calibrated probabilities (n, num_classes) of uint8 pixels; see `predict_logits`."""
        logits = self.predict_logits(pixels, batch_size, amp)
        return (logits.double() / self.calibration["temperature"]).softmax(dim=1)

    @torch.no_grad()
    def attention_maps(self, images: Tensor, average: bool = False) -> Tensor:
        """Where the latents look: the weights of each cross-attention over the positions.

        They are the softmax of section 3.1 of the Perceiver paper, computed again beside the
        forward pass in evaluation mode and without autocast. Attention is not explanation: a high
        weight is no proof that the position decided the class (Jain and Wallace 2019,
        arXiv:1902.10186).

        images are those of `forward`, which says what is raised. Returns (batch, depth,
        cross_heads, num_latents, *axes), or with `average` the mean over heads and latents (batch,
        depth, *axes), which never holds more than a few rows of the full array: 11 MiB in place of
        5.4 GiB for 8 slices of 228 x 260. Each map sums to 1 over the axes; none has a gradient.
        """
        with evaluating(self), torch.autocast(images.device.type, enabled=False):
            tokens, x = self.tokens(images), self.latents[None]
            heads, depth = self.config["cross_heads"], self.config["depth"]
            total = heads * len(self.latents)  # rows of weights of one sample in one iteration
            shape = (depth, tokens.shape[1]) if average else (depth, total, tokens.shape[1])
            maps = tokens.new_zeros(len(tokens), *shape)
            for iteration in range(depth):
                block = self.block(iteration)
                for sample, rows, weights in block.cross_attention.weights(x, tokens):
                    if average:
                        maps[sample, iteration] += weights.sum(dim=0) / total
                    else:
                        maps[sample, iteration, rows] = weights
                x = block(x, tokens)
        maps = maps.unflatten(-1, images.shape[2:])  # (batch, depth, [rows,] *axes)
        return maps if average else maps.unflatten(2, (heads, -1))

    @torch.inference_mode(False)  # gradients on, where the caller has them off as well
    def saliency(self, images: Tensor, target: int | Tensor | None = None) -> Tensor:
        """How fast each position changes the target's logit: the size of the logit's gradient.

        The largest absolute value over the channels, as in Simonyan et al. 2013, arXiv:1312.6034,
        section 3.1, in evaluation mode and without autocast, per unit of the normalised input. A
        slope at this image is no more an explanation of the class than attention is (see
        `attention_maps`). The parameters' `.grad` stays as it is.

        images are those of `forward`. target is one class for all of them or one for each (batch,),
        by default the predicted. Returns (batch, *axes), zero or above. Raises ValueError as
        `forward` does, and for a target that is no class of the model.
        """
        # A leaf of its own; integers, which can't have a gradient, are for `tokens` to refuse.
        images = images.detach().clone().requires_grad_(images.is_floating_point())
        # Backward, too: with `checkpoint_latents` it computes the latents again.
        with evaluating(self), torch.autocast(images.device.type, enabled=False):
            logits = self(images)
            batch, classes = logits.shape
            target = torch.as_tensor(logits.argmax(dim=1) if target is None else target)
            numbers = not target.is_floating_point() and target.dtype != torch.bool
            one_or_each = target.shape in ((), (batch,))
            if not (numbers and one_or_each and ((target >= 0) & (target < classes)).all()):
                raise ValueError(
                    f"expected as target a class from 0 to {classes - 1}, or one for each of the "
                    f"{batch} images, got {target.tolist()}"
                )
            index = target.to(logits.device, torch.int64).expand(batch)[:, None]  # (batch, 1)
            (gradient,) = torch.autograd.grad(logits.gather(1, index).sum(), images)
        return gradient.abs().amax(dim=1)

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
        and mean and std of the pixels on a scale from 0 to 1. `model.calibration` holds the
        temperature of its probabilities.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not a whole checkpoint of a Perceiver.
        """
        checkpoint = read_checkpoint(path)
        calibration = checkpoint.get("calibration", {"temperature": 1.0})  # old ones have none
        try:
            check_config(checkpoint["config"])
            check_preprocessing(checkpoint["preprocessing"], checkpoint["config"]["num_classes"])
            check_calibration(calibration)
            with torch.device("meta"):  # shapes alone: no file makes it ask for all memory
                check_weights(checkpoint["model"], cls(**checkpoint["config"]).state_dict())
        except (ConfigError, CheckpointError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of this Perceiver: {error}") from error
        model = cls(**checkpoint["config"])
        model.load_state_dict(checkpoint["model"])
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


def autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """bfloat16 matrix products where enabled; by default on a GPU, and float32 on a CPU."""
    enabled = device.type == "cuda" if enabled is None else enabled
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


# ---- checkpoints ---------------------------------------------------------------------------------


class ConfigError(ValueError):
    """An argument that no model can have."""


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of this Perceiver."""


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint without running anything in it (tensors and plain values only).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, is no checkpoint, or holds more than plain values.
    """
    if not Path(path).is_file():
        hint = ", but a folder; name its best.pt" if Path(path).is_dir() else ""
        raise FileNotFoundError(f"{path}: no such checkpoint file{hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickle protocol of files that are refused anyway
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a foreign file can make the unpickler raise anything
            raise CheckpointError(
                f"{path}: not a readable checkpoint: truncated, another file, or one with code in "
                "it (none was run)"
            ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: not a checkpoint: holds a {type(checkpoint).__name__}")
    if missing := {"config", "model", "preprocessing"} - checkpoint.keys():
        reason = f"no {min(missing)} in it"
        raise CheckpointError(f"{path}: not a checkpoint of this Perceiver: {reason}")
    return checkpoint


ARGUMENTS = inspect.signature(Perceiver).parameters


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
            possible, wanted = is_size(value), "a whole number of at least 1"
        elif kind is str:
            possible = isinstance(value, str) and value in ("geglu", "gelu")
            wanted = "'geglu' or 'gelu'"
        elif name == "max_freq":
            possible, wanted = is_number(value) and value > 0, "a positive number"
        else:
            possible, wanted = is_number(value) and 0 <= value < 1, "at least 0 and below 1"
        if not possible:
            raise ConfigError(f"{name} must be {wanted}, got {shown(value)}")
    if config["input_channels"] == 1 and not config["fourier_encode_data"]:
        raise ConfigError(
            "fourier_encode_data=False takes 2 input_channels or more, got 1: LayerNorm turns a "
            "token of one feature into 0"
        )


def check_preprocessing(preprocessing: object, num_classes: int) -> None:
    """Raise CheckpointError unless pixels can be normalised by it, and resized if it has a size."""
    if not isinstance(preprocessing, dict):
        raise CheckpointError(f"preprocessing is {shown(preprocessing)}")
    mean, std = preprocessing.get("mean"), preprocessing.get("std")
    size, classes = preprocessing.get("image_size", [1, 1]), preprocessing.get("classes")
    if not (is_number(mean) and is_number(std) and std > 0):
        raise CheckpointError(f"preprocessing with mean {shown(mean)} and std {shown(std)}")
    if not (isinstance(size, list | tuple) and len(size) >= 2 and all(map(is_size, size))):
        raise CheckpointError(f"preprocessing with image_size {shown(size)}")
    names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if classes is not None and not (names and len(classes) == num_classes):
        raise CheckpointError(f"preprocessing with classes {shown(classes)}, not {num_classes}")


def check_calibration(calibration: object) -> None:
    """Raise CheckpointError unless logits can be divided by its temperature."""
    temperature = calibration.get("temperature") if isinstance(calibration, dict) else None
    if not (is_number(temperature) and temperature > 0):
        raise CheckpointError(f"calibration {shown(calibration)} has no positive temperature")


def check_weights(weights: object, expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless `load_state_dict` can put them in the place of the expected."""
    check_names("model", weights, expected, CheckpointError)
    for name, tensor in weights.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not dense or tensor.is_meta or tensor.is_nested or not tensor.is_floating_point():
            raise CheckpointError(f"{name} is no array of floating-point numbers: {shown(tensor)}")
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise CheckpointError(f"{name} has the shape {shapes}")
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


def is_size(value: object) -> bool:
    """A whole number of at least 1. True is an int, but no size."""
    return type(value) is int and value >= 1


def is_number(value: object) -> bool:
    """A plain number that is finite in float32."""
    return type(value) in (int, float) and abs(value) < 2.0**127  # false for nan


def shown(value: object) -> str:
    """A value of any type and length for a message of one line."""
    try:
        return textwrap.shorten(reprlib.repr(value), 100)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return type(value).__name__


# ---- on a CPU: the same functions, faster --------------------------------------------------------


def onednn_takes(x: Tensor) -> bool:
    """PyTorch multiplies float32 matrices with MKL, on AMD processors half as fast as oneDNN."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def onednn_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a bT + bias with oneDNN: (..., inner), (outer, inner), (outer,) -> (..., outer); no autograd.

    The operator is the one that torch.compile calls for a linear layer on a CPU.
    """
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class Linear(nn.Linear):
    """nn.Linear, on a CPU by way of oneDNN where that is worth a call from Python."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() >= 2**16 and onednn_takes(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


class OneDNNLinear(torch.autograd.Function):
    """F.linear whose three matrix products are oneDNN's."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            onednn_product(grad, weight.t()) if wants_x else None,
            onednn_product(rows.t(), x.flatten(0, -2).t()) if wants_weight else None,
            rows.sum(dim=0) if wants_bias else None,
        )


class ReadTokens(torch.autograd.Function):
    """`read_tokens` for a CPU, block by block, so that scores stay in the processor's cache.

    FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4) without what is not
    needed here: tokens get no gradient, which leaves three matrix products of five in backward.
    The leading 1 of every token does the rest for free: a constant in front of a query shifts all
    its scores, and the first column of what is read is the sum of the weights. Scores are in
    powers of two, because exp2 can be four times as fast as exp (which MKL slows down on AMD).
    """

    BLOCK, SCORES = 2048, 2**20  # tokens a block at least; scores at a time: 4 MiB in float32

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
    def product(a: Tensor, b: Tensor) -> Tensor:
        """a bT: (group, rows, inner), (group, outer, inner) -> (group, rows, outer)."""
        if len(a) == 1 and onednn_takes(a):
            return onednn_product(a[0], b[0])[None]
        return a @ b.mT

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, query: Tensor, tokens: Tensor) -> Tensor:
        query = query * math.log2(math.e)
        query[..., 0] = 0  # softmax cancels what is the same for all tokens
        read = torch.zeros_like(query)
        for samples, block in ReadTokens.blocks(query, tokens):
            q, t = query[samples], tokens[samples, block]
            scores = ReadTokens.product(q, t)
            top = scores.amax(dim=2)
            # Shift by the largest score of the first block; later only if one would overflow.
            if block.start == 0 or top.max() > 64:
                if block.start > 0:
                    top.clamp_(min=0)
                    read[samples].mul_(top.neg().exp2()[..., None])
                scores -= top[..., None]
                q[..., 0] -= top
            read[samples].add_(ReadTokens.product(scores.exp2_(), t.mT))
        total = read[..., :1].clone()
        read /= total
        query[..., :1] -= total.log2()  # from here on, 2 ** (query . token) is the weight itself
        ctx.save_for_backward(query, tokens, read)
        return read

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        query, tokens, read = ctx.saved_tensors
        grad_query = torch.zeros_like(query)
        # Softmax: d score = weight * (d weight - sum of weight * d weight), the sum put in front.
        grad = grad.clone()
        grad[..., 0] -= (grad * read).sum(dim=-1)
        for samples, block in ReadTokens.blocks(query, tokens):
            t = tokens[samples, block]
            weights = ReadTokens.product(query[samples], t).exp2_()
            weights *= ReadTokens.product(grad[samples], t)
            grad_query[samples].add_(ReadTokens.product(weights, t.mT))
        return grad_query, None
