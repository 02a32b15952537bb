"""Export of the features and labels of a data set to files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from safetensors.numpy import save as safetensors_bytes

from semaim.checkpoints.encoder_source import EncoderSource
from semaim.config.run_spec import RunSpec
from semaim.core.distributed import Processes
from semaim.core.files import atomic, write_json
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ImageSet
from semaim.errors import UserError
from semaim.evaluation.features import Extraction, extract
from semaim.runs.context import Run
from semaim.tasks.evaluation import check_image_size, encoder_pass

log = logging.getLogger(__name__)


class ExportFeatures:
    """The task: `train.npz` and `val.npz` (or .safetensors) with cls, mean (M, D), labels and index (M,).

    Args:
        source: the encoder.
        data: images, labelled or not (label -1).
        format: "npz" or "safetensors".
        batch_size: images per batch on each process.
    """

    metric = "images"
    highlights: ClassVar[dict[str, str]] = {"run folder": "`train.*` and `val.*` hold the features"}

    def __init__(
        self, source: EncoderSource, data: ImageData, format: Literal["npz", "safetensors"], batch_size: int
    ) -> None:
        if format not in ("npz", "safetensors"):
            raise UserError(f"task.format={format} is unknown: choose npz or safetensors")
        self.source = source
        self.data = data
        self.format = format
        self.batch_size = batch_size
        self.vit = source.encoder()
        check_image_size(self.vit, data, source.checkpoint)

    def check(self, seed: int, processes: Processes) -> None:
        """Nothing to check."""

    def run(self, run: Run) -> dict[str, float]:
        """Compute and write features; returns the number of images and the feature width."""
        run.tag(self.source.origin(run.seed, run.choices).tags)
        self.vit.to(run.processes.device)
        splits = self.data.splits
        parts: dict[str, ImageSet | None] = {"train": splits.labelled or splits.train, "val": splits.val}
        total, width = 0, 0
        for part, images in parts.items():
            if images is None:
                continue
            request = Extraction(encoder_pass(self.vit), self.data, images, range(len(images)), self.batch_size, part)
            features = extract(request, run)
            arrays = {**features.by_kind, "labels": features.labels_M.numpy(), "index": features.index_M.numpy()}
            total, width = total + len(features.labels_M), arrays["mean"].shape[1]
            if run.processes.is_main:
                path = run.folder.path / f"{part}.{self.format}"
                self._write(path, arrays)
                names = [images.name(int(index)) for index in features.index_M]
                write_json(run.folder.path / f"{part}.json", {"classes": list(splits.classes), "images": names})
                log.info("%s: %d images, features of width %d", path, len(names), width)
        return {"images": total, "width": width}

    def _write(self, path: Path, arrays: Mapping[str, Any]) -> None:
        with atomic(path) as file:
            if self.format == "npz":
                np.savez(file, **arrays)
            else:
                file.write(safetensors_bytes({name: np.ascontiguousarray(value) for name, value in arrays.items()}))

    def next_commands(self, folder: Path, spec: RunSpec) -> dict[str, str]:
        """Commands that the user may run next."""
        return {}
