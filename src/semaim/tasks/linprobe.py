"""Linear probe: a linear classifier on the frozen encoder, trained on augmented images by the shared training loop.

Shapes: S heads, K kinds of features, B images, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semaim.checkpoints.encoder_source import fingerprint
from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.image_sets import ImageSet
from semaim.data.subsets import hold_out
from semaim.errors import NonFiniteError, UserError
from semaim.evaluation.accuracy import Predictions, named, predict_classes
from semaim.models.flops import encoder_cost, on_meta
from semaim.models.heads import LinearHeads
from semaim.models.vit import encode
from semaim.runs.context import Run
from semaim.tasks.evaluation import TrainedEvaluation, check_image_size
from semaim.tasks.task import RunCost, training_cost
from semaim.training import loop
from semaim.training.state import TrainingState

log = logging.getLogger(__name__)
LARGEST_LOGIT = 1e6  # of heads that are trained together, so that the sum of their losses stays finite


@dataclass(eq=False)
class LinearProbe(TrainedEvaluation):
    """The task.

    Args:
        source: the encoder; frozen, in eval mode.
        optimizer: of the heads.
        data, train_transform, trainer, recipe, batch_size, evaluate_every_epochs: see `TrainedEvaluation`.
        features: kinds of features, "cls" or "mean"; a head for each.
        base_lrs: learning rates to try in one pass, in place of the optimizer's; the best on held-out training images
            is selected. Null for the optimizer's only, which needs no selection and trains on all images.
        holdout: share of each class of the training images that is held out for the selection.
        seed: for the choice of these images.
    """

    features: Sequence[str]
    base_lrs: Sequence[float] | None
    holdout: float
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds, lrs, optimizer = self.features, self.base_lrs, self.optimizer
        if len(set(kinds)) < len(kinds):
            raise UserError(f"task.features={list(kinds)} must be different kinds")
        if lrs is not None and len({f"{lr:g}" for lr in lrs}) < len(lrs):
            raise UserError(f"task.base_lrs={list(lrs)} must be different learning rates")
        self.lrs = [optimizer.base_lr] if lrs is None else lrs
        if self.trainer.clip_grad is not None and len(kinds) * len(self.lrs) > 1:
            raise UserError("trainer.clip_grad would couple the heads' gradients: leave it null")
        if self.trainer.ema:
            raise UserError("trainer.ema=true: no moving average of linear heads is measured; leave it false")
        if self.trainer.strategy != "ddp" or self.trainer.activation_checkpointing:
            raise UserError("a linear probe trains heads on a frozen encoder, which needs little memory: leave "
                            "trainer.strategy=ddp and trainer.activation_checkpointing=false")  # fmt: skip
        self.metric = f"linprobe_{kinds[0]}"
        self.vit = self.source.encoder().requires_grad_(False)
        check_image_size(self.vit, self.data, self.source.checkpoint)
        if "cls" in kinds and self.vit.cls_token is None:
            raise UserError(f"checkpoint={self.source.checkpoint} has no class token: set task.features=[mean]")
        self.weights = fingerprint(self.vit)
        images: ImageSet = self.labelled
        self.selection_images: ImageSet | None = None
        if len(self.lrs) > 1:
            images, self.selection_images = hold_out(self.labelled, self.holdout, self.seed)
        self.training = self.data.training(images, self.train_transform)
        scales = [lr / optimizer.base_lr for lr in self.lrs]
        self.model = LinearHeads(self.vit.embed_dim, len(self.classes), len(kinds), scales)
        if len(self.lrs) > 1 and any("lr_scale" not in group for group in optimizer.groups(self.model, 0.0)):
            raise UserError("task.base_lrs needs an optimizer with a group for each head, as in optimizer=sgd_linprobe")

    @property
    def main_network(self) -> nn.Module:
        """The frozen encoder."""
        return self.vit

    @property
    def head_names(self) -> list[str]:
        """Names of the heads, in their order."""
        several = len(self.lrs) > 1
        return [f"{kind}_lr{lr:g}" if several else kind for kind in self.features for lr in self.lrs]

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError if the settings do not fit these processes, before anything is written."""
        plan = loop.step_plan(self, self.trainer, seed, processes)
        loop.length_of(self, self.trainer, plan)
        if plan.micro_batch_size < 2:
            raise UserError("the linear probe normalises over a batch, which needs two images per process: raise "
                            "trainer.batch_size or lower trainer.accumulate")  # fmt: skip

    def cost(self, processes: int, on_gpu: bool) -> RunCost:
        """The heads are negligible beside a forward pass of the frozen encoder per image."""
        spent = encoder_cost(self.vit)
        return training_cost(self, self.trainer, spent, spent.encode, processes, on_gpu)

    def step_flops(self) -> int | None:
        """A forward pass of the frozen encoder per image: the heads are negligible."""
        return encoder_cost(on_meta(self.vit).eval()).encode

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Cross-entropy of each image, (B,), summed over the heads, whose gradients stay independent.

        One of several learning rates may be so large that a head diverges: it gets no gradient, the others go on.
        """
        with torch.no_grad():
            features_KBD = self._read(batch.images_BCHW)
        logits_SBC = state.forward(features_KBD)
        if len(self.lrs) > 1:
            logits_SBC = logits_SBC.nan_to_num().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return torch.stack([F.cross_entropy(x_BC, batch.labels_B, reduction="none") for x_BC in logits_SBC]).sum(0)

    @torch.no_grad()
    def after_update(self) -> None:
        """Keep the weights of diverged heads storable: at the largest number, their outputs are not finite."""
        if len(self.lrs) > 1:
            for parameter in self.model.parameters():
                parameter.nan_to_num_()

    def run(self, run: Run) -> dict[str, float]:
        """Train the heads; returns accuracy and top-5 accuracy in percent and the loss for each kind of feature."""
        origin = self.begin(run)
        self.vit.to(run.processes.device)
        log.info(
            f"linear probe of {self.source.checkpoint}, recipe={self.recipe}: {', '.join(self.head_names)}; "
            f"{plural(len(self.training.images), 'training image')} and {plural(len(self.held_out), 'held-out image')}"
        )
        state = loop.fit(self, self.trainer, run)
        accuracies = loop.evaluations(run)[str(state.step)]
        result = {}
        for kind in self.features:
            best = self._best(kind, accuracies)
            for metric in ("", "_top5", "_loss"):
                if (measured := accuracies.get(f"val/{best}{metric}")) is not None:
                    result[f"linprobe_{kind}{metric}"] = measured
            if self.selection_images is not None:
                result[f"linprobe_{kind}_base_lr"] = self.lrs[self.head_names.index(best) % len(self.lrs)]
        return self.end(run, origin, result)

    def _best(self, kind: str, accuracies: dict[str, float]) -> str:
        """The head of a kind with the best accuracy on the images held out for the selection."""
        heads = [name for name in self.head_names if name.split("_lr")[0] == kind and f"val/{name}" in accuracies]
        if not heads:
            raise NonFiniteError(f"every linear classifier on {kind} has diverged: lower task.base_lrs={self.lrs}")
        return max(heads, key=lambda name: accuracies.get(f"holdout/{name}", 0.0))

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Metrics of each head on the held-out images, and on those held out for the selection, if due."""
        if not self.is_due(epoch, last):
            return {}
        self.model.eval()
        predictions = {f"val/{name}": each for name, each in self._predictions(self.held_out, run).items()}
        if self.selection_images is not None:
            selection = self._predictions(self.selection_images, run)
            predictions |= {f"holdout/{name}": each for name, each in selection.items()}
        accuracies = {name: each.accuracy for name, each in predictions.items()}
        best = [self._best(kind, accuracies) for kind in self.features]
        if last:
            predictions[f"val/{best[0]}"].write(run)
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in accuracies.items())
        log.info("linear probe after step %d: %s", state.step, shown)
        return named(predictions)

    def _predictions(self, images: ImageSet, run: Run) -> dict[str, Predictions]:
        return predict_classes(
            self.head_names, lambda x: self.model(self._read(x)), self.data, images, self.batch_size, run
        )

    def _read(self, images_BCHW: Tensor) -> Tensor:
        """Features (K, B, D)."""
        by_kind = encode(self.vit, images_BCHW)
        return torch.stack([by_kind[kind] for kind in self.features])
