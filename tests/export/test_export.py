"""The export command: its output folder, its messages, and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.cli import main
from semaim.data.transforms import evaluation
from semaim.export import export
from support import foreign_files
from support.commands import PROGRAM, finished
from support.exporting import SMALL, exported, photograph, stored
from support.folders import contents
from support.in_process import go


@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_printed_commands_can_be_run(form: str, tuned: dict[str, Path], square: Path, tmp_path: Path, capsys) -> None:
    for run in (square, tuned["cls"]):
        exported(tmp_path / run.name, run, "--format", form)
        printed = capsys.readouterr().out
        code = "\n".join(line[4:] for line in printed.splitlines() if line.startswith("    "))
        assert code in (tmp_path / run.name / "exported" / "README.md").read_text()
        given = {"image": photograph(40, 32)}
        exec(code, given)
        transform = evaluation(32, crop_ratio=1.0, mean=[0.3] * 3, std=[0.36] * 3)
        with torch.no_grad():
            picture_BCHW, ours = transform(given["image"])[None], stored(run)
            expected = ours(picture_BCHW) if run != square else ours.forward_features(picture_BCHW)
        found = given.get("tokens", given.get("logits", given.get("found")))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_default_output_folder(square: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(square), "--format", "huggingface"]) == 0
    assert (square / "huggingface" / "model.safetensors").is_file()
    file = tmp_path / "theirs.pth"
    torch.save(foreign_files.timm_plain().content, file)
    assert main(["export", str(file)]) == 0
    assert (tmp_path / "theirs-timm" / "config.json").is_file()
    assert "note: the normalisation of its images is not known" in capsys.readouterr().out
    assert "(assumed: the checkpoint does not say)" in (tmp_path / "theirs-timm" / "README.md").read_text()


def test_the_model_card_describes_the_training(pretrained: Path, tuned: dict[str, Path], tmp_path: Path) -> None:
    newest = sorted((pretrained / "checkpoints").glob("*.pt"))[-1]
    start = json.loads((pretrained / "environment.json").read_text())["starts"][0]
    for given in (pretrained, newest):
        card = (exported(tmp_path / given.name, given) / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n")
        for row in (
            "# begun",
            "| permutation | attention_center |",
            "| target | pixels |",
            "| data | digits |",
            "| seed | 3 |",
            "| images seen | 32 |",
            f"| semaim | {start['semaim']}, commit {start['commit']}",
            f"\n    {start['command']}\n",
            "images of 32x24 pixels in patches of 8",
            "the smallest size that covers 40x30 pixels (bicubic), the centre of 32x24",
            "mean 0.3, 0.3, 0.3 and deviation 0.36, 0.36, 0.36.",
        ):
            assert row in card, row
    card = (exported(tmp_path / "tuned", tuned["mean"]) / "README.md").read_text()
    assert "(classifier of 10 classes)" in card
    assert "| run | square |" in card
    assert "| result: finetune | " in card


def test_the_model_card_shows_no_password(square: Path, tmp_path: Path) -> None:
    """semaim 0.1.0 stored the command with it; a model card is published."""
    old = shutil.copytree(square, tmp_path / "old")
    starts = json.loads((old / "environment.json").read_text())["starts"]
    starts[0]["command"] += " tracking.uri=http://ada:s3cret@host 'x=\"mysql://host/db?password=s3cret\"'"
    (old / "environment.json").write_text(json.dumps({"starts": starts}))
    card = (exported(tmp_path / "timm", old) / "README.md").read_text()
    assert "tracking.uri=http://***@host 'x=\"mysql://host/db?password=***\"'" in card
    assert "s3cret" not in card


def test_nothing_is_replaced_by_default(square: Path, pretrained: Path, tmp_path: Path, capsys) -> None:
    folder = exported(tmp_path, square)
    before = contents(folder)
    words = [str(pretrained), "--output", str(folder)]
    assert main(["export", *words]) == 2
    assert f"--output {folder} exists: choose another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert contents(folder) == before
    (folder / "thesis.txt").write_text("five years")
    assert main(["export", *words, "--overwrite"]) == 2
    assert "holds thesis.txt, which no export wrote, so it is not replaced" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "five years"
    (folder / "thesis.txt").unlink()
    assert main(["export", *words, "--overwrite"]) == 0
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert main(["export", *words, "--overwrite", "--format", "huggingface"]) == 0  # the other format may replace it
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]
    (tmp_path / "file").write_text("")
    assert main(["export", words[0], "--output", str(tmp_path / "file"), "--overwrite"]) == 2


def test_a_folder_is_written_completely_or_not_at_all(square: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = exported(tmp_path, square)
    before = contents(folder)
    monkeypatch.setattr(export, "write_text", full)
    assert main(["export", str(square), "--output", str(folder), "--overwrite"]) == 2
    assert "cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert main(["export", str(square), "--output", str(tmp_path / "new")]) == 2
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]


def test_other_users_may_read_it(square: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {(folder / "README.md").stat().st_mode & 0o777}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--fromat", "timm"], "unrecognized arguments: --fromat"),
        (["x", "timm"], "unrecognized arguments: timm"),
        (["x", "--format", "onnx"], "--format onnx is unknown: choose timm or huggingface"),
        (["x", "--ema=perhaps"], "argument --ema: ignored explicit argument 'perhaps'"),
        (["x", "--num-heads", "two"], "argument --num-heads: invalid int value: 'two'"),
        (["--format", "timm"], "the following arguments are required: checkpoint"),
        (["/nowhere/x"], "checkpoint=/nowhere/x does not exist"),
    ],
)
def test_mistakes_in_the_options(words: list[str], message: str, tmp_path: Path) -> None:
    done = finished([*PROGRAM, "export", *words], tmp_path)
    assert done.returncode == 2
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(("error: ", "semaim export: error: "))
    assert message in last
    assert not list(tmp_path.iterdir())


def test_the_command_reports_mistakes(tmp_path: Path) -> None:
    done = finished([*PROGRAM, "export", "no"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "error: checkpoint=no does not exist\n")


def test_checkpoints_without_an_encoder_are_not_exported(square: Path, tmp_path: Path, capsys) -> None:
    probe = go(tmp_path, *SMALL, "task=linprobe", "trainer.max_steps=1", "run_name=probe", f"checkpoint={square}")
    assert main(["export", str(probe)]) == 2
    assert "is of an evaluation, it holds no pretrained model that predicts patches" in capsys.readouterr().err
    assert main(["export", str(square), "--ema"]) == 2
    assert "holds no moving average" in capsys.readouterr().err
