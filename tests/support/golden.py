"""The golden files: small models, crops of two photographs, and the output of the authors' code (float32, CPU)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semaim.models.aim import AIM
from semaim.models.token_cache import TokenCache
from semaim.targets import Features, Pixels

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Golden:
    """One golden file: its arrays as tensors, our model with its weights, and the matching target."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        config: dict[str, Any] = json.loads(str(self.arrays["config_json"]))
        self.config = config
        self.state = {name[6:]: self[name] for name in self.arrays if name.startswith("state/")}
        self.blur_weight = self.state.pop("gaussian_blur.weight", None)
        self.target: Pixels | Features
        if "predict_feature" in config:
            self.target = Features(channels=self["target_tokens"].shape[-1])
        else:
            blur = {"blur_kernel_size": config.get("gaussian_kernel_size", 0)}
            norm_pix, loss = config["norm_pix_loss"], config["loss_type"].lower()
            self.target = Pixels(config["patch_size"], **blur, norm_pix=norm_pix, loss=loss)
        sizes = {key: config[key] for key in ("patch_size", "embed_dim", "depth", "num_heads", "query_depth")}
        head = config["prediction_head_type"].lower()
        self.model = AIM(self.target.channels, config["img_size"], **sizes, head=head).eval()
        self.own_positions = self.model.pos_embed.clone()
        self.model.load_state_dict(self.state, strict=True)
        images_BHWC = (self["images_uint8_nhwc"].float() / 255 - MEAN) / STD
        self.images_BCHW = images_BHWC.permute(0, 3, 1, 2).contiguous()

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def order(self, name: str) -> Tensor:
        return self[f"{name}/order"].long()

    def targets(self) -> Tensor:
        """Prediction targets, (B, L, P); those of a teacher are read from the file."""
        return self.target(self.images_BCHW, TokenCache({"teacher": self}, self.images_BCHW))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return self["target_tokens"]

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("no target needs attention")


golden = functools.cache(Golden)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference over all elements."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / theirs.abs()).max().item()
