"""The same model in another implementation: our weights under perceiver-pytorch's names."""

import re

import torch
from perceiver_pytorch import Perceiver as PerceiverPytorch
from torch import Tensor

from perceiver import Perceiver

# Our name -> perceiver-pytorch's, applied in turn; feed-forward `expand` and `contract` are the
# first and third module of its `net`.
RENAMES = [
    (r"^blocks\.(\d+)\.cross_attention\.norm\.", r"layers.\1.cross_attn.norm."),
    (r"^blocks\.(\d+)\.cross_attention\.token_scale", r"layers.\1.cross_attn.norm_context.weight"),
    (r"^blocks\.(\d+)\.cross_attention\.token_shift", r"layers.\1.cross_attn.norm_context.bias"),
    (r"^blocks\.(\d+)\.cross_attention\.", r"layers.\1.cross_attn.fn."),
    (r"^blocks\.(\d+)\.latent_layers\.0\.", r"layers.\1.cross_ff."),
    (r"^norm\.", "to_logits.1."),
    (r"^head\.", "to_logits.2."),
    (r"\.expand\.", ".fn.net.0."),
    (r"\.contract\.", ".fn.net.2."),
]


def peer_names(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Rename (and split or join) named weights, or their gradients, to perceiver-pytorch's.

    Weights that ours shares between iterations appear once here and once an iteration there.
    """
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    renamed = {}
    for name, tensor in tensors.items():
        # Latent layers come in pairs after the first: attention 1, feed-forward 2, attention 3, ...
        if match := re.match(r"blocks\.(\d+)\.latent_layers\.(\d+)\.(.+)", name):
            block, layer, rest = int(match[1]), int(match[2]), match[3]
            if layer > 0:
                inner = "fn." if rest.startswith("to_") else ""
                name = (
                    f"layers.{block}.self_attns.{(layer - 1) // 2}.{(layer - 1) % 2}.{inner}{rest}"
                )
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("to_qkv.weight"):
            q, k, v = tensor.chunk(3)
            renamed[name.replace("to_qkv", "to_q")] = q
            renamed[name.replace("to_qkv", "to_kv")] = torch.cat([k, v])
        else:
            renamed[name] = tensor
    for name in [name for name in renamed if name.endswith("to_k.weight")]:
        keys, values = renamed.pop(name), renamed.pop(name.replace("to_k.", "to_v."))
        renamed[name.replace("to_k.", "to_kv.")] = torch.cat([keys, values])
    last = f"layers.{blocks - 1}."
    for name in [name for name in renamed if name.startswith(last)]:
        for iteration in range(blocks, depth):
            renamed[name.replace(last, f"layers.{iteration}.", 1)] = renamed[name]
    return renamed


def perceiver_pytorch_like(model: Perceiver) -> PerceiverPytorch:
    """perceiver-pytorch's Perceiver with the configuration and the weights of ours.

    It takes channels last: `peer(images.movedim(1, -1))`.
    """
    config = dict(model.config)
    config["attn_dropout"] = config.pop("attention_dropout")
    if config.pop("activation") != "geglu":
        raise ValueError("perceiver-pytorch has GEGLU only")
    peer = PerceiverPytorch(**{k: v for k, v in config.items() if k != "checkpoint_latents"})
    peer.load_state_dict(peer_names(model.state_dict(), model.config["depth"]))
    return peer
