"""An encoder for other tools: `python -m semaim.export checkpoint=<run folder or file> [format=timm] [output=folder]`.

Writes a folder that timm (`format=timm`) or transformers (`format=huggingface`) loads by itself: `model.safetensors`,
`config.json` and a model card. A fine-tuned classifier keeps its head. `checkpoint=` takes what evaluations take: run
folders and checkpoint files, and files of SemAIM's, SAIM's and other projects' code. The folder is also a checkpoint
itself. `mlflow=true` logs the model to the MLflow run that it is from. Exit codes: 0 done, 2 a mistake in the options.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save as safetensors_bytes

from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.checkpoints.two_stream import read_checkpoint
from semaim.config.messages import report_error
from semaim.core import terminal
from semaim.core.files import atomic, fsync_folder, write_json, write_text
from semaim.core.formatting import count
from semaim.errors import UserError
from semaim.export.formats import FORMATS, Content, Model
from semaim.export.mlflow_model import log_model, tracked_run
from semaim.export.model_card import card, run_folder_of

WEIGHTS, CARD = "model.safetensors", "README.md"


@dataclass
class Options:
    """What the command line may say, as key=value."""

    checkpoint: str = MISSING
    format: str = "timm"
    output: str | None = None
    overwrite: bool = False
    ema: bool = False
    num_heads: int | None = None
    architecture: str | None = None
    mlflow: bool = False


def parse(words: Sequence[str]) -> Options:
    """The options of a command line.

    Raises:
        UserError: for an unknown option, or a value of another kind.
    """
    names = [field.name for field in fields(Options)]
    given: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or name not in names:
            raise UserError(f"{word}: there is no such option; there are: {', '.join(f'{known}=' for known in names)}")
        given[name] = value
    try:
        values = {name: None if value == "null" else value for name, value in given.items()}
        options = OmegaConf.merge(OmegaConf.structured(Options), values)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}={given[str(error.full_key)]}: {str(error).splitlines()[0]}") from error
    if OmegaConf.is_missing(options, "checkpoint"):
        raise UserError("which encoder? checkpoint=runs/<name> (or a file)")
    if options.format not in FORMATS:
        raise UserError(f"format={options.format} is unknown: choose {' or '.join(FORMATS)}")
    found: Any = OmegaConf.to_object(options)
    return found


def export(options: Options) -> None:
    """Read, write, and say what can be typed next.

    Raises:
        UserError: if the checkpoint cannot be exported in this format, or the folder cannot be written.
    """
    path = Path(options.checkpoint).expanduser()
    stored = StoredEncoder(path, read_checkpoint(path), options.ema, options.num_heads, options.architecture)
    model = Model.of(stored)
    content = FORMATS[options.format](model)
    output = Path(options.output).expanduser() if options.output else default_output(path, options.format)
    run = run_folder_of(path)
    tracked = tracked_run(run, path) if options.mlflow else None
    check_place(output, content, options.overwrite)
    write(output, content, card(model, stored, run, content, output))
    parameters = sum(value.numel() for value in content.weights.values())
    print(f"exported: {output} ({count(parameters)} weights, for {content.tool})")
    if not model.normalisation_known:
        print("note: how its images were normalised is not known; the folder says ImageNet's mean and deviation")
    print(f"load it:\n\n{indented(content.snippet(output))}\n")
    print(f"evaluate it: python -m semaim.run task=knn checkpoint={output} data=...")
    if tracked is not None:
        uri, model_uri = log_model(model.vit, "classifier" if model.num_classes else "encoder", tracked)
        print(f"logged to MLflow: {model_uri}\nload it:\n\n{indented(mlflow_snippet(uri, model_uri))}\n")


def default_output(path: Path, format: str) -> Path:
    """Where an export goes by itself: into a folder, beside a file."""
    return path / format if path.is_dir() else path.with_name(f"{path.stem}-{format}")


def check_place(output: Path, content: Content, overwrite: bool) -> None:
    """Raise UserError if something is there that is not to be, or must not be, replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"output={output} exists: choose another, or replace it with overwrite=true")
    known = {WEIGHTS, CARD, *content.settings, "preprocessor_config.json"}
    if not output.is_dir() or (others := sorted(file.name for file in output.iterdir() if file.name not in known)):
        what = f"holds {others[0]}" if output.is_dir() else "is a file"
        raise UserError(f"output={output} {what}, which no export wrote, so it is not replaced: choose another")


def write(output: Path, content: Content, text: str) -> None:
    """Write the folder under another name, and put it in its place when it is complete.

    Raises:
        UserError: if it cannot be written.
    """
    temporary = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    replaced = output.with_name(f"{temporary.name}.old")
    try:
        temporary.mkdir(parents=True)
        weights = {name: value.contiguous() for name, value in content.weights.items()}
        with atomic(temporary / WEIGHTS) as file:
            file.write(safetensors_bytes(weights, {"format": "pt"}))
        for name, value in content.settings.items():
            write_json(temporary / name, value)
        write_text(temporary / CARD, text)
        if output.exists():
            output.rename(replaced)
        temporary.rename(output)
        fsync_folder(output.parent)
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def indented(text: str) -> str:
    """Lines to copy, set off from the rest."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def mlflow_snippet(uri: str, model_uri: str) -> str:
    """What loads a logged model."""
    return f'import mlflow\nmlflow.set_tracking_uri("{uri}")\nmodel = mlflow.pytorch.load_model("{model_uri}")'


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m semaim.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = [f"{field.name}={'null' if field.default is None else field.default}" for field in fields(Options)[1:]]
    shown = f"checkpoint=..., and as needed {', '.join(defaults).replace('False', 'false')}"
    parser.add_argument("options", nargs="+", metavar="option=value", help=shown)
    words = parser.parse_args(argv).options
    terminal.show_logs(True)
    try:
        with torch.no_grad():
            export(parse(words))
    except Exception as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
