"""Pretraining: order the patches, predict some from others, compare with the target.

Shapes: B images, L patches, P target channels. Source: SemAIM (arXiv 2312.10457), section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semaim.checkpoints.pretrained import read_checkpoint, start_from
from semaim.config.follow_ups import short_recipe
from semaim.config.run_spec import RunSpec
from semaim.config.source_run import value_text
from semaim.core.distributed import Processes
from semaim.core.formatting import count, duration, plural, program
from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.errors import UserError
from semaim.evaluation.evaluator import Evaluator, Learner
from semaim.models.flops import Cost, cost
from semaim.models.predictor import Prediction, Predictor
from semaim.models.token_cache import Encoder, TokenCache
from semaim.models.vit import pooled
from semaim.permutations import Permutation, noise_columns
from semaim.runs.context import Run
from semaim.semantics import SemanticMap
from semaim.targets import Target
from semaim.tasks.task import RunCost, Task, training_cost
from semaim.teachers import Teacher
from semaim.tracking.datasets import Context
from semaim.training import loop
from semaim.training.optimizers import Optimization, scaled_lr
from semaim.training.peak import training_peak
from semaim.training.profiling import region
from semaim.training.progress import steps_done
from semaim.training.settings import TrainerSettings
from semaim.training.state import TrainingState
from semaim.training.step import TrainingTask

log = logging.getLogger(__name__)
NEXT_LARGER = {"tiny": "small", "small": "base", "base": "large", "large": "huge"}
# Options that a larger model of the same method keeps; others are its sizes.
OF_METHOD = ("model.segments", "model.skip_connections", "model.visible", "model.hidden", "model.mask_unit")


class Pretraining(Task, TrainingTask):
    """The task.

    Args:
        model: builds the model, given the target's channels.
        permutation: the order of patches.
        semantic_map: the map for orders that need one.
        target: the prediction target.
        optimizer: optimizer and learning rates.
        data: images.
        trainer: settings of the loop.
        evaluators: what looks at the model while it learns, by name; null for none of that name.
        checkpoint: a run or file whose weights to start from (any input of `load_model`); null for random ones.

    Attributes:
        learners: the evaluators that learn along with the model.
    """

    metric = "loss"

    def __init__(
        self,
        model: Callable[..., Predictor],
        permutation: Permutation,
        semantic_map: SemanticMap,
        target: Target,
        optimizer: Optimization,
        data: ImageData,
        trainer: TrainerSettings,
        evaluators: Mapping[str, Evaluator | None],
        checkpoint: str | None,
    ) -> None:
        self.model: Predictor = model(out_channels=target.channels)
        if not isinstance(self.model, Predictor):
            kind = f"{type(self.model).__module__}.{type(self.model).__qualname__}"
            raise UserError(f"model._target_={kind} is no semaim.models.predictor.Predictor, whose encoder maps, "
                            f"targets and evaluations use: make it a subclass (docs/your-own.md)")  # fmt: skip
        self.permutation = permutation
        self.semantic_map = semantic_map
        self.target = target
        self.optimizer = optimizer
        self.data = data
        self.training = data.training()
        self.evaluators = {name: each for name, each in evaluators.items() if each is not None}
        self.learners = [each for each in self.evaluators.values() if each.learns]
        self._learned: list[tuple[dict[str, Tensor], Tensor]] = []  # features and labels for them, of this step
        if checkpoint is not None:
            start_from(self.model, read_checkpoint(Path(checkpoint)), Path(checkpoint))
        if self.model.image_size != data.image_size:
            raise UserError(
                f"the model is for images of {self.model.image_size[0]}x{self.model.image_size[1]}, the data are of "
                f"{data.image_size[0]}x{data.image_size[1]}: change data.image_size, which both follow"
            )
        target.check(self.model)
        self.teacher = target if isinstance(target, Teacher) else None
        self.map_network = semantic_map.network_beside(target.network_name) if permutation.needs_map else None
        if self.map_network == "teacher" and self.teacher is None:
            raise UserError("semantic_map.source=teacher needs a teacher: choose target=dino, clip or teacher, or "
                            "semantic_map.source=auto")  # fmt: skip
        self.trainer = replace(trainer, ema=trainer.ema or "ema" in (target.network_name, self.map_network))
        watched = {what: why for each in self.evaluators.values() for what, why in each.highlights.items()}
        self.highlights = watched | {
            "train/loss, train/grad_norm": "whether training goes well",
            "data/wait": "share of a step spent waiting for images; if it is more than a few percent, raise "
            "`data.num_workers`",
            "train/mfu": "share of the device's peak of matrix products, which the tag `peak` states",
        }

    @property
    def networks(self) -> set[str]:
        """Networks that make a pass without gradient over each image of a step."""
        online = "online" if self.learners else None
        return {network for network in (self.map_network, self.target.network_name, online) if network is not None}

    @cached_property
    def spent(self) -> Cost:
        """Parameters of the model, and floating-point operations of the model and of a step with all passes.

        Counted before training, of the model as it is built: neither wrapped nor compiled.
        """
        return cost(self.model, len(self.networks - {"teacher"}), self._teacher_flops)

    @cached_property
    def _teacher_flops(self) -> int:
        h, w = self.model.grid
        return 0 if self.teacher is None else self.teacher.flops(h * w)

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError if the settings do not fit these processes, before anything is written."""
        loop.length_of(self, self.trainer, loop.step_plan(self, self.trainer, seed, processes))
        no_noise = torch.zeros(1, noise_columns(self.model.grid))
        self.permutation.order(self.model.grid, no_noise, no_noise[:, 1:])  # an order may not fit the grid
        rounded = self.trainer.strategy == "fsdp" and self.trainer.dtype(processes.device) != torch.float32
        own_map = self.map_network in ("online", "ema") and self.semantic_map.full_precision
        if rounded and own_map and processes.world_size > 1:
            raise UserError("semantic_map.full_precision=true needs weights in float32, but with trainer.strategy=fsdp "
                            "they are rounded when they are gathered: choose trainer.strategy=ddp or "
                            "trainer.precision=float32")  # fmt: skip
        for evaluator in self.evaluators.values():
            evaluator.check(self.data)
        if self.teacher is not None:
            self.teacher.check_weights()

    def load(self, processes: Processes) -> None:
        """Load the teacher, if there is one."""
        if self.teacher is not None:
            self.teacher.load()

    def image_sets(self) -> dict[Context, tuple[ImageSet, int]]:
        """Training images, and the held-out ones if there are some."""
        splits, count = self.data.splits, len(self.data.splits.classes)
        used: dict[Context, tuple[ImageSet, int]] = {"training": (splits.train, count)}
        return used if splits.val is None else used | {"evaluation": (splits.val, count)}

    def product(self) -> dict[str, str]:
        """Sizes of the model."""
        return {key: str(value) for key, value in self.model.architecture.items()}

    def cost(self, processes: int, on_gpu: bool) -> RunCost:
        """Forward and backward, and the passes without gradient."""
        spent, teacher = self.spent, 0 if self.teacher is None else self.teacher.parameters
        return training_cost(self, self.trainer, spent, spent.training_step, processes, on_gpu, teacher)

    def step_flops(self) -> int:
        """Forward and backward, and the passes without gradient, per image."""
        return self.spent.training_step

    def run(self, run: Run) -> dict[str, float]:
        """Pretrain to the end; returns the last loss and the online accuracies before and after training."""
        self._log_plan(run)
        if self.data.splits.val is None and self.data.splits.labelled is not None:
            log.info("these data have no held-out images. data.val_fraction=0.1 would hold out a tenth of each class, "
                     "for k-NN accuracy during training (online/knn_...) and for evaluations afterwards")  # fmt: skip
        for evaluator in self.evaluators.values():
            evaluator.begin(self.model, self.data, run)
        if self.teacher is not None:
            self.teacher.begin(run)
        state = loop.fit(self, self.trainer, run)
        evaluations = loop.evaluations(run)
        result = {"loss": state.loss}
        first = "0" if run.extends is None else min(evaluations, key=int, default="0")  # where this run began
        for when, step in (("before", first), ("after", str(state.step))):
            online = {name: value for name, value in evaluations.get(step, {}).items() if name.startswith("online/")}
            result |= {f"{name}_{when}": value for name, value in online.items()}
        return result

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """Commands that the user may run next."""
        excluded = ["model", "sweep", "run_name", "run_dir", "checkpoint", "extend"]
        excluded += ["trainer.max_steps", "trainer.profile_steps"]
        starts = tuple(f"{name}{end}" for name in excluded for end in "=.")
        kept = [o for o in spec.overrides if not o.startswith(starts) or o.startswith(OF_METHOD)]
        larger = {}
        family, _, size = spec.choices["model"].rpartition("_")
        if size in NEXT_LARGER:
            larger["larger model"] = spec.command_with(f"model={family}_{NEXT_LARGER[size]}", *kept)
        if self.trainer.max_steps is None:
            longer = [f"extend={value_text(str(folder))}", self.trainer.twice]
            larger = {"train longer": program("run", *longer)} | larger
        if self.data.splits.labelled is None:
            return larger
        images = len(self.data.splits.labelled)
        held_out = [] if self.data.splits.val is not None else ["data.val_fraction=0.1"]
        evaluate = program("run", "task=knn", f"checkpoint={value_text(str(folder))}", *held_out)
        words = [" ".join([f"task={task}", *short_recipe(spec, task, images)]) for task in ("linprobe", "finetune")]
        return {"evaluate": evaluate, "and also": f"with {', '.join(words)} or task=fewshot"} | larger

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Loss of each image, (B,): the mean over its patches that count."""
        images_BCHW = batch.images_BCHW
        cache = TokenCache(self._encoders(state.model, state.ema and state.ema.module), images_BCHW)
        with region("semantic pass"):
            map_BL = None if self.map_network is None else self.semantic_map(cache, self.map_network)
        if self.learners:
            self._learned.append((pooled(cache.tokens("online")), batch.labels_B))
        with region("target"):  # before activations for the backward pass take memory
            target_BLP = self.target(images_BCHW, cache)
        noise_BK = noise.rows(batch.first_row, len(images_BCHW), noise_columns(self.model.grid), images_BCHW.device)
        order_BL = self.permutation.order(self.model.grid, noise_BK, map_BL)
        prediction: Prediction = state.forward(images_BCHW, order_BL)
        return prediction.mean(self.target.loss(prediction.predictions_BLP, target_BLP))

    def _encoders(self, model: Any, average: Any) -> dict[str, Encoder]:
        """Networks that may make a pass over a batch, by name."""
        encoders: dict[str, Encoder | None] = {"online": model, "ema": average, "teacher": self.teacher}
        return {name: encoder for name, encoder in encoders.items() if encoder is not None}

    def after_update(self) -> None:
        """Let the evaluators that learn make their steps."""
        for features, labels_B in self._learned:
            for evaluator in self.learners:
                evaluator.learn(features, labels_B)
        self._learned.clear()

    def state_dict(self) -> dict[str, Any]:
        """State of the evaluators, and identity of the teacher (its weights are not stored)."""
        states = {name: each.state_dict() for name, each in self.evaluators.items()}
        state: dict[str, Any] = {"evaluators": {name: each for name, each in states.items() if each}}
        return state if self.teacher is None else state | {"teacher": self.teacher.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; raises UserError for another teacher."""
        for name, stored in state["evaluators"].items():
            if name in self.evaluators:  # a run that extends another one may have others
                self.evaluators[name].load_state_dict(stored)
        if self.teacher is not None:
            self.teacher.check_same(state["teacher"])

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Metrics of the evaluators that are due."""
        due = [each for each in self.evaluators.values() if each.is_due(epoch, last)]
        if not due:
            return {}
        model, average = state.whole()
        encoders, order, maps, target = self._encoders(model, average), self.permutation, self.semantic_map, self.target
        learner = Learner(model.eval(), encoders, self.map_network, order, maps, target, self.data, state.step, epoch)
        return {name: value for each in due for name, value in each.evaluate(learner, run).items()}

    def _log_plan(self, run: Run) -> None:
        """Log model, data, batch, and the lower bound of the training time."""
        spent, device = self.spent, run.processes.device
        h, w = self.model.grid
        trainer, dtype = self.trainer, self.trainer.dtype(device)
        plan = loop.step_plan(self, trainer, run.seed, run.processes)
        length = loop.length_of(self, trainer, plan)
        steps = length.last
        log.info(
            f"model: {count(spent.parameters)} parameters (encoder {count(spent.encoder_parameters)}), {h}x{w} patches "
            f"of {self.model.patch_size} pixels, {count(spent.training_step, 'FLOP')} per image and training step"
        )
        if self.teacher is not None:
            log.info(
                f"teacher: {self.teacher.identity['model']} ({self.teacher.identity['source']}), "
                f"{count(self.teacher.parameters)} parameters, {count(self._teacher_flops, 'FLOP')} of these"
            )
        parts = f" ({trainer.accumulate} x {plan.micro_batch_size}"
        parts += f" on each of {plural(plan.world_size, 'process', 'es')})" if plan.world_size > 1 else ")"
        log.info(
            f"data: {plural(plan.dataset_size, 'training image')}, {plural(steps, 'step')} of "
            f"{plural(trainer.batch_size, 'image')}{parts if trainer.batch_size > plan.micro_batch_size else ''}, "
            f"{device}, {str(dtype).removeprefix('torch.')}"
        )
        lr = scaled_lr(self.optimizer.base_lr, trainer.batch_size)
        log.info(f"learning rate: {lr:.3g} at its peak (optimizer.base_lr={self.optimizer.base_lr:g} per 256 images)")
        if not run.processes.is_main:
            return
        if trainer.flops is not None:
            log.info(f"{trainer.flops_option} pays for {plural(length.total, 'step')}, {length.epochs:.4g} epochs")
        left = max(0, steps - steps_done(run))
        total = spent.training_step * left * trainer.batch_size
        fastest = training_peak(trainer, device).flops
        log.info(
            f"{count(total, 'FLOP')} {'in all' if left == steps else 'left'}, at least "
            f"{duration(total / fastest / plan.world_size)} at the {count(fastest, 'FLOP/s')} that this device reaches "
            f"in matrix products"
        )
