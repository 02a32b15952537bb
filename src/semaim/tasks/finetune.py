"""Fine-tuning: the encoder and a new linear head trained on labels by the shared training loop.

Shapes: B images, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import fingerprint
from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.core.seeding import StepNoise, seeded
from semaim.data.batches import Batch
from semaim.errors import UserError
from semaim.evaluation.accuracy import Predictions, named, predict_classes
from semaim.models.flops import encoder_cost, on_meta
from semaim.models.vit import Pool
from semaim.runs.context import Run
from semaim.tasks.evaluation import TrainedEvaluation, check_image_size, encoding_cost
from semaim.tasks.task import RunCost, training_cost
from semaim.training import loop
from semaim.training.state import TrainingState

log = logging.getLogger(__name__)
# Names of the results, by the metric of the last epoch.
RESULTS = {
    "val/accuracy": "finetune", "val/top5": "finetune_top5", "val/loss": "finetune_loss",
    "val/accuracy_ema": "finetune_ema",
}  # fmt: skip


@dataclass(eq=False)
class FineTuning(TrainedEvaluation):
    """The task.

    Args:
        source, data, train_transform, optimizer, trainer, recipe, batch_size: see `TrainedEvaluation`.
        evaluate_every_epochs: epochs between evaluations during training.
        pool: what the head reads: "mean" of the patch tokens, normed, or the class token ("cls").
        drop_path: stochastic depth rate of the last block.
        mixup, cutmix: parameters of the Beta distributions of the mixing weights; 0 for none.
        label_smoothing: share of a label's weight that is spread over all classes.
        eval_only: measure the accuracy of a fine-tuned checkpoint without training.
    """

    metric = "finetune"

    evaluate_every_epochs: int
    pool: Pool
    drop_path: float
    mixup: float
    cutmix: float
    label_smoothing: float
    eval_only: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing, mixup, cutmix = self.label_smoothing, self.mixup, self.cutmix
        self.training = self.data.training(self.labelled, self.train_transform)
        classes = len(self.classes)
        mixes = mixup or cutmix
        self.mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes) if mixes else None
        if self.eval_only:
            self.model = self.source.trained_classifier(classes)
        else:
            self.model = self.source.classifier(classes, self.pool, self.drop_path)
            self.weights = fingerprint(self.model)
        check_image_size(self.model, self.data, self.source.checkpoint)

    def check(self, seed: int, processes: Processes) -> None:
        """Raise UserError if the settings do not fit these processes, before anything is written."""
        if self.eval_only:
            return
        plan = loop.step_plan(self, self.trainer, seed, processes)
        loop.length_of(self, self.trainer, plan)
        if self.mix is not None and plan.micro_batch_size % 2:
            raise UserError(
                f"mixup and cutmix mix images in pairs, but trainer.batch_size gives {plan.micro_batch_size} at a time "
                f"on each process: choose an even number, or task.mixup=0.0 task.cutmix=0.0"
            )

    def cost(self, processes: int, on_gpu: bool) -> RunCost:
        """Forward and backward of encoder and head; with `eval_only` a pass over the held-out images."""
        if self.eval_only:
            return encoding_cost(self.model, self.held_out)
        spent = encoder_cost(self.model)
        return training_cost(self, self.trainer, spent, spent.training_step, processes, on_gpu)

    def step_flops(self) -> int | None:
        """Forward and backward of encoder and head, per image."""
        return encoder_cost(on_meta(self.model).eval()).training_step

    def run(self, run: Run) -> dict[str, float]:
        """Fine-tune and evaluate, or only evaluate; returns accuracies in percent and the loss."""
        origin = self.begin(run)
        if self.eval_only:
            predictions = self._predictions(self.model.to(run.processes.device), run)
            predictions.write(run)
            return self.end(run, origin, named({"finetune": predictions}))
        log.info(
            f"fine-tuning of {self.source.checkpoint}, recipe={self.recipe}: "
            f"{plural(len(self.training.images), 'training image')} and {plural(len(self.held_out), 'held-out image')} "
            f"in {plural(len(self.classes), 'class', 'es')}"
        )
        state = loop.fit(self, self.trainer, run)
        measured = loop.evaluations(run)
        last = measured[str(state.step)]
        result = {name: last[metric] for metric, name in RESULTS.items() if metric in last}
        result["finetune_best"] = max(each["val/accuracy"] for each in measured.values())
        return self.end(run, origin, result)

    def loss(self, batch: Batch, state: TrainingState, noise: StepNoise) -> Tensor:
        """Cross-entropy of each image, (B,), with smoothed and mixed labels."""
        images_BCHW, labels = batch.images_BCHW, batch.labels_B
        if self.mix is not None:
            with seeded(noise.seed_for("mixup", batch.first_row)):
                images_BCHW, labels = self.mix(images_BCHW, labels)  # also smooths the labels
        smoothing = 0.0 if self.mix is not None else self.label_smoothing
        logits_BC = state.forward(images_BCHW).float()
        return F.cross_entropy(logits_BC, labels, reduction="none", label_smoothing=smoothing)

    def evaluate(self, state: TrainingState, epoch: int, last: bool, run: Run) -> dict[str, float]:
        """Metrics on the held-out images, if due; the best model so far is saved in `best/`."""
        if not self.is_due(epoch, last):
            return {}
        model, average = state.whole()
        predictions = self._predictions(model, run)
        metrics = {f"val/{name}": value for name, value in predictions.metrics().items()}
        if average is not None:
            averaged = self._predictions(average, run).metrics()
            metrics |= {f"val/{name}_ema": value for name, value in averaged.items()}
        if last:
            predictions.write(run)
        before = max((each["val/accuracy"] for each in loop.evaluations(run).values()), default=-1.0)
        if predictions.accuracy > before:
            self._keep_best(state, run)
        log.info(
            "after step %d: %.2f %% of %s",
            state.step,
            predictions.accuracy,
            plural(len(self.held_out), "held-out image"),
        )
        return metrics

    def _keep_best(self, state: TrainingState, run: Run) -> None:
        plan = loop.step_plan(self, self.trainer, run.seed, run.processes)
        content = loop.checkpoint_content(self, state, run, plan)
        if run.processes.is_main:
            folder = run.folder.path / "best"
            store.save(folder, state.step, content)
            store.prune(folder, 1, lambda _: False)

    def _predictions(self, model: nn.Module, run: Run) -> Predictions:
        model.eval()
        predictions = predict_classes(
            ["finetune"], lambda x: model(x)[None], self.data, self.held_out, self.batch_size, run
        )
        return predictions["finetune"]
