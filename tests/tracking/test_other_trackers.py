"""TensorBoard and Weights & Biases: copies of the journal in the run folder, each point once."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError
from semaim.runs.folder import RunFolder
from semaim.tracking.tensorboard import TensorBoard
from semaim.tracking.wandb import WandB
from support.commands import SMALL, journal, losses, measured, run, started, status, succeed
from support.in_process import run as run_in_process
from support.waiting import wait_for

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}  # of each tag
OFFLINE = ("tracking=wandb", "tracking.mode=offline", "tracking.system_metrics_seconds=0")
BLOCK, HEADER = 32 * 1024, 7  # of wandb's log files, which have the format of LevelDB's


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests know no key, and no server but one that does not answer."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_settings"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def events(folder: Path) -> EventAccumulator:
    (file,) = (folder / "tensorboard").iterdir()
    accumulator = EventAccumulator(str(file), size_guidance=EVERYTHING)
    return accumulator.Reload()


def tensorboard_points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def records(folder: Path) -> Iterator[Record]:
    """The records of the only offline copy of a run."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    content, at, parts = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # the whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


def wandb_points(folder: Path, name: str) -> list[tuple[int, float]]:
    points = []
    for record in records(folder):
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if name in values:
            points.append((values["step"], values[name]))
    return points


COPIES = [
    pytest.param(("tracking=tensorboard",), tensorboard_points, "tensorboard/events*", id="tensorboard"),
    pytest.param(OFFLINE, wandb_points, "wandb/offline-run-*/*.wandb", id="wandb"),
]


def expected(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line["metrics"][name]) for line in measured(folder) if name in line["metrics"]]


@pytest.mark.parametrize(("options", "points", "_"), COPIES)
def test_copy_holds_every_point_of_the_journal_once(
    options: tuple[str, ...], points: Callable[[Path, str], list[tuple[int, float]]], _: str, tmp_path: Path
) -> None:
    output = succeed(tmp_path, *SMALL, *options, "evaluators=[knn,pictures]", "run_name=run", "trainer.max_steps=3")
    folder = tmp_path / "runs" / "run"
    for name in ("train/loss", "online/knn_10_cls"):
        assert len(expected(folder, name)) in (2, 3)
        assert [step for step, _ in points(folder, name)] == [step for step, _ in expected(folder, name)]
        assert np.allclose([v for _, v in points(folder, name)], [v for _, v in expected(folder, name)], rtol=1e-6)
    assert not (folder / "mlflow.json").exists()
    assert "mlflow" not in output.lower()


@pytest.mark.parametrize(("options", "points", "file"), COPIES)
def test_killed_run_continues_and_no_point_is_there_twice(
    options: tuple[str, ...], points: Callable[[Path, str], list[tuple[int, float]]], file: str, tmp_path: Path
) -> None:
    words = (*SMALL, *options, "run_name=run", "trainer.save_every_steps=3", "trainer.epochs=3")
    folder = tmp_path / "runs" / "run"
    with started(tmp_path, *words) as process:
        wait_for(lambda: len(losses(folder)) > 5 and [*folder.glob(file)], "some steps and their copy")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not services_of(process.pid), "the end of wandb's own process")
    last = max(losses(folder)) + 4
    succeed(tmp_path, *words, f"trainer.max_steps={last}")
    assert [step for step, _ in points(folder, "train/loss")] == [*range(1, last + 1)]
    assert len([*folder.glob(file)]) == 1


def services_of(pid: int) -> list[psutil.Process]:
    """wandb's own processes for a process."""
    found = psutil.process_iter(["name", "cmdline"])
    return [each for each in found if each.info["name"] == "wandb-core" and str(pid) in (each.info["cmdline"] or [])]


def test_tensorboard_has_pictures_results_and_choices(tmp_path: Path) -> None:
    words = (*SMALL, "tracking=tensorboard", "evaluators=[pictures]", "run_name=run", "trainer.max_steps=2")
    output = succeed(tmp_path, *words)
    assert "look at it:   tensorboard --logdir runs" in output
    folder = tmp_path / "runs" / "run"
    read = events(folder)
    (tag,) = read.Tags()["images"]
    assert [image.step for image in read.Images(tag)] == [n["step"] for n in journal(folder) if "image" in n]
    result = status(folder)["result"]
    assert {name: read.Scalars(f"result/{name}")[0].value for name in result} == pytest.approx(result)
    table = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"attention_center" in table
    assert b"trainer.epochs" in table


def test_wandb_has_configuration_choices_and_results(tmp_path: Path) -> None:
    words = (*SMALL, *OFFLINE, "run_name=run", "trainer.max_steps=2", "tracking.project=orders")
    output = succeed(tmp_path, *words)
    folder = tmp_path / "runs" / "run"
    (copy,) = (folder / "wandb").glob("offline-run-*")
    assert f"send it:      wandb sync {copy.relative_to(tmp_path)}" in output
    of_run = [each.run for each in records(folder) if each.HasField("run")][0]  # noqa: RUF015 - later ones are updates
    assert (of_run.project, of_run.display_name) == ("orders", "run")
    assert copy.name.endswith(of_run.run_id)
    config = {item.key: json.loads(item.value_json) for item in of_run.config.update}
    assert config["trainer"]["max_steps"] == 2
    assert config["choices"]["permutation"] == "attention_center"
    summary: dict[str, Any] = {}
    for each in records(folder):
        summary |= {item.key: json.loads(item.value_json) for item in each.summary.update}
    assert summary["result/loss"] == status(folder)["result"]["loss"]
    assert [each.exit.exit_code for each in records(folder) if each.HasField("exit")] == [0]


def test_wandb_without_a_key_is_a_mistake_before_anything_is_written(tmp_path: Path) -> None:
    done = run(tmp_path, "tracking=wandb")
    assert done.returncode == 2
    assert done.stdout.startswith("error: tracking.mode=online: wandb knows no API key: type wandb login, or set ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("tracker", "title"), [("tensorboard", "TensorBoard"), ("wandb", "wandb")])
def test_missing_package_is_named(tracker: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(Exception, match=rf"{title} is not installed: pip install {tracker}, or run with tracking=none"):
        run_in_process(tmp_path, f"tracking={tracker}")


@pytest.mark.parametrize("tracker", [TensorBoard(1.0, 0.0), WandB("semaim", None, "disabled", 1.0, 0.0)])
def test_what_only_mlflow_has(tracker: TensorBoard | WandB, tmp_path: Path) -> None:
    tracker.prepare(RunFolder(tmp_path))  # the parent of a sweep
    assert not [*tmp_path.iterdir()]
    assert tracker.report_command() is None
    with pytest.raises(
        UserError, match=r"checkpoint=mlflow:abc needs a tracking store to look it up in: tracking=mlflow"
    ):
        tracker.run_folder("abc")


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"tracking.mode=onlin: .*did you mean online\?"):
        compose_run_spec(["tracking=wandb", "tracking.mode=onlin"])
