"""`semaim.launch`: runs from Python, in the process of the caller."""

from __future__ import annotations

import asyncio
import json
import pydoc
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import semaim
from semaim import lifecycle
from semaim.config.compose import CONF
from semaim.core import signals
from semaim.errors import Interrupted, UserError
from semaim.launching import RunResult
from semaim.models.aim import AIM
from semaim.runs.journal import read
from semaim.training import loop
from support.commands import ENVIRONMENT, SMALL


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def launch(*overrides: str) -> RunResult:
    return semaim.launch(*SMALL, "run_name=run", "trainer.max_steps=3", *overrides)


def test_result_is_that_of_the_run_folder(tmp_path: Path) -> None:
    result = launch("evaluators=[knn]", "then=[knn]")
    assert result.folder == tmp_path / "runs" / "run"
    assert result.metrics == json.loads((result.folder / "status.json").read_text())["result"]
    evaluated = result.follow_ups["knn"]
    assert evaluated.metrics == json.loads((evaluated.folder / "status.json").read_text())["result"]
    assert evaluated.metrics["knn_10_cls"] == result.metrics["online/knn_10_cls_after"]
    shown = repr(result).splitlines()
    assert shown[0] == "finished: runs/run"
    assert shown[1].split() == ["loss", f"{result.metrics['loss']:.2f}"]
    assert f"knn: runs/{evaluated.folder.name}" in shown


def test_history_is_the_journal_by_step() -> None:
    result = launch("evaluators=[knn]")
    history = result.history()
    lines = [line for _, line in read(result.folder / "metrics.jsonl", 0) if "train/loss" in line.get("metrics", {})]
    assert history["train/loss"].dropna().to_dict() == {n["step"]: n["metrics"]["train/loss"] for n in lines}
    assert [*history["train/loss"].dropna().index] == [1, 2, 3]
    assert history.index.name == "step"
    assert history.loc[0, "online/knn_10_cls"] == result.metrics["online/knn_10_cls_before"]


def test_model_is_loaded_when_it_is_asked_for() -> None:
    result = launch()
    assert isinstance(result.model, AIM)
    assert result.model is result.model
    weights = semaim.load_model(result.folder).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in result.model.state_dict().items())
    evaluated = semaim.launch("task=knn", f"checkpoint={result.folder}", "tracking=none")
    assert all(torch.equal(value, weights[name]) for name, value in evaluated.model.state_dict().items())


def test_same_call_returns_the_stored_result_and_another_one_runs() -> None:
    first = launch()
    journal = (first.folder / "metrics.jsonl").read_bytes()
    again = launch()
    assert again == first
    assert (first.folder / "metrics.jsonl").read_bytes() == journal
    longer = semaim.launch(*SMALL, "run_name=run", "trainer.max_steps=5")
    assert [*longer.history().index] == [1, 2, 3, 4, 5]
    other = launch("run_name=other", "seed=1")
    assert other.metrics != first.metrics


def test_session_of_the_user_is_left_as_it_was() -> None:
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    handlers = {signum: signal.getsignal(signum) for signum in signals.SIGNALS}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        users = GlobalHydra.instance().hydra
        launch()
        with pytest.raises(UserError):
            semaim.launch("model=aim_tny")
        assert GlobalHydra.instance().hydra is users
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]  # type: ignore[index]
    assert {signum: signal.getsignal(signum) for signum in signals.SIGNALS} == handlers


def test_second_call_says_each_line_once(capfd: pytest.CaptureFixture[str]) -> None:
    launch()
    capfd.readouterr()
    launch()
    assert capfd.readouterr().err.count("this run is finished already") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=aim_tny"], "there is no aim_tny in model (model=aim_tny): did you mean aim_tiny? choose from"),
        (["trainer.epochs=x"], "trainer.epochs=x: trainer.epochs must be a whole number from 1"),
        (["modle=aim_tiny"], "there is no option modle. did you mean model?"),
        (["model"], "model: an option is typed option=value"),
        ([3], "3 is not a text: an option is typed 'option=value'"),
        ([["seed=1"]], "['seed=1'] is not a text: an option is typed 'option=value'; the options of a list"),
        (["data.root=(a"], "data.root=(a: Hydra cannot read this value."),
        (["data=folder", "data.root=~/nowhere"], f"data.root={Path.home()}/nowhere is not a folder"),
        (["-m", "seed=0,1"], "-m is for the command line; launch starts one run, from its options: semaim run -m"),
        (["seed=0,1"], "seed=0,1: several values are a sweep, which a command starts: semaim run -m seed=0,1"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm: this is for sweeps, which a command starts: semaim run -m"),
        (["then=[knnn]"], "then=['knnn']: there is no evaluation knnn"),
        (["task=knn", "checkpoint=runs/nowhere"], "checkpoint=runs/nowhere does not exist"),
    ],
)  # fmt: skip
def test_mistake_is_told_in_one_line_and_writes_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        semaim.launch(*words)
    assert str(told.value).startswith(message)
    assert "\n" not in str(told.value)
    assert told.value.__suppress_context__  # without the way through Hydra
    assert not [*tmp_path.iterdir()]


def test_folder_of_configurations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config_dir='nowhere' is not a folder"):
        semaim.launch(config_dir="nowhere")
    (tmp_path / "own" / "permutation").mkdir(parents=True)
    (tmp_path / "own" / "permutation" / "mine.yaml").write_text("_target_: semaim.permutations.Raster\n")
    result = semaim.launch(*SMALL, "permutation=mine", "trainer.max_steps=1", config_dir="own")
    assert result.folder.name.startswith("pretrain_digits_aim_tiny_mine_pixels")


def test_from_another_thread_and_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[RunResult] = []
    inside, go_on = threading.Event(), threading.Event()
    execute = lifecycle.execute

    def waiting(*arguments: Any) -> float:
        inside.set()
        assert go_on.wait(60)
        return execute(*arguments)

    monkeypatch.setattr(lifecycle, "execute", waiting)
    thread = threading.Thread(target=lambda: results.append(launch()))
    thread.start()
    try:
        assert inside.wait(60)
        with pytest.raises(UserError, match="another run of this process has not ended"):
            semaim.launch("run_name=other")
    finally:
        go_on.set()
        thread.join(60)
    assert [result.folder.name for result in results] == ["run"]


def test_inside_a_running_event_loop() -> None:
    async def cell() -> RunResult:
        return launch("data.num_workers=1")

    assert asyncio.run(cell()).metrics["loss"] > 0


def test_interrupt_saves_and_the_same_call_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.train_step

    def interrupted_step(*arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments, **named)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupted_step)
        with pytest.raises(
            Interrupted, match=r"^stopped by SIGINT after step 1, which is saved; the same call continues$"
        ):
            launch()
    assert signal.getsignal(signal.SIGINT) is handler
    assert [*launch().history().index] == [1, 2, 3]


def test_interrupt_at_once_and_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("semaim.lifecycle.seed_all", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=r"^no step is lost; the same call continues$"):
            launch()
    assert launch().metrics["loss"] > 0


def test_public_names() -> None:
    """In a new interpreter, where nothing else has imported modules of the package."""
    code = "import semaim.errors, semaim; print(dir(semaim)); import sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    names, torch_imported = answer.stdout.splitlines()
    assert names == "['__version__', 'launch', 'load_model', 'permutations', 'semantics', 'targets']"
    assert torch_imported == "False"
    with pytest.raises(AttributeError):
        _ = semaim.lunch


def test_help_page() -> None:
    page = pydoc.plain(pydoc.render_doc(semaim))
    for text in (
        "semaim.launch(",
        "semaim.load_model(",
        "model.predict(images, order)",
        "launch(*overrides",
        "mkdocs",
    ):
        assert text in page
