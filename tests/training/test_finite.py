"""State, features and results that are not finite are neither saved nor reported: exit code 3, older files are kept."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import semaim
from semaim.checkpoints import store
from semaim.core.files import write_json
from semaim.core.finite import non_finite
from semaim.data.image_sets import Splits
from semaim.errors import NonFiniteError, UserError
from semaim.evaluation.accuracy import predict_classes
from semaim.evaluation.features import Extraction, extract
from semaim.evaluation.online_linear import OnlineLinear
from semaim.export.export import Options, export
from semaim.tasks.knn import KNN
from semaim.teachers import Teacher
from semaim.training import loop
from support.commands import losses, status
from support.evaluating import image_data, noise, surroundings, together
from support.in_process import go, run, run_here
from support.probing import ENCODER, PROBE

STEPS = ("trainer.warmup_epochs=0", "trainer.save_every_steps=1", "trainer.keep_checkpoints=1")


def test_names_of_values_that_are_not_finite() -> None:
    content = {
        "model": {"a": torch.ones(3), "b": torch.tensor([1.0, math.nan]), "meta": torch.empty(2, device="meta")},
        "state": [{"up": torch.tensor(math.inf)}, {"both": torch.tensor([math.inf, -math.inf])}],
        "finite": [torch.full((9,), 3e38), torch.full((9,), 6e4, dtype=torch.float16), torch.zeros(0)],
        "other": [torch.arange(3), 1.0, "text", None],
    }
    assert non_finite(content) == ["model.b", "state.0.up", "state.1.both"]
    assert non_finite({}) == []


def test_weights_after_the_last_update_are_known_to_be_finite(tmp_path: Path) -> None:
    """The loss of the only step is finite, the weights that its update makes are not."""
    with pytest.raises(NonFiniteError, match=r"after step 1 .*there is no checkpoint yet\. Lower optimizer\.base_lr"):
        run(tmp_path, *STEPS, "trainer.max_steps=1", "optimizer.base_lr=1e60")
    assert status(tmp_path / "run")["state"] == "failed"
    assert not list((tmp_path / "run").rglob("*.pt"))


def poison(where: str, state: Any) -> None:
    """Make one stored value not finite."""
    parts: dict[str, Callable[[], torch.Tensor]] = {
        "model.norm.bias": lambda: state.model.norm.bias,
        "ema.norm.bias": lambda: state.ema.module.norm.bias,
        "optimizer.state.0.exp_avg_sq": lambda: next(iter(state.optimizer.state.values()))["exp_avg_sq"],
    }
    parts[where]().data.view(-1)[0] = math.inf


@pytest.mark.parametrize("where", ["model.norm.bias", "ema.norm.bias", "optimizer.state.0.exp_avg_sq"])
def test_a_good_checkpoint_is_not_pruned_by_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    train_step = loop.train_step

    def spoiling(task: Any, trainer: Any, state: Any, *others: Any) -> Any:
        result = train_step(task, trainer, state, *others)
        if state.step == 1:
            poison(where, state)
        return result

    monkeypatch.setattr(loop, "train_step", spoiling)
    with pytest.raises(NonFiniteError, match=rf"after step 2 is not finite \({where}.*step_00000001\.pt\. Lower"):
        run(tmp_path, *STEPS, "trainer.max_steps=2", "trainer.ema=true")
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["step_00000001.pt", "step_00000001.pt.sha256"]
    saved = store.newest(tmp_path / "run" / "checkpoints")
    assert non_finite(saved) == []


def test_an_online_classifier_that_diverges_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = OnlineLinear.learn

    def spoiling(self: OnlineLinear, *arguments: Any) -> None:
        learn(self, *arguments)
        self.heads.heads[0].weight.data.fill_(math.nan)

    monkeypatch.setattr(OnlineLinear, "learn", spoiling)
    with pytest.raises(NonFiniteError, match=r"\(task\.evaluators\.linear\.heads.*an evaluator that learns: its base"):
        run(tmp_path, *STEPS, "trainer.max_steps=1", "evaluators=[linear]")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_measured_value_that_is_not_finite_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = lambda *_: {"online/good": 1.0, "online/bad": math.nan}  # noqa: E731
    monkeypatch.setattr("semaim.evaluation.online_knn.OnlineKNN.evaluate", measure)
    folder = run(tmp_path, *STEPS, "trainer.max_steps=1", "evaluators=[knn]")
    for file in ("evaluations.json", "metrics.jsonl", "status.json"):
        text = (folder / file).read_text()
        assert "NaN" not in text, file
        assert "online/good" in text or file == "status.json", file
    assert "online/bad" not in (folder / "evaluations.json").read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"bad": math.inf})


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_the_list_of_images_with_such_a_loss_is_valid_json(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        run(tmp_path, *STEPS, "trainer.max_steps=9", "optimizer.base_lr=1e30")
    step = max(losses(tmp_path / "run"))
    found = strict((tmp_path / "run" / f"not_finite_step_{step:08d}.json").read_text())
    assert {image["loss"] for image in found["images"]} & {"nan", "inf"}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose checkpoint has one weight of NaN, as older versions could save it."""
    folder = run(tmp_path_factory.mktemp("spoiled"), *ENCODER, "trainer.ema=true")
    state = store.newest(folder / "checkpoints")
    assert state is not None
    state["model"]["norm.weight"][3] = math.nan
    store.save(folder / "checkpoints", 2, state)
    return folder


EVALUATIONS = ("knn", "linprobe", "finetune", "fewshot", "features", "visualize", "pretrain")


@pytest.mark.parametrize("task", EVALUATIONS)
def test_no_task_takes_such_weights(spoiled: Path, tmp_path: Path, task: str, capsys: Any) -> None:
    options = ("tracking=none", "data.patch_size=8", "run_name=x", f"checkpoint={spoiled}")
    assert run_here(tmp_path, f"task={task}", *options) == 3
    said = capsys.readouterr().err
    assert f"checkpoint={spoiled} holds weights that are not finite (norm.weight)" in said
    assert said.count("error:") == 1
    assert not (tmp_path / "runs" / "x").exists()


def test_nothing_else_takes_such_weights(spoiled: Path, tmp_path: Path) -> None:
    refused = pytest.raises(NonFiniteError, match="holds weights that are not finite")
    with refused:
        semaim.load_model(spoiled)
    assert semaim.load_model(spoiled, ema=True).norm.weight.isfinite().all(), "the moving average is good"
    with refused:
        export(Options(str(spoiled), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="holds weights that are not finite"):
        Teacher(None, str(spoiled), True, False, "data", 8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(NonFiniteError, match=r"newest checkpoint .*step 2.* not finite \(model\.norm\.weight\): move"):
        run(spoiled.parent, *ENCODER, "trainer.ema=true", "trainer.max_steps=3")


def one_bad_image(images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of which those of the last image of `noise()` are not finite."""
    last = images_BCHW.mean((2, 3))
    last[(images_BCHW == BAD).flatten(1).all(1)] = math.inf
    return {"mean": last}


data = image_data(Splits(noise(), noise(), noise(), ["a", "b", "c"]))
BAD = data.eval_transform(noise().read(29))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_features_that_are_not_finite_end_an_evaluation_in_every_process(tmp_path: Path, processes: int) -> None:
    """No process waits for one that has found such a feature."""
    found = []

    def work(group: Any) -> None:
        with pytest.raises(
            NonFiniteError, match=r"queries: .*checkpoint=runs/x computes .* not finite for noise\[29\]"
        ):
            extract(Extraction(one_bad_image, data, noise(), range(30), 4, "queries"), replace(alone, processes=group))
        found.append(group.rank)

    with surroundings(tmp_path) as alone:
        alone.config["checkpoint"] = "runs/x"
        together(processes, work)
    assert sorted(found) == list(range(processes))


def test_a_diverged_classifier_does_not_end_the_others(tmp_path: Path) -> None:
    def logits(images_BCHW: torch.Tensor) -> torch.Tensor:
        good = images_BCHW.mean((2, 3))
        return torch.stack([good, good * math.nan])

    with surroundings(tmp_path) as here:
        found = predict_classes(["good", "bad"], logits, data, noise(), 4, here)
        assert list(found) == ["good"]
        with pytest.raises(NonFiniteError, match="no accuracy"):
            predict_classes(["bad"], lambda x: logits(x)[1:], data, noise(), 4, here)


def test_a_learning_rate_that_diverges_leaves_the_probe_of_the_others_as_it_is(tmp_path: Path) -> None:
    pretrained = run(tmp_path, *ENCODER)
    six = (*PROBE, "trainer.max_steps=6", f"checkpoint={pretrained}", "task.features=[mean]")
    wild = go(tmp_path, *six, "task.base_lrs=[0.1,1e39]", "run_name=wild")
    tame = go(tmp_path, *six, "task.base_lrs=[0.1,0.2]", "run_name=tame")
    measured, expected = (strict((folder / "evaluations.json").read_text())["6"] for folder in (wild, tame))
    intact = ("val/mean_lr0.1", "holdout/mean_lr0.1")
    assert measured == {name: value for name, value in expected.items() if name.startswith(intact)}
    assert status(wild)["result"]["linprobe_mean_base_lr"] == 0.1
    assert non_finite(store.newest(wild / "checkpoints")) == []
    with pytest.raises(NonFiniteError, match=r"lower task\.base_lrs|no accuracy"):
        go(tmp_path, *six, "task.base_lrs=[1e39,1e40]", "run_name=hopeless")
    assert status(tmp_path / "hopeless")["state"] == "failed"


def test_a_result_that_is_not_finite_is_no_result(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KNN, "run", lambda *_: {"knn_10_mean": math.nan})
    good = tmp_path / "good"
    shutil.copytree(spoiled, good)
    with pytest.raises(NonFiniteError, match="no result, since knn_10_mean is nan"):
        go(tmp_path, "task=knn", "data.patch_size=8", "tracking=none", f"checkpoint={good}", "task.source.ema=true",
           "run_name=knn")  # fmt: skip
    assert status(tmp_path / "knn")["state"] == "failed"
    assert "result" not in status(tmp_path / "knn")
