"""The encoder by itself: timm's vision transformer with the weights of a pretrained content stream.

Shapes: B images, N tokens (those before the patches first), D width.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.layers import LAYER_NORM_EPS

Pool = Literal["cls", "mean"]
SIZES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
PLAIN = "vit_base_patch16_224"  # timm's model of the parts that our encoders have


def build_vit(sizes: dict[str, Any], num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
    """A vision transformer with random weights.

    With pool="mean" the patch tokens are averaged and then normed (fc_norm), as in MAE's fine-tuning; with "cls" the
    class token is normed and read.

    Args:
        sizes: those of `AIM.architecture`, or {"timm": name, "args": {...}} for one of timm's models with other sizes
            or parts than its own (no args: with its own).
        num_classes: outputs of the linear head; 0 for none.
        pool: what the head reads.
        drop_path: stochastic depth rate of the last block.
    """
    if pool not in ("cls", "mean"):
        raise UserError(f"task.pool={pool} is unknown: choose cls or mean")
    settings: dict[str, Any] = {"num_classes": num_classes, "global_pool": "token" if pool == "cls" else "avg"}
    settings["drop_path_rate"] = drop_path
    if "timm" in sizes:
        model = timm.create_model(sizes["timm"], pretrained=False, **sizes.get("args", {}), **settings)
    else:
        model = VisionTransformer(
            img_size=tuple(sizes["image_size"]),
            patch_size=sizes["patch_size"],
            embed_dim=sizes["embed_dim"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
            **settings,
        )
    # What a checkpoint of it needs in order to be built again.
    model.architecture = {"classifier": {"sizes": sizes, "num_classes": num_classes, "pool": pool}}
    return model


def as_timm(sizes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The sizes that `build_vit` takes as the name of a model of timm's and its arguments, in plain types."""
    if "timm" in sizes:
        return sizes["timm"], sizes.get("args", {})
    args = {name: sizes[name] for name in SIZES if name != "image_size"}
    return PLAIN, {"img_size": list(sizes["image_size"]), **args}


def from_timm(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Undo of `as_timm`: an encoder that could be ours is described as ours are."""
    patch = args.get("patch_size")
    sides = {patch} if isinstance(patch, int) else set(patch or ())
    if name != PLAIN or set(args) != {"img_size", *SIZES} - {"image_size"} or len(sides) != 1:
        return {"timm": name, "args": args}
    return {"image_size": pair(args["img_size"]), "patch_size": sides.pop()} | {name: args[name] for name in SIZES[2:]}


def vit_of(model: AIM, num_classes: int = 0, pool: Pool = "cls", drop_path: float = 0.0) -> VisionTransformer:
    """The encoder of a two-stream model; a head, and the norm before it if pool="mean", start anew."""
    vit = build_vit({key: model.architecture[key] for key in SIZES}, num_classes, pool, drop_path)
    weights = vit.state_dict()
    own = {name: value for name, value in model.state_dict().items() if name in weights}
    missing = weights.keys() - own.keys() - {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert not missing, missing
    vit.load_state_dict(weights | own)
    return vit


def resample_positions(vit: VisionTransformer, image_size: tuple[int, int]) -> None:
    """Make an encoder one for images of another size: its position embeddings are resampled, as timm does it.

    Absolute embeddings bicubic with antialiasing, BEiT's tables of relative ones linearly, finer where they are near.

    Raises:
        UserError: if the size is not divisible by the patch size.
    """
    patch_size = vit.patch_embed.patch_size
    if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise UserError(
            f"data.image_size={image_size[0]}x{image_size[1]} is not divisible by the encoder's patches of "
            f"{patch_size[0]}x{patch_size[1]}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what timm's interpolation of tables asks of torch
        vit.set_input_size(img_size=image_size)
    classifier = vit.architecture["classifier"]
    sizes = classifier["sizes"]
    if "timm" in sizes:
        sizes = sizes | {"args": sizes.get("args", {}) | {"img_size": list(image_size)}}
    else:
        sizes = sizes | {"image_size": image_size}
    vit.architecture = {"classifier": classifier | {"sizes": sizes}}


def pooled(tokens_BND: Tensor, prefix_tokens: int = 1, class_token: bool = True) -> dict[str, Tensor]:
    """The two usual features of an image: the class token ("cls"), and the mean of the patch tokens ("mean").

    Args:
        tokens_BND: normed tokens, the class token first if there is one.
        prefix_tokens: tokens before those of the patches: the class token, registers.
        class_token: whether there is one.
    """
    mean_BD = tokens_BND[:, prefix_tokens:].float().mean(1)
    return {"cls": tokens_BND[:, 0].float(), "mean": mean_BD} if class_token else {"mean": mean_BD}


def encode(vit: VisionTransformer, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Features of images, (B, D) in float32: "cls" (if the model has a class token) and "mean"."""
    tokens_BND = vit.forward_features(images_BCHW)
    by_kind = pooled(tokens_BND, vit.num_prefix_tokens, vit.cls_token is not None)
    return {kind: vit.fc_norm(x_BD) for kind, x_BD in by_kind.items()}


def weights_checksum(network: nn.Module, about: str = "") -> str:
    """Checksum of a network's weights, with their names, and of what else is said about it."""
    checksum = hashlib.sha256(about.encode())
    for name, value in network.state_dict().items():
        checksum.update(name.encode())
        checksum.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
