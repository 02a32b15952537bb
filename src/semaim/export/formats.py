"""Content of an exported encoder's folder, for timm and for transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import semaim
from semaim.checkpoints.formats import IMAGENET
from semaim.checkpoints.huggingface import model_config, preprocessor_config, to_huggingface
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.core.image_size import pair
from semaim.data.transforms import covered
from semaim.errors import UserError
from semaim.models.vit import as_timm

CROP_RATIO = 0.875  # of SemAIM's evaluation, and the usual value


class Model:
    """The encoder in a checkpoint, to export.

    Attributes:
        vit: the encoder, with its trained head if it has one, in eval mode.
        sizes: arguments of `build_vit`.
        pool: input of the head.
        num_classes: outputs of the head; 0 for none.
        normalisation: of its images; ImageNet's if the checkpoint does not say.
        crop_ratio: sides of the centre crop divided by those that the resized image covers.
        about: version and origin, for `config.json`.
    """

    def __init__(self, stored: StoredEncoder) -> None:
        content = stored.content
        self.vit = content.network(head=True).eval()
        self.sizes, self.pool, self.num_classes = content.sizes, content.pool, content.num_classes
        self.normalisation = stored.normalisation or IMAGENET
        self.crop_ratio = stored.crop_ratio or CROP_RATIO
        self.about: dict[str, Any] = {"version": semaim.__version__}
        if (origin := stored.origin) is not None:
            self.about["origin"] = asdict(origin) | {"data": None}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return pair(self.vit.patch_embed.img_size)

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that resized images cover, before the centre crop."""
        return covered(self.image_size, self.crop_ratio)


@dataclass(frozen=True)
class Content:
    """Content of a folder.

    Attributes:
        tool: library that reads it.
        weights: content of `model.safetensors`.
        settings: content of JSON files, by name.
        snippet: Python code that loads a given folder.
    """

    tool: str
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    snippet: Callable[[Path], str]


def timm_content(model: Model) -> Content:
    """A folder that `timm.create_model("local-dir:...")` reads."""
    name, args = as_timm(model.sizes)
    mean, std = model.normalisation
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.vit.num_features,
        "global_pool": model.vit.global_pool,
        "model_args": args | {"global_pool": model.vit.global_pool},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, *model.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": model.crop_ratio,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": model.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "semaim": model.about,
    }
    call = "logits = model" if model.num_classes else "tokens = model.forward_features"

    def snippet(folder: Path) -> str:
        return f"""import timm
model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{call}(transform(image)[None])  # of an image of PIL's"""

    return Content("timm", model.vit.state_dict(), {"config.json": config}, snippet)


def huggingface_content(model: Model) -> Content:
    """A folder that transformers' ViTModel, or ViTForImageClassification, reads.

    Raises:
        UserError: for encoders with parts that these models do not have.
    """
    if "timm" in model.sizes:
        raise UserError(f"--format huggingface has no {model.sizes['timm']}, only the plain vision transformer: "
                        f"export it with --format timm")  # fmt: skip
    if model.pool != "cls":
        raise UserError("--format huggingface norms all tokens and reads the class token, this encoder norms the mean "
                        "of the patches: export it with --format timm")  # fmt: skip
    classes = [f"LABEL_{index}" for index in range(model.num_classes)]
    mean, std = model.normalisation
    settings = {
        "config.json": model_config(model.sizes, classes) | {"semaim": model.about},
        "preprocessor_config.json": preprocessor_config(model.image_size, max(model.covered), mean, std),
    }
    weights = to_huggingface(model.vit.state_dict(), classifier=bool(classes))
    kind, options = ("AutoModelForImageClassification", "") if classes else ("AutoModel", ", add_pooling_layer=False")
    result = "logits" if classes else "last_hidden_state"

    def snippet(folder: Path) -> str:
        return f"""from transformers import AutoImageProcessor, {kind}
processor = AutoImageProcessor.from_pretrained("{folder}")
model = {kind}.from_pretrained("{folder}"{options})
found = model(**processor(image, return_tensors="pt")).{result}  # of an image of PIL's"""

    return Content("transformers", weights, settings, snippet)


FORMATS: dict[str, Callable[[Model], Content]] = {"timm": timm_content, "huggingface": huggingface_content}
