"""Small teachers for tests, and files of their weights in the common layouts.

Shapes: B images, N tokens (cls first), D width, P channels after CLIP's projection.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import register_model
from timm.models._registry import generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import Tensor, nn

from semaim.teachers import Teacher

GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # the normalisation of images in tests
COLOURS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}  # the normalisation of the teachers
default_cfgs = generate_default_cfgs(
    {
        "tiny_dino.here": {"hf_hub_id": "nobody/tiny_dino", "url": "https://example.org/dino.pth", "num_classes": 0}
        | COLOURS,
        "tiny_clip.here": {"hf_hub_id": "nobody/tiny_clip", "num_classes": 20} | COLOURS,
    }
)


@register_model
def tiny_dino(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Three blocks of width 24, with patches of 8 pixels."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return _create_vision_transformer("tiny_dino", pretrained=pretrained, **{**sizes, **options})


@register_model
def tiny_clip(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """CLIP structure: a norm before the blocks, QuickGELU, a projection."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    kind = {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": "quick_gelu"}
    return _create_vision_transformer("tiny_clip", pretrained=pretrained, **{**sizes, **kind, **options})


def teacher(model: str | None = "tiny_dino.here", **options: Any) -> Teacher:
    """A teacher, not yet loaded, for images with 4-pixel patches normalised by GREY."""
    usual: dict[str, Any] = {"weights": None, "pretrained": True, "normalization": "teacher", "patch_size": 4}
    return Teacher(**{"model": model, "projection": "clip" in (model or ""), **usual, **GREY, **options})


def network(model: Callable[..., VisionTransformer], seed: int = 0, **options: Any) -> VisionTransformer:
    """A network with all weights random: zero biases and unit scales would hide misplaced ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = model(dynamic_img_size=True, **options).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            if isinstance(made.head, nn.Linear):
                made.head.bias.zero_()  # CLIP's projection has no bias
    return made


# timm's names and CLIP's names, longest first
NAMES = (
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("norm.", "ln_post."),
    ("blocks.", "transformer.resblocks."),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


def visual(made: VisionTransformer) -> dict[str, Tensor]:
    """Weights with the names of CLIP's image tower."""
    found = {}
    for name, value in made.state_dict().items():
        if name == "cls_token":
            found["class_embedding"] = value[0, 0]
        elif name == "pos_embed":
            found["positional_embedding"] = value[0]
        elif name == "head.weight":
            found["proj"] = value.T.contiguous()
        elif name != "head.bias":
            for timms, clips in NAMES:
                name = name.replace(timms, clips)
            found[name] = value
    return {f"visual.{name}": value for name, value in found.items()}


def text_tower(width: int = 16) -> dict[str, Tensor]:
    """The remaining weights of CLIP's files."""
    return {
        "positional_embedding": torch.randn(7, width),
        "token_embedding.weight": torch.randn(30, width),
        "text_projection": torch.randn(width, 20),
        "transformer.resblocks.0.ln_1.weight": torch.randn(width),
        "transformer.resblocks.0.attn.in_proj_weight": torch.randn(3 * width, width),
        "ln_final.weight": torch.randn(width),
        "logit_scale": torch.tensor(4.6),
        "input_resolution": torch.tensor(32),
    }


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def write(path: Path, state: dict[str, Any]) -> Path:
    """Save a weight file in the format of its suffix."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def dino_training(made: VisionTransformer) -> dict[str, Any]:
    """A checkpoint of DINO's training; the teacher's weights are the relevant ones, not the student's."""
    head = {"head.mlp.0.weight": torch.randn(8, 24), "head.last_layer.weight_v": torch.randn(5, 8)}
    student = prefixed("module.backbone.", {name: value + 1 for name, value in made.state_dict().items()})
    return {
        "student": student | prefixed("module.", head),
        "teacher": prefixed("backbone.", made.state_dict()) | head,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 300,
        "args": argparse.Namespace(arch="vit_base", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 5)},
    }


def timm_in_open_clip(made: VisionTransformer) -> dict[str, Tensor]:
    """A timm tower inside open_clip, which stores the projection separately."""
    trunk = {name: value for name, value in made.state_dict().items() if not name.startswith("head.")}
    return prefixed("visual.trunk.", trunk) | {"visual.head.proj.weight": made.head.weight.data} | text_tower()


DINO_LAYOUTS: dict[str, Callable[[VisionTransformer], dict[str, Any]]] = {
    "plain.pth": lambda made: made.state_dict(),
    "training.pth": dino_training,
    "student_wrapped.pth": lambda made: {"teacher": prefixed("module.backbone.", made.state_dict())},
    "timm_training.pth": lambda made: {"state_dict": made.state_dict(), "epoch": 3, "arch": "tiny_dino"},
    "parallel.bin": lambda made: {"model": prefixed("module.", made.state_dict())},
    "plain.safetensors": lambda made: made.state_dict(),
    "with_a_classifier.pt": lambda made: (
        made.state_dict() | {"head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}
    ),
}
CLIP_LAYOUTS: dict[str, Callable[[VisionTransformer], dict[str, Any]]] = {
    "openai.pt": lambda made: visual(made) | text_tower(),
    "image_tower.bin": visual,
    "open_clip_training.pt": lambda made: {
        "epoch": 32,
        "name": "ViT-B-16",
        "state_dict": prefixed("module.", visual(made) | text_tower()),
        "optimizer": {},
    },
    "open_clip.safetensors": lambda made: visual(made) | text_tower(),
    "timm.safetensors": lambda made: made.state_dict(),
    "timm_in_open_clip.bin": lambda made: timm_in_open_clip(made),
}


def clip_by_hand(state: dict[str, Tensor], images_BCHW: Tensor, heads: int = 2) -> Tensor:
    """CLIP's image tower computed by hand from its file: tokens (B, N, P), each after ln_post and the projection."""
    weight = {name.removeprefix("visual."): value for name, value in state.items()}
    kernel = weight["conv1.weight"]
    x_BND = F.conv2d(images_BCHW, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x_BND = torch.cat([weight["class_embedding"].expand(len(x_BND), 1, -1), x_BND], 1) + weight["positional_embedding"]

    def norm(x_BND: Tensor, name: str) -> Tensor:
        x_BND = (x_BND - x_BND.mean(-1, keepdim=True)) / (x_BND.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x_BND * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    x_BND = norm(x_BND, "ln_pre")
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        attention = nn.MultiheadAttention(x_BND.shape[-1], heads, batch_first=True)
        prefix = f"{block}.attn."
        own = {name.removeprefix(prefix): value for name, value in weight.items() if name.startswith(prefix)}
        attention.load_state_dict(own)
        normed_BND = norm(x_BND, f"{block}.ln_1")
        x_BND = x_BND + attention(normed_BND, normed_BND, normed_BND)[0]
        hidden = F.linear(
            norm(x_BND, f"{block}.ln_2"), weight[f"{block}.mlp.c_fc.weight"], weight[f"{block}.mlp.c_fc.bias"]
        )
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x_BND = x_BND + F.linear(hidden, weight[f"{block}.mlp.c_proj.weight"], weight[f"{block}.mlp.c_proj.bias"])
    return norm(x_BND, "ln_post") @ weight["proj"]


def loaded(model: str, path: Path, **options: Any) -> Any:
    made = teacher(model, weights=str(path), **options)
    made.load()
    return made
