"""The encoder alone: timm's vision transformer with the weights of a pretrained content stream.

Shapes: B images, N tokens (prefix tokens first), D width.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semaim.core.image_size import pair
from semaim.errors import UserError
from semaim.models.layers import LAYER_NORM_EPS
from semaim.models.predictor import Predictor

Pool = Literal["cls", "mean"]
SIZES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
HEADS = ("head.", "head_dist.")  # beginnings of the names of their weights
PLAIN = "vit_base_patch16_224"  # timm's model with the architecture of semaim's encoders


def build_vit(sizes: dict[str, Any], num_classes: int, pool: Pool, drop_path: float) -> VisionTransformer:
    """A vision transformer with random weights.

    With pool="mean" the patch tokens are averaged and then normalised (fc_norm), as in MAE's fine-tuning; with "cls"
    the class token is normalised and used.

    Args:
        sizes: those of `Predictor.architecture`, or {"timm": name, "args": {...}} for a timm model; `args` are optional
            and override its defaults.
        num_classes: outputs of the linear head; 0 for none.
        pool: input of the head.
        drop_path: stochastic depth rate of the last block.
    """
    if pool not in ("cls", "mean"):
        raise UserError(f"task.pool={pool} is unknown: choose cls or mean")
    settings: dict[str, Any] = {"num_classes": num_classes, "global_pool": "token" if pool == "cls" else "avg"}
    settings["drop_path_rate"] = drop_path
    name, args = as_timm(sizes)
    if "timm" in sizes:
        model = timm.create_model(name, pretrained=False, **args, **settings)
    else:
        model = VisionTransformer(**args, norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS), **settings)
    # Stored in checkpoints, to rebuild the model.
    model.architecture = {"classifier": {"sizes": sizes, "num_classes": num_classes, "pool": pool}}
    return model


def as_timm(sizes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Convert sizes for `build_vit` to the name of a timm model and its arguments, in plain types."""
    if "timm" in sizes:
        return sizes["timm"], sizes.get("args", {})
    args = {name: sizes[name] for name in SIZES if name != "image_size"}
    return PLAIN, {"img_size": list(sizes["image_size"]), **args}


def from_timm(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `as_timm`: an encoder with semaim's architecture gets the sizes of `Predictor.architecture`."""
    patch_size = args.get("patch_size")
    sides = {patch_size} if isinstance(patch_size, int) else set(patch_size or ())
    if name != PLAIN or set(args) != {"img_size", *SIZES} - {"image_size"} or len(sides) != 1:
        return {"timm": name, "args": args}
    return {"image_size": pair(args["img_size"]), "patch_size": sides.pop()} | {name: args[name] for name in SIZES[2:]}


def with_weights(vit: VisionTransformer, weights: Mapping[str, Tensor], new_head: bool = False) -> VisionTransformer:
    """Load weights by timm's names into a vision transformer; names that it does not have are ignored.

    Args:
        vit: the vision transformer, changed in place.
        weights: all of its weights.
        new_head: its head is new, and so is the norm before the head if its position differs in the weights.
    """
    initial = vit.state_dict()
    loaded = {name: value for name, value in weights.items() if name in initial}
    if new_head:
        loaded = {name: value for name, value in loaded.items() if not name.startswith(HEADS)}
    new = ("norm.", "fc_norm.", *HEADS) if new_head else ()
    missing = [name for name in initial.keys() - loaded.keys() if not name.startswith(new)]
    assert not missing, missing
    vit.load_state_dict(initial | loaded)
    return vit


def vit_of(model: Predictor, num_classes: int = 0, pool: Pool = "cls", drop_path: float = 0.0) -> VisionTransformer:
    """The encoder of a model; the head, and the norm before it if pool="mean", are newly initialised."""
    vit = build_vit({key: model.architecture[key] for key in SIZES}, num_classes, pool, drop_path)
    return with_weights(vit, model.state_dict(), new_head=True)


def resample_positions(vit: VisionTransformer, image_size: tuple[int, int]) -> None:
    """Adapt an encoder to another image size, in place: resample its position embeddings as timm does.

    Absolute embeddings are resampled bicubically with antialiasing, BEiT's tables of relative positions linearly on a
    grid that is finer near zero.

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
        warnings.simplefilter("ignore")  # timm's interpolation of the tables triggers warnings of torch
        vit.set_input_size(img_size=image_size)
    classifier = vit.architecture["classifier"]
    sizes = classifier["sizes"]
    if "timm" in sizes:
        sizes = sizes | {"args": sizes.get("args", {}) | {"img_size": list(image_size)}}
    else:
        sizes = sizes | {"image_size": image_size}
    vit.architecture = {"classifier": classifier | {"sizes": sizes}}


def pooled(tokens_BND: Tensor, prefix_tokens: int = 1, class_token: bool = True) -> dict[str, Tensor]:
    """Pooled features of images: the class token ("cls"), and the mean of the patch tokens ("mean").

    Args:
        tokens_BND: tokens after the final norm, the class token first if there is one.
        prefix_tokens: number of tokens before the patch tokens (class token, registers).
        class_token: whether there is a class token.
    """
    mean_BD = tokens_BND[:, prefix_tokens:].float().mean(1)
    return {"cls": tokens_BND[:, 0].float(), "mean": mean_BD} if class_token else {"mean": mean_BD}


def encode(vit: VisionTransformer, images_BCHW: Tensor, mean_before_norm: bool = False) -> dict[str, Tensor]:
    """Features of images, (B, D) in float32: "cls" (if the model has a class token) and "mean".

    With `mean_before_norm` also the feature of that name: the mean of the patch tokens before the final norm, through a
    LayerNorm without weights. It is the feature of `--global_pool` in the k-NN of SemAIM's code, whose LayerNorm after
    the mean is never trained.
    """
    if mean_before_norm:
        tokens_BND, (last_BLD,) = vit.forward_intermediates(images_BCHW, indices=1, output_fmt="NLC")
    else:
        tokens_BND = vit.forward_features(images_BCHW)
    by_kind = pooled(tokens_BND, vit.num_prefix_tokens, vit.cls_token is not None)
    by_kind = {kind: vit.fc_norm(x_BD) for kind, x_BD in by_kind.items()}
    if mean_before_norm:
        mean_BD = last_BLD.float().mean(1)
        by_kind["mean_before_norm"] = F.layer_norm(mean_BD, mean_BD.shape[-1:], eps=LAYER_NORM_EPS)
    return by_kind


def weights_checksum(network: nn.Module, description: str = "") -> str:
    """Checksum of a description and of a network's weights and their names."""
    checksum = hashlib.sha256(description.encode())
    for name, value in network.state_dict().items():
        checksum.update(name.encode())
        checksum.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return checksum.hexdigest()
