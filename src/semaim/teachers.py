"""Frozen teachers: networks of others whose features are predicted, and which may decide the order of patches.

Shapes: B images, C colours, H x W pixels, L patches, N = 1 + L tokens (cls first), P channels of the teacher.
Sources: SemAIM (arXiv 2312.10457), section 3.3; DINO (arXiv 2104.14294); CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.checkpoints import timm_models
from semaim.checkpoints.teacher_weights import build, fill
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.flops import encoder_cost
from semaim.models.layers import first_row_of_attention
from semaim.models.vit import weights_checksum
from semaim.targets import Features, check_patch_size

if TYPE_CHECKING:
    from semaim.runs.context import Run

log = logging.getLogger(__name__)


class Teacher(Features):
    """Patch tokens of a frozen vision transformer of timm's, and that network; it has no values before `load`.

    Args:
        model: timm's name of it; `local-dir:<folder>` for one in a folder, such as semaim exports.
        weights: a file of its weights, as DINO, CLIP, open_clip or timm save them; null for those of the hub (or of the
            folder).
        pretrained: false for random weights, to try things out.
        projection: put every token, after the final norm, through the network's last linear layer (CLIP's projection).
        normalization: of the colours that it sees: "teacher", which it was made for, or "data", as the images come,
            which is what SemAIM's code gave CLIP.
        patch_size: pixels per side of the model's patches; the images are resized so that the teacher has as many.
        mean, std: of the colours of the images, by which they are normalised.

    Raises:
        UserError: for options that do not fit, or a model that cannot teach.
    """

    def __init__(
        self,
        model: str,
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
        self.model = model
        self.weights = weights
        self.pretrained = pretrained
        self.projection = projection
        self.patch_size = patch_size
        self.identity: dict[str, str] = {}
        with torch.device("meta"):
            self.network = build(model, projection)
        super().__init__(self.network.num_classes if projection else self.network.embed_dim)
        self.normalization = normalization
        self._see(mean, std)

    def _see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take images with colours normalised by these numbers."""
        own = self.network.pretrained_cfg if self.normalization == "teacher" else {"mean": mean, "std": std}
        std_C, own_std_C = (torch.tensor(values, dtype=torch.float64) for values in (std, own["std"]))
        mean_C, own_mean_C = (torch.tensor(values, dtype=torch.float64) for values in (mean, own["mean"]))
        self.scale_C11 = (std_C / own_std_C).float()[:, None, None]
        self.shift_C11 = ((mean_C - own_mean_C) / own_std_C).float()[:, None, None]

    def check(self, model: AIM) -> None:
        """Raise UserError if the model's patches are of another size."""
        check_patch_size(self.patch_size, model)

    def fitted(self, model: AIM, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same teacher for the patches of another model; see `Target`."""
        changed = copy(self)
        changed.patch_size = model.patch_size
        changed._see(mean, std)
        changed.to(self.scale_C11.device)
        return changed

    def load(self) -> None:
        """Give the network its weights, for good: they take no gradient.

        Raises:
            UserError: if they cannot be had, saying where to get them.
        """
        if self.identity:
            return
        source = "folder" if self.model.startswith(timm_models.LOCAL) else "hub"
        if not self.pretrained:
            source = "random"
            with torch.random.fork_rng(devices=[]):  # that what is drawn after it is the same with any teacher
                self.network = build(self.model, self.projection)
        elif self.weights is not None:
            source = self.weights
            fill(self.network, self.model, Path(self.weights).expanduser())
        else:
            self.network = build(self.model, self.projection, from_hub=True)
        self.network.requires_grad_(False).eval()
        self.identity = {"model": self.model, "source": source, "checksum": weights_checksum(self.network)}

    def to(self, device: torch.device) -> None:
        """Go where training is."""
        self.network.to(device)
        self.scale_C11, self.shift_C11 = self.scale_C11.to(device), self.shift_C11.to(device)

    def begin(self, run: Run) -> None:
        """Go where training is, and say in the run which teacher it has.

        Raises:
            UserError: if the processes have different weights.
        """
        self.to(run.processes.device)
        checksums = run.processes.gather(self.identity["checksum"])
        if len(set(checksums)) > 1:
            raise UserError(
                f"the processes have different weights of target.model={self.model}, by checksum "
                f"{', '.join(checksum[:12] for checksum in checksums)}: give all of them the same file"
            )
        if not self.pretrained:
            log.warning(
                "target.pretrained=false: the teacher %s is RANDOM. It has learned nothing, so neither losses nor "
                "accuracies of this run say anything about this target",
                self.model,
            )
        run.tag({f"teacher.{key}": value for key, value in self.identity.items()})

    def check_same(self, saved: dict[str, str]) -> None:
        """Raise UserError if a run that is to continue was begun with another teacher, whose identity this is."""
        if saved["checksum"] != self.identity["checksum"]:
            raise UserError(
                f"this run was begun with another teacher: {saved['model']} ({saved['source']}, checksum "
                f"{saved['checksum'][:12]}), now it is {self.model} ({self.identity['source']}, checksum "
                f"{self.identity['checksum'][:12]}). Give back the weights it had, or give this run another name with "
                f"run_name=..."
            )

    @property
    def parameters(self) -> int:
        """How many numbers its weights are."""
        return sum(p.numel() for p in self.network.parameters())

    def flops(self, patches: int) -> int:
        """Floating-point operations of a pass over an image of so many patches."""
        spent = encoder_cost(self.network, patches)
        return spent.encode + (1 + patches) * (spent.predict - spent.encode)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, N, P) of normalised images: final norm applied, and the projection if there is one."""
        network = self.network
        tokens_BND = network.forward_features(self.as_it_sees(images_BCHW))
        if network.num_prefix_tokens > 1:  # registers are no patches
            tokens_BND = torch.cat([tokens_BND[:, :1], tokens_BND[:, network.num_prefix_tokens :]], dim=1)
        return network.head(network.fc_norm(tokens_BND))

    def encode_with_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, and the last block's attention from cls to each patch averaged over heads, (B, L)."""
        attention, kept = self.network.blocks[-1].attn, []
        hook = attention.qkv.register_forward_hook(lambda _module, _inputs, qkv_BNF: kept.append(qkv_BNF))
        try:
            tokens_BNP = self.encode(images_BCHW)
        finally:
            hook.remove()
        q, k, _ = kept[0].unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attention_BN = first_row_of_attention(attention.q_norm(q), attention.k_norm(k))
        return tokens_BNP, attention_BN[:, self.network.num_prefix_tokens :]

    def as_it_sees(self, images_BCHW: Tensor) -> Tensor:
        """Images with the teacher's normalisation, of such a size that its patches are as many as the model's."""
        images_BCHW = images_BCHW * self.scale_C11 + self.shift_C11
        sides = zip(images_BCHW.shape[-2:], self.network.patch_embed.patch_size, strict=True)
        size = tuple(side // self.patch_size * own for side, own in sides)
        if images_BCHW.shape[-2:] == size:
            return images_BCHW
        return F.interpolate(images_BCHW, size=size, mode="bicubic", antialias=True, align_corners=False)
