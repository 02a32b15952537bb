"""Export of the features and labels of a data set to files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save as safetensors_bytes

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.core.files import atomic, write_json
from semaim.core.formatting import plural
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.evaluation.features import Extraction, extract
from semaim.models.vit import encode
from semaim.runs.context import Run
from semaim.tasks.evaluation import check_image_size, encoding_cost
from semaim.tasks.task import RunCost, Task

log = logging.getLogger(__name__)
HIGHLIGHTS = {"run folder": "`train.*` and `val.*` hold the features"}


@dataclass(eq=False)
class ExportFeatures(Task):
    """The task: `train.npz` and `val.npz` (or .safetensors) with cls, mean (M, D), labels and index (M,).

    Args:
        source: the encoder.
        data: images, labelled or not (label -1).
        format: "npz" or "safetensors".
        batch_size: images per batch on each process.
    """

    metric = "images"
    highlights = HIGHLIGHTS

    source: EncoderSource
    data: ImageData
    format: Literal["npz", "safetensors"]
    batch_size: int

    def __post_init__(self) -> None:
        self.vit = self.source.encoder()
        check_image_size(self.vit, self.data, self.source.checkpoint)

    def cost(self, processes: int, on_gpu: bool) -> RunCost:
        """A pass of the encoder over all images."""
        return encoding_cost(self.vit, *self._parts.values())

    def run(self, run: Run) -> dict[str, float]:
        """Compute and write features; returns the number of images and the feature width."""
        run.tag(self.source.origin(run.seed, run.choices).tags)
        self.vit.to(run.processes.device)
        encoder, total, width = partial(encode, self.vit), 0, 0
        for part, images in self._parts.items():
            request = Extraction(encoder, self.data, images, range(len(images)), self.batch_size, part)
            features = extract(request, run)
            arrays = {**features.by_kind, "labels": features.labels_M.numpy(), "index": features.index_M.numpy()}
            total, width = total + len(features.labels_M), arrays["mean"].shape[1]
            if run.processes.is_main:
                path = run.folder.path / f"{part}.{self.format}"
                self._write(path, arrays)
                names = [images.name(int(index)) for index in features.index_M]
                record = {"classes": list(self.data.splits.classes), "images": names}
                write_json(run.folder.path / f"{part}.json", record)
                log.info("%s: %s, features of width %d", path, plural(len(names), "image"), width)
        return {"images": total, "width": width}

    @property
    def _parts(self) -> dict[str, ImageSet]:
        splits = self.data.splits
        train = {"train": splits.labelled or splits.train}
        return train if splits.val is None else train | {"val": splits.val}

    def _write(self, path: Path, arrays: Mapping[str, Any]) -> None:
        with atomic(path) as file:
            if self.format == "npz":
                np.savez(file, **arrays)
            else:
                file.write(safetensors_bytes({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
