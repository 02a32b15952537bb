"""Frozen teachers: pretrained networks whose features are the target and may determine the order of patches.

Shapes: B images, C colours, H x W pixels, L patches, N = 1 + L tokens (cls first), P channels of the teacher.
Sources: SemAIM (arXiv 2312.10457), section 3.3; DINO (arXiv 2104.14294); CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.checkpoints import timm_models
from semaim.checkpoints.encoder_source import MLFLOW, RANDOM, TIMM
from semaim.checkpoints.formats import Normalisation
from semaim.checkpoints.pretrained import check_finite
from semaim.checkpoints.teacher_network import OPTION, named_network, network_of, stored_encoder, weights_of_named
from semaim.errors import UserError
from semaim.models.flops import on_meta, operations
from semaim.models.layers import first_row_of_attention
from semaim.models.predictor import Predictor
from semaim.models.vit import weights_checksum
from semaim.targets import Features, PatchTarget

if TYPE_CHECKING:
    from semaim.runs.context import Run

log = logging.getLogger(__name__)


class Teacher(PatchTarget, Features):
    """Target: patch tokens of a frozen vision transformer.

    The network of a named model has no weights before `load`; weights that determine the model are read at once.

    Args:
        model: timm's model name; `local-dir:<folder>` for a model in a folder; null if `weights` determine the model.
        weights: what `checkpoint=` of an evaluation takes, except `mlflow:` and `random`; null for the weights from the
            hub (or from the folder) of the model.
        pretrained: false for random weights, for trials.
        projection: apply the network's last linear layer (CLIP's projection) to every token after the final norm.
        normalization: colour normalisation of the teacher's input: "teacher", the one it was trained with, or "data",
            the one of the images (SemAIM's code does this with CLIP).
        patch_size: pixels per side of the model's patches; images are resized so that the teacher has as many patches.
        mean: means of the images' colours, which normalise them.
        std: their standard deviations.

    Raises:
        UserError: for options that do not fit, or a model that cannot be a teacher.
    """

    def __init__(
        self,
        model: str | None,
        weights: str | None,
        pretrained: bool,
        projection: bool,
        normalization: Literal["teacher", "data"],
        patch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if normalization not in ("teacher", "data"):
            raise UserError(f"target.normalization={normalization} is unknown: choose teacher or data")
        if weights is not None and not pretrained:
            raise UserError(f"target.pretrained=false is a random teacher, but target.weights={weights}: choose one")
        if weights is not None and weights.startswith(TIMM) and model is None:
            model, weights = weights.removeprefix(TIMM), None
        if weights is not None and (weights == RANDOM or weights.startswith((TIMM, MLFLOW))):
            raise UserError(f"{OPTION}={weights} is neither a file nor a folder: give the run folder of a tracked run, "
                            f"target.model=<timm's name> for weights from the hub, target.pretrained=false for random "
                            f"ones")  # fmt: skip
        self.model = model
        self.weights = weights
        self.name = f"target.model={model}" if model is not None else f"{OPTION}={weights}"
        self.pretrained = pretrained
        self.projection = projection
        self.patch_size = patch_size
        self.identity: dict[str, str] = {}
        self.colours: Normalisation | None
        if model is not None:
            with torch.device("meta"):
                self.network = named_network(model, projection)
            self.colours = tuple(self.network.pretrained_cfg["mean"]), tuple(self.network.pretrained_cfg["std"])
        elif weights is not None:
            stored = stored_encoder(weights, projection)
            self.network, self.colours = network_of(stored, projection), stored.normalisation
        else:
            raise UserError(f"target.model=null needs {OPTION}=runs/<name> (or another encoder), which determines the "
                            f"model")  # fmt: skip
        super().__init__(self.network.num_classes if projection else self.network.embed_dim)
        self.normalization = normalization
        self._set_normalization(mean, std)

    def _set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the conversion from images with this colour normalisation to the teacher's."""
        own = self.colours if self.normalization == "teacher" else None
        teacher_mean, teacher_std = own or (mean, std)
        std_C, teacher_std_C = (torch.tensor(values, dtype=torch.float64) for values in (std, teacher_std))
        mean_C, teacher_mean_C = (torch.tensor(values, dtype=torch.float64) for values in (mean, teacher_mean))
        self.scale_C11 = (std_C / teacher_std_C).float()[:, None, None]
        self.shift_C11 = ((mean_C - teacher_mean_C) / teacher_std_C).float()[:, None, None]

    def fitted(self, model: Predictor, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Copy of this teacher for another model; see `Target`."""
        adapted = super().fitted(model, mean, std)
        adapted._set_normalization(mean, std)
        adapted.to(self.scale_C11.device)
        return adapted

    def check_weights(self) -> None:
        """Raise UserError if `weights` do not fit the named model. Those of the hub are not looked for."""
        self._weights_of_named()

    def _weights_of_named(self) -> dict[str, Tensor] | None:
        if self.model is None or self.weights is None:
            return None
        return weights_of_named(self.network, self.model, stored_encoder(self.weights, self.projection))

    def load(self) -> None:
        """Load the network's weights and freeze them.

        Raises:
            UserError: if the weights are unavailable; the message says where to get them.
        """
        if self.identity:
            return
        source = self.weights or "hub"
        if (weights := self._weights_of_named()) is not None:
            self.network.load_state_dict(weights, assign=True)
        elif self.model is not None and self.pretrained:
            source = "folder" if self.model.startswith(timm_models.LOCAL) else "hub"
            self.network = named_network(self.model, self.projection, from_hub=True)
        elif self.model is not None:
            source = "random"
            with torch.random.fork_rng(devices=[]):  # later random draws do not depend on the teacher
                self.network = named_network(self.model, self.projection)
        if self.colours is None and self.normalization == "teacher":
            log.warning("%s does not show the colour normalisation of its training: it gets that of the data. "
                        "target.model=<timm's name> determines it", self.name)  # fmt: skip
        self.network.requires_grad_(False).eval()
        check_finite(self.network.state_dict(), self.name)
        self.identity = {
            "model": self.model or str(self.weights), "source": source, "checksum": weights_checksum(self.network),
        }  # fmt: skip

    def to(self, device: torch.device) -> None:
        """Move the network to a device."""
        self.network.to(device)
        self.scale_C11, self.shift_C11 = self.scale_C11.to(device), self.shift_C11.to(device)

    def begin(self, run: Run) -> None:
        """Move the network to the training device and tag the run with the teacher's identity.

        Raises:
            UserError: if the processes have different weights.
        """
        self.to(run.processes.device)
        checksums = run.processes.gather(self.identity["checksum"])
        if len(set(checksums)) > 1:
            raise UserError(
                f"the processes have different weights of {self.name}, by checksum "
                f"{', '.join(checksum[:12] for checksum in checksums)}: give all of them the same file"
            )
        if not self.pretrained:
            log.warning(
                "target.pretrained=false: the teacher %s is RANDOM. Its weights are untrained, so losses and "
                "accuracies of this run are not meaningful for this target",
                self.model,
            )
        run.tag({f"teacher.{key}": value for key, value in self.identity.items()})

    def check_same(self, saved: dict[str, str]) -> None:
        """Raise UserError if a continued run was started with another teacher.

        Args:
            saved: `identity` of the teacher in the checkpoint.
        """
        if saved["checksum"] != self.identity["checksum"]:
            raise UserError(
                f"this run was started with another teacher: {saved['model']} ({saved['source']}, checksum "
                f"{saved['checksum'][:12]}), now it is {self.identity['model']} ({self.identity['source']}, checksum "
                f"{self.identity['checksum'][:12]}). Restore the weights it had, or give this run another name with "
                f"run_name=..."
            )

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    def flops(self, patches: int) -> int:
        """Floating-point operations of a forward pass over an image with this number of patches."""
        network = on_meta(self.network)
        height, width = network.patch_embed.patch_size
        images_BCHW = torch.empty(1, 3, height, patches * width, device="meta")  # a row costs as much as any grid
        return operations(lambda: network.head(network.fc_norm(network.forward_features(images_BCHW))))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, N, P) of normalised images, after the final norm and the projection if there is one."""
        network = self.network
        tokens_BND = network.forward_features(self.teacher_images(images_BCHW))
        if network.num_prefix_tokens > 1:  # drop register tokens
            tokens_BND = torch.cat([tokens_BND[:, :1], tokens_BND[:, network.num_prefix_tokens :]], dim=1)
        return network.head(network.fc_norm(tokens_BND))

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, plus the last block's attention from cls to each patch averaged over heads, (B, L)."""
        attention, captured = self.network.blocks[-1].attn, []
        hook = attention.qkv.register_forward_hook(lambda _module, _inputs, qkv_BNF: captured.append(qkv_BNF))
        try:
            tokens_BNP = self.encode(images_BCHW)
        finally:
            hook.remove()
        q, k, _ = captured[0].unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attention_BN = first_row_of_attention(attention.q_norm(q), attention.k_norm(k))
        return tokens_BNP, attention_BN[:, self.network.num_prefix_tokens :]

    def teacher_images(self, images_BCHW: Tensor) -> Tensor:
        """Images in the teacher's normalisation, resized so that its number of patches equals the model's."""
        images_BCHW = images_BCHW * self.scale_C11 + self.shift_C11
        sides = zip(images_BCHW.shape[-2:], self.network.patch_embed.patch_size, strict=True)
        size = tuple(side // self.patch_size * teacher_patch for side, teacher_patch in sides)
        if images_BCHW.shape[-2:] == size:
            return images_BCHW
        return F.interpolate(images_BCHW, size=size, mode="bicubic", antialias=True, align_corners=False)
