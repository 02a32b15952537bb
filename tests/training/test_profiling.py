"""`trainer.profile_steps`: the trace and table of some steps, which change no result."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from semaim.core.signals import StopRequest
from semaim.errors import Interrupted
from semaim.training import profiling
from support.commands import SMALL, journal, losses, succeed
from support.in_process import run

TWELVE = ("trainer.max_steps=12", "trainer.save_every_steps=1")
REGIONS = {"data", "semantic pass", "target", "forward", "backward", "optimizer"}


def trace(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt") as content:
        return json.load(content)["traceEvents"]


def artifacts(folder: Path) -> list[str]:
    return [line["artifact"] for line in journal(folder) if "artifact" in line]


def test_a_profile_changes_no_result_and_is_in_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    plain = run(tmp_path / "plain", *TWELVE)
    options = (*SMALL[1:], "run_name=run", *TWELVE, "trainer.profile_steps=3")
    said = succeed(tmp_path, *options)
    profiled = tmp_path / "runs" / "run"
    assert losses(profiled) == losses(plain)
    file = profiled / "profile" / "steps_8_to_10.json.gz"
    assert f"profile of steps 8 to 10: {file.relative_to(tmp_path)}" in said
    events = trace(file)
    names = [event.get("name") for event in events]
    assert names.count("backward") == names.count("semantic pass") == 3
    assert set(names) >= REGIONS | {"aten::addmm", "aten::_fused_adamw_"}
    table = file.with_name("steps_8_to_10.txt").read_text().splitlines()
    assert len(table) == 11
    assert table[0].split() == ["operation", "ms", "per", "step", "share", "calls", "per", "step"]
    operations = [line.split()[0] for line in table[1:]]
    assert all(any(str(name).startswith(each) for name in names) for each in operations)
    assert not REGIONS & set(operations)
    spent = [float(line.split()[-3]) for line in table[1:]]
    assert spent == sorted(spent, reverse=True)
    assert all(line in said for line in table)
    (experiment,) = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments(filter_string="name = 'semaim'")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (in_mlflow,) = client.search_runs([experiment.experiment_id])
    assert [each.path for each in client.list_artifacts(in_mlflow.info.run_id, "profile")] == [
        "profile/steps_8_to_10.json.gz", "profile/steps_8_to_10.txt",
    ]  # fmt: skip


def test_a_run_with_fewer_steps_is_profiled_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, "trainer.max_steps=4", "trainer.profile_steps=10")
    said = " ".join(capsys.readouterr().err.split())
    assert "trainer.profile_steps=10, but this start trains 4 steps: the profile has all of them" in said
    assert artifacts(folder) == ["profile/steps_1_to_4.json.gz", "profile/steps_1_to_4.txt"]
    names = [event.get("name") for event in trace(folder / "profile" / "steps_1_to_4.json.gz")]
    assert names.count("backward") == 4


def test_each_start_has_its_own_profile(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_steps=2", "trainer.profile_steps=1")
    folder = run(tmp_path, "trainer.max_steps=5", "trainer.profile_steps=2")
    assert sorted(file.name for file in (folder / "profile").glob("*.gz")) == [
        "steps_2_to_2.json.gz", "steps_4_to_5.json.gz",
    ]  # fmt: skip


def test_a_stopped_run_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes in the second recorded step; nothing of the profiler is left in this process."""
    steps = iter(range(100))
    monkeypatch.setattr(StopRequest, "requested", property(lambda _: next(steps) >= 9), raising=False)
    with pytest.raises(Interrupted):
        run(tmp_path, "trainer.max_steps=40", "trainer.profile_steps=20")
    assert not profiling._recording
    (file,) = (tmp_path / "run" / "profile").glob("*.gz")
    assert file.name.startswith("steps_8_to_")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_has_the_kernels(tmp_path: Path) -> None:
    folder = run(tmp_path, "device=cuda", *TWELVE, "trainer.profile_steps=3")
    events = trace(folder / "profile" / "steps_8_to_10.json.gz")
    assert {"kernel", "cpu_op", "user_annotation"} <= {event.get("cat") for event in events}
    table = (folder / "profile" / "steps_8_to_10.txt").read_text().splitlines()[1:]
    assert len(table) == 10
    assert not any(line.startswith(("aten::", "backward", "ProfilerStep")) for line in table)
    on_gpu = {event["name"] for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")}
    assert table[0][:40].strip() in {name[:40].strip() for name in on_gpu}
