"""Export of an encoder to a folder that timm or transformers loads without semaim.

The folder holds `model.safetensors` with its checksum, `config.json` and a model card. A fine-tuned classifier keeps
its head. The checkpoint is a run folder, a checkpoint file, or a file of another project, as for evaluations. The
exported folder is also a checkpoint.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from safetensors.torch import save as safetensors_bytes

from semaim.checkpoints.pretrained import read_checkpoint
from semaim.checkpoints.store import write_checksum
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.config.source_run import run_folder_of, source_run, value_text
from semaim.core.files import HashingWriter, atomic, fsync_folder, write_json, write_text
from semaim.core.formatting import count, printable, program
from semaim.errors import UserError
from semaim.export.formats import FORMATS, Content, Model
from semaim.export.mlflow_model import log_model, tracked_run
from semaim.export.model_card import card

WEIGHTS, CARD = "model.safetensors", "README.md"
INDENT = "    "


@dataclass(frozen=True)
class Options:
    """Options of an export.

    Attributes:
        checkpoint: run folder or checkpoint file.
        format: "timm" or "huggingface".
        output: folder to write; None for one inside or beside the checkpoint.
        overwrite: replace an earlier export.
        ema: take the moving average of the weights.
        num_heads: number of attention heads, if the file does not contain it.
        architecture: timm model of another project's file, if its weights do not determine it.
        mlflow: also log the model to its MLflow run.
    """

    checkpoint: str
    format: str = "timm"
    output: str | None = None
    overwrite: bool = False
    ema: bool = False
    num_heads: int | None = None
    architecture: str | None = None
    mlflow: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format} is unknown: choose {' or '.join(FORMATS)}")


def export(options: Options) -> None:
    """Export a checkpoint and print commands that the user may run next.

    Raises:
        UserError: if the checkpoint cannot be exported in this format, or the folder cannot be written.
    """
    path = Path(options.checkpoint).expanduser()
    stored = StoredEncoder(path, read_checkpoint(path), options.ema, options.num_heads, options.architecture)
    model = Model(stored)
    content = FORMATS[options.format](model)
    inside = path / options.format if path.is_dir() else path.with_name(f"{path.stem}-{options.format}")
    output = Path(options.output).expanduser() if options.output else inside
    run = run_folder_of(path)
    tracked = tracked_run(run, path) if options.mlflow else None
    check_output(output, content, options.overwrite)
    write(output, content, printable(card(model, stored, run, content, output), keep="\n"))
    parameters = sum(value.numel() for value in content.weights.values())
    print(f"exported: {printable(str(output))} ({count(parameters)} weights, for {content.tool})")
    if stored.normalisation is None:
        print("note: the normalisation of its images is not known; the folder has ImageNet's mean and deviation")
    if options.format == "huggingface" and len(set(model.image_size)) > 1:
        print(
            "note: transformers resizes the shorter side alone, so that its processor shows less of an image than "
            f"semaim: prepare images as {printable(str(output / CARD))} says"
        )
    print(printable(f"load it:\n\n{indent(content.snippet(output), INDENT)}\n", keep="\n"))
    evaluate = program("run", "task=knn", f"checkpoint={value_text(str(output))}")
    data = "" if source_run(output) else " data=..."  # those of the run, if it is in its folder
    print(f"evaluate it: {printable(evaluate)}{data}")
    if tracked is not None:
        uri, model_uri = log_model(model.vit, "classifier" if model.num_classes else "encoder", tracked)
        snippet = f'import mlflow\nmlflow.set_tracking_uri({uri!r})\nmodel = mlflow.pytorch.load_model("{model_uri}")'
        print(f"logged to MLflow: {model_uri}\nload it:\n\n{indent(snippet, INDENT)}\n")


def check_output(output: Path, content: Content, overwrite: bool) -> None:
    """Raise UserError if the output exists and may not be replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"--output {output} exists: choose another folder, or replace it with --overwrite")
    known = {WEIGHTS, f"{WEIGHTS}.sha256", CARD, *content.settings, "preprocessor_config.json"}
    if not output.is_dir() or (unknown := sorted(file.name for file in output.iterdir() if file.name not in known)):
        problem = f"holds {unknown[0]}" if output.is_dir() else "is a file"
        raise UserError(f"--output {output} {problem}, which no export wrote, so it is not replaced: choose another")


def write(output: Path, content: Content, text: str) -> None:
    """Write the folder under a temporary name, and rename it when it is complete.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = output.with_name(f"{temporary.name}.old")
    try:
        temporary.mkdir(parents=True)
        weights = {name: value.contiguous() for name, value in content.weights.items()}
        with atomic(temporary / WEIGHTS) as file:
            writer = HashingWriter(file)
            writer.write(safetensors_bytes(weights, {"format": "pt"}))
        write_checksum(temporary / WEIGHTS, writer.hash.hexdigest())
        for name, value in content.settings.items():
            write_json(temporary / name, value)
        write_text(temporary / CARD, text)
        if output.exists():
            output.rename(old)
        temporary.rename(output)
        fsync_folder(output.parent)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
