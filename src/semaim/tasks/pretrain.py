"""Autoregressive pretraining: order the patches, predict each from those before it, compare with the target.

Shapes: B images, L patches, P target channels. Source: SemAIM (arXiv 2312.10457), section 3.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semaim import engine
from semaim.data import ImageData
from semaim.data.loading import Batch
from semaim.distributed import Processes
from semaim.errors import UserError
from semaim.interop import load_model, load_weights
from semaim.models.aim import AIM
from semaim.models.cost import cost, matrix_product_speed
from semaim.models.vit import pooled
from semaim.optimizers import Optimization, scaled_lr
from semaim.permutations import Permutation, noise_columns
from semaim.progress import count, duration
from semaim.run_context import Run
from semaim.seeding import StepNoise
from semaim.semantics import SemanticMap
from semaim.targets import Pixels
from semaim.tasks.knn import OnlineNeighbours
from semaim.tasks.online_linear import OnlineLinear
from semaim.trainer import Trainer
from semaim.training_state import TrainingState

log = logging.getLogger(__name__)
EVALUATED_AT_ONCE = 64  # images, when the online linear classifier is measured


class Pretraining:
    """The task.

    Args:
        model: makes the model, given the target's channels.
        permutation: the order of patches.
        semantic_map: what an order that needs a map follows.
        target: what is predicted.
        optimizer: optimizer and learning rates.
        data: images.
        trainer: settings of the loop.
        online_knn: k-NN evaluation before, during and after training; null for none.
        knn_every_epochs: epochs between those during training; null for none but the first and the last.
        online_linear_lr: learning rate of a linear classifier that learns beside, for 256 images; its accuracy is
            measured together with the k-NN's. Null for none. Orders without a map pay an encoder pass a step for it.
        checkpoint: weights to start from (what `load_model` takes); null to start from random ones.
    """

    metric = "loss"

    def __init__(
        self,
        model: Callable[..., AIM],
        permutation: Permutation,
        semantic_map: SemanticMap,
        target: Pixels,
        optimizer: Optimization,
        data: ImageData,
        trainer: Trainer,
        online_knn: OnlineNeighbours | None,
        knn_every_epochs: int | None,
        online_linear_lr: float | None,
        checkpoint: str | None,
    ) -> None:
        self.model: AIM = model(out_channels=target.channels)
        self.permutation = permutation
        self.semantic_map = semantic_map
        self.target = target
        self.optimizer = optimizer
        self.data = data
        self.training = data.training()
        self.trainer = trainer
        self.online_knn = online_knn
        self.knn_every_epochs = knn_every_epochs
        self.online_linear: OnlineLinear | None = None
        if online_linear_lr is not None:
            lr = scaled_lr(online_linear_lr, trainer.batch_size // trainer.accumulate)
            self.online_linear = OnlineLinear(self.model.embed_dim, data, lr, EVALUATED_AT_ONCE)
        if checkpoint is not None:
            load_weights(self.model, load_model(checkpoint).state_dict(), Path(checkpoint))
        if self.model.image_size != data.image_size or self.model.patch_size != target.patch_size:
            raise UserError(
                f"model ({self.model.image_size[0]}x{self.model.image_size[1]} in patches of {self.model.patch_size}), "
                f"data ({data.image_size[0]}x{data.image_size[1]}) and target (patches of {target.patch_size}) must "
                f"agree: change data.image_size and data.patch_size, which the others follow"
            )
        if semantic_map.source == "ema" and permutation.needs_map and not trainer.ema:
            raise UserError("semantic_map.source=ema needs the moving average: set trainer.ema=true")

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError for what cannot work on these processes, before anything is written."""
        engine.step_plan(self, self.trainer, seed, processes)

    def run(self, run: Run) -> dict[str, float]:
        """Pretrain to the end; the last loss and the k-NN accuracies before and after."""
        self._announce(run)
        if self.online_linear is not None:
            self.online_linear.begin(run.processes)
        state = engine.fit(self, self.trainer, run)
        evaluations = engine.evaluations(run)
        result = {"loss": state.loss}
        for when, step in (("before", "0"), ("after", str(state.step))):
            result |= {f"{name}_{when}": value for name, value in evaluations.get(step, {}).items()}
        return result

    def next_commands(self, folder: Path, overrides: Sequence[str]) -> dict[str, str]:
        """What a person may want to type after this run."""
        data = [o for o in overrides if o.split("=")[0].split(".")[0] == "data"]
        own = ("model", "sweep", "run_name", "run_dir", "checkpoint", "trainer.max_steps")
        others = [o for o in overrides if not o.startswith(tuple(f"{name}{end}" for name in own for end in "=."))]
        command = ["python", "-m", "semaim.run"]
        larger = {"larger model": shlex.join([*command, "model=aim_small", *others])}
        if self.data.source.val is None:
            return larger
        evaluate = shlex.join([*command, "task=knn", f"checkpoint={folder}", *data])
        return {"evaluate": evaluate, "and also": "with task=linprobe, task=finetune or task=fewshot"} | larger

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Loss of each image, (B,): the mean over its patches."""
        images_BCHW = batch.images_BCHW
        grid = self.model.grid
        noise_BK = noise.rows(batch.first_row, len(images_BCHW), noise_columns(grid), images_BCHW.device)
        map_BL, tokens_BND = None, None
        if self.permutation.needs_map:
            map_BL, tokens_BND = self.semantic_map.with_tokens(self._map_encoder(state), images_BCHW)
        if self.online_linear is not None:
            self._learn_online(self.online_linear, batch, tokens_BND)
        order_BL = self.permutation.order(grid, noise_BK, map_BL)
        prediction_BLP = state.forward(images_BCHW, order_BL)
        return self.target.loss(prediction_BLP, self.target(images_BCHW)).mean(1)

    def _learn_online(self, linear: OnlineLinear, batch: Batch, tokens_BND: Tensor | None) -> None:
        """A step of the linear classifier, on the tokens of the semantic pass if they are the online encoder's."""
        if tokens_BND is None or self.semantic_map.source != "online":
            with torch.no_grad():
                tokens_BND = self.model.encode(batch.images_BCHW)
        linear.learn(tokens_BND, batch.labels_B)

    def state_dict(self) -> dict[str, Any]:
        """The linear classifier that learns beside."""
        return {} if self.online_linear is None else {"online_linear": self.online_linear.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`."""
        if self.online_linear is not None:
            self.online_linear.load_state_dict(state["online_linear"])

    def _map_encoder(self, state: TrainingState) -> AIM:
        model: nn.Module = self.model
        if self.semantic_map.source == "ema" and state.ema is not None:
            model = state.ema.module
        assert isinstance(model, AIM)
        return model

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Online k-NN and linear accuracies, if they are due."""
        every = self.knn_every_epochs
        during = every is not None and epoch % every == 0
        if self.data.source.val is None or not (epoch == 0 or last or during):
            return {}
        self.model.eval()
        accuracies: dict[str, float] = {}
        if self.online_knn is not None:
            accuracies = self.online_knn.accuracy(lambda images: pooled(self.model.encode(images)), self.data, run)
            best = max(accuracies, key=lambda name: accuracies[name])
            log.info("online k-NN after step %d: %.1f %% (%s)", state.step, accuracies[best], best)
        if self.online_linear is not None and epoch > 0:
            accuracies |= (linear := self.online_linear.accuracy(self.model.encode, run))
            shown = ", ".join(f"{value:.1f} % ({name})" for name, value in linear.items())
            log.info("online linear classifier after step %d: %s", state.step, shown)
        return {f"online/{name}": value for name, value in accuracies.items()}

    def _announce(self, run: Run) -> None:
        """Say what is about to be computed, how much it is, and how long it takes at the very least."""
        spent, device = cost(self.model, self.permutation.needs_map), run.processes.device
        h, w = self.model.grid
        trainer, dtype = self.trainer, self.trainer.dtype(device)
        plan = engine.step_plan(self, trainer, run.seed, run.processes)
        steps = trainer.last_step(plan.steps_per_epoch)
        log.info(
            f"model: {count(spent.parameters)} parameters (encoder {count(spent.encoder_parameters)}), {h}x{w} patches "
            f"of {self.model.patch_size} pixels, {count(spent.training_step, 'FLOP')} per image and training step"
        )
        log.info(
            f"data: {plan.dataset_size} training images, {steps} steps of {trainer.batch_size} images "
            f"({trainer.accumulate} x {plan.micro_batch_size} on each of {plan.world_size} process(es)), "
            f"{device}, {str(dtype).removeprefix('torch.')}"
        )
        peak = scaled_lr(self.optimizer.base_lr, trainer.batch_size)
        log.info(f"learning rate: {peak:.3g} at its peak (optimizer.base_lr={self.optimizer.base_lr:g} per 256 images)")
        speed = matrix_product_speed(device, dtype)
        total = spent.training_step * steps * trainer.batch_size
        log.info(
            f"{count(total, 'FLOP')} in all, at least {duration(total / speed / plan.world_size)} at the "
            f"{count(speed, 'FLOP/s')} that this device reaches in matrix products"
        )
        if self.online_knn is not None and self.data.source.val is None:
            log.info("no k-NN accuracy: these data have no labelled held-out images")
