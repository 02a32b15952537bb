"""Tiny checkpoints in the layouts of other projects, each with the output of a reference implementation.

The reference is transformers' implementation; its weights are renamed by hand to the names in the project's files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import Tensor

from support.foreign_layouts import (
    CLIP,
    EPS,
    HALF,
    IMAGENET,
    SIZES,
    TIMM_SIZES,
    File,
    joined,
    randomised,
    renamed,
    written,
    zeros,
)

# Prefixes shared by the encoders of MAE, DINO, DINOv2 and BEiT.
STEM = (
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"attention\.attention\.", "attn."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(blocks\.\d+\.)output\.dense", r"\1mlp.fc2"),
)


def _vit() -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """A plain vision transformer with the names that MAE, DINO and timm use."""
    config = transformers.ViTConfig(**SIZES, intermediate_size=128, layer_norm_eps=EPS)
    model = randomised(transformers.ViTModel(config, add_pooling_layer=False))
    weights = renamed(joined(written(model), "qkv."), *STEM)
    return weights, lambda images: model(images).last_hidden_state


def mae_pretrained() -> File:
    """Layout of MAE's pretraining checkpoints, with decoder and mask token."""
    weights, tokens = _vit()
    decoder = zeros(
        "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight", "decoder_pred.weight", "decoder_norm.bias"
    )
    content = weights | decoder | {"mask_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 17, 16)}
    rest = {"optimizer": {}, "epoch": 799, "scaler": {}, "args": argparse.Namespace(blr=1.5e-4)}
    return File({"model": content, **rest}, tokens, "MAE", {"mask token": 1, "decoder": 5}, IMAGENET)


def mae_encoder() -> File:
    """Layout of MAE's published pretrained encoders."""
    weights, tokens = _vit()
    return File({"model": weights}, tokens, "ViT")


def dino_backbone() -> File:
    """Layout of DINO's published backbones."""
    weights, tokens = _vit()
    return File(weights, tokens, "ViT")


def dino_whole() -> File:
    """Layout of DINO's training checkpoints: student and teacher, each with projection head."""
    weights, tokens = _vit()
    heads = zeros("head.mlp.0.weight", "head.mlp.0.bias", "head.last_layer.weight_g", "head.last_layer.weight_v")
    teacher = {f"backbone.{name}": value for name, value in weights.items()} | heads
    student = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in weights.items()}
    rest = {"optimizer": {}, "epoch": 100, "args": argparse.Namespace(arch="vit_small"), "dino_loss": {}}
    return File({"student": student, "teacher": teacher, **rest}, tokens, "ViT", {"parts beside the backbone": 4})


def dino_without_prefix() -> File:
    """DINO's teacher as users save it, its prefixes removed."""
    file = dino_whole()
    content = {name.removeprefix("backbone."): value for name, value in file.content["teacher"].items()}
    return File(content, file.tokens, "ViT", {"projection heads": 4})


def dino_student() -> File:
    """A checkpoint that holds a student alone."""
    weights, tokens = _vit()
    return File({"student": {f"module.backbone.{name}": value for name, value in weights.items()}}, tokens, "ViT")


def dinov2(registers: int = 0, swiglu: bool = False) -> File:
    """Layout of DINOv2's published backbones."""
    common = {**SIZES, "mlp_ratio": 4, "layer_norm_eps": EPS, "use_swiglu_ffn": swiglu}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=registers)
        model = randomised(transformers.Dinov2WithRegistersModel(config))
    else:
        model = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**common)))
    weights = renamed(
        joined(written(model), "qkv."),
        *STEM,
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"weights_in", "w12"),
        (r"weights_out", "w3"),
    )
    family = "DINOv2 with SwiGLU" if swiglu else "DINOv2"
    return File(weights, lambda images: model(images).last_hidden_state, family, {"mask token": 1}, IMAGENET)


def dinov2_registers() -> File:
    return dinov2(registers=4)


def dinov2_swiglu() -> File:
    return dinov2(swiglu=True)


def dinov2_registers_swiglu() -> File:
    return dinov2(registers=4, swiglu=True)


def beit(shared: bool = False, absolute: bool = False) -> File:
    """Layout of BEiT's pretraining checkpoints: relative positions per block or shared, and the prediction head."""
    config = transformers.BeitConfig(
        **SIZES,
        intermediate_size=64,
        layer_norm_eps=EPS,
        use_relative_position_bias=not shared and not absolute,
        use_shared_relative_position_bias=shared,
        use_absolute_position_embeddings=absolute,
        use_mask_token=True,
        use_mean_pooling=False,
    )
    model = randomised(transformers.BeitModel(config, add_pooling_layer=False))
    weights = written(model)
    for name in [name for name in weights if name.endswith("query.weight")]:  # the key has no bias
        block = name.removesuffix("query.weight")
        parts = [weights.pop(f"{block}{part}.weight") for part in ("query", "key", "value")]
        weights[f"{block}qkv.weight"] = torch.cat(parts)
        weights[f"{block}q_bias"], weights[f"{block}v_bias"] = (
            weights.pop(f"{block}{p}.bias") for p in ("query", "value")
        )
    weights = renamed(
        weights,
        *STEM,
        (r"lambda_(\d)", r"gamma_\1"),
        (r"attn\.relative_position_bias\.", "attn."),
        (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    )
    if shared:
        weights["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    rest = zeros("lm_head.weight", "lm_head.bias")
    left_out = {"mask token": 1, "prediction head": 2} | ({"indices": 1} if shared else {})
    return File({"model": weights | rest}, lambda x: model(x).last_hidden_state, "BEiT", left_out, HALF)


def beit_shared() -> File:
    return beit(shared=True)


def simmim() -> File:
    """Layout of SimMIM's pretraining checkpoints: an encoder as BEiT's, and a convolution."""
    file = beit(shared=True)
    weights = {f"encoder.{name}": value for name, value in file.content["model"].items() if "lm_head" not in name}
    rest = {"optimizer": {}, "lr_scheduler": {}, "max_accuracy": 0.0, "epoch": 799}
    content = {"model": weights | zeros("decoder.0.weight", "decoder.0.bias"), **rest}
    return File(content, file.tokens, "SimMIM", file.left_out, IMAGENET)


def beit_absolute() -> File:
    return beit(absolute=True)


def _clip(activation: str) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """CLIP's image tower, with CLIP's names."""
    config = transformers.CLIPVisionConfig(**SIZES, intermediate_size=128, projection_dim=16, hidden_act=activation)
    model = randomised(transformers.CLIPVisionModelWithProjection(config))
    weights = written(model)
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        block = name.removesuffix("q_proj.weight")
        for kind in ("weight", "bias"):
            weights[f"{block}in_proj_{kind}"] = torch.cat([weights.pop(f"{block}{p}_proj.{kind}") for p in "qkv"])
    weights["proj"] = weights.pop("visual_projection.weight").T.contiguous()
    weights = renamed(
        weights,
        (r"^vision_model\.", ""),
        (r"^embeddings\.patch_embedding", "conv1"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^embeddings\.", ""),
        (r"^encoder\.layers\.", "transformer.resblocks."),
        (r"self_attn\.", "attn."),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"pre_layrnorm", "ln_pre"),
        (r"post_layernorm", "ln_post"),
    )

    def tokens(images_BCHW: Tensor) -> Tensor:
        tower = model.vision_model
        return tower.post_layernorm(tower(images_BCHW).last_hidden_state)

    return weights, tokens


TEXT = ("token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight", "logit_scale",
        "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.mlp.c_fc.weight")  # fmt: skip


def clip_openai() -> File:
    """Layout of OpenAI's archives."""
    weights, tokens = _clip("quick_gelu")
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    content = {f"visual.{name}": value for name, value in weights.items()} | zeros(*TEXT) | numbers
    return File(content, tokens, "CLIP (OpenAI)", {"projection": 1, "text tower": 10}, CLIP)


def clip_open_clip() -> File:
    """Layout of open_clip's training checkpoints."""
    weights, tokens = _clip("gelu")
    content = {f"module.visual.{name}": value for name, value in weights.items()}
    content |= {f"module.{name}": value for name, value in zeros(*TEXT).items()}
    left_out = {"projection": 1, "text tower": 7}
    return File({"state_dict": content, "epoch": 32}, tokens, "CLIP (open_clip)", left_out, CLIP)


def clip_open_clip_quick() -> File:
    """An open_clip encoder with QuickGELU, which cannot be inferred from its weights."""
    weights, tokens = _clip("quick_gelu")
    content = {f"visual.{name}": value for name, value in weights.items()}
    options = ("task.source.architecture=vit_base_patch16_clip_quickgelu_224",)
    return File(content, tokens, "CLIP (open_clip)", {"projection": 1}, CLIP, options)


def clip_tower() -> File:
    """The image tower alone."""
    weights, tokens = _clip("gelu")
    return File(weights, tokens, "CLIP's image tower", {"projection": 1}, CLIP)


def huggingface_vit() -> File:
    """Layout of transformers' ViT with a classifier, hence with an additional name prefix."""
    config = transformers.ViTConfig(**SIZES, intermediate_size=64, layer_norm_eps=EPS, num_labels=5)
    model = randomised(transformers.ViTForImageClassification(config))
    return File(written(model), lambda x: model.vit(x).last_hidden_state, "ViT (transformers)")


def huggingface_mae() -> File:
    """Layout of transformers' MAE, with the decoder."""
    config = transformers.ViTMAEConfig(**SIZES, intermediate_size=64, layer_norm_eps=EPS, mask_ratio=0.0,
                                       decoder_hidden_size=16, decoder_num_hidden_layers=1,
                                       decoder_num_attention_heads=2, decoder_intermediate_size=32)  # fmt: skip
    model = randomised(transformers.ViTMAEForPreTraining(config))
    weights = written(model)
    decoder = sum(name.startswith("decoder.") for name in weights)

    def tokens(images_BCHW: Tensor) -> Tensor:
        order_BL = torch.arange(16.0).expand(len(images_BCHW), -1)  # MAE shuffles patches by sorting noise
        return model.vit(images_BCHW, noise=order_BL).last_hidden_state

    return File(weights, tokens, "ViT (transformers)", {"decoder": decoder})


def timm_file(name: str, family: str, mean: tuple[float, ...] | None = None, **parts: Any) -> File:
    """State dict of a timm model."""
    model = randomised(timm.create_model(name, **TIMM_SIZES | parts))
    return File(model.state_dict(), model.forward_features, family, {}, mean)


def timm_plain() -> File:
    return timm_file("vit_tiny_patch16_224", "ViT", num_classes=7)


def timm_parts() -> File:
    """Layer scale, registers without positions, normalised queries and keys, no bias for queries and keys."""
    parts = {"init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True, "qk_norm": True, "qkv_bias": False}
    return timm_file("vit_tiny_patch16_224", "ViT", **parts, mlp_ratio=2.0, num_classes=0)


def timm_registers_with_positions() -> File:
    return timm_file("vit_tiny_patch16_224", "ViT", reg_tokens=3, num_classes=0)


def timm_no_class_token() -> File:
    return timm_file("vit_tiny_patch16_224", "ViT", class_token=False, global_pool="avg", fc_norm=False, num_classes=3)


def timm_clip() -> File:
    return timm_file("vit_base_patch16_clip_224", "CLIP (timm)", CLIP, num_classes=0)


def timm_distilled() -> File:
    """DeiT with class and distillation token."""
    return timm_file("deit_base_distilled_patch16_224", "DeiT (distilled)", IMAGENET, num_classes=0)


def open_clip_timm() -> File:
    """A vision transformer of timm as open_clip's image tower."""
    file = timm_clip()
    content = {f"module.visual.trunk.{name}": value for name, value in file.content.items()}
    content |= {"module.visual.head.proj.weight": torch.ones(5, 32)}
    content |= {f"module.{name}": value for name, value in zeros(*TEXT).items()}
    left_out = {"parts beside the backbone": 7}
    return File({"state_dict": content, "epoch": 32}, file.tokens, "CLIP (timm)", left_out, CLIP)


def timm_beit() -> File:
    return timm_file("beit_base_patch16_224", "BEiT", HALF, global_pool="token", num_classes=0)


FAMILIES = (
    mae_pretrained, mae_encoder, dino_backbone, dino_whole, dino_without_prefix, dino_student, dinov2, dinov2_registers,
    dinov2_swiglu, dinov2_registers_swiglu, beit, beit_shared, beit_absolute, simmim, clip_openai, clip_open_clip,
    clip_open_clip_quick, clip_tower, huggingface_vit, huggingface_mae, timm_plain, timm_parts,
    timm_registers_with_positions, timm_no_class_token, timm_clip, timm_distilled, open_clip_timm, timm_beit,
)  # fmt: skip
