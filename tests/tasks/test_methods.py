"""Every method goes through every task: a run that continues, evaluations, export, pictures, targets.

Shapes: B images, L patches, N = 1 + L tokens (cls first), D width, P channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

import semaim
from semaim.core.seeding import StepNoise
from semaim.data.batches import Batch
from semaim.data.samples import read_images
from semaim.models.vit import pooled
from semaim.permutations import noise_columns
from semaim.semantics import semantic_map
from semaim.targets import Pixels
from semaim.training.state import TrainingState
from support.commands import SMALL, journal, losses, status
from support.encoders import source
from support.evaluating import ALONE, assert_same_bits
from support.exporting import by_timm, exported
from support.in_process import go, run, run_here
from support.mistakes import assert_one_message
from support.targets import NOW, task_of, weights, with_small_teachers


class Method(NamedTuple):
    """Options of a method, its name, and how many of 16 patches it predicts."""

    options: tuple[str, ...]
    name: str
    predicted: int


METHODS = {
    "mae": Method(("model=mae_tiny", "model.decoder_dim=24", "permutation=stochastic"), "MAE", 12),
    "simmim": Method(("model=simmim_tiny", "model.mask_unit=16", "permutation=random_blobs"),
                     "SimMIM, random_blobs", 12),  # 3 of 4 units
    "randsac": Method(("model=aim_tiny", "model.segments=5", "permutation=random_squares"), "RandSAC-5", 16),
    "segments": Method(("model=aim_tiny", "model.segments=5", "model.skip_connections=true"),
                       "AIM, attention_center, 5 segments", 16),
}  # fmt: skip
PATCHES = ("data.patch_size=8",)
AVERAGED = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]", "trainer.save_every_steps=1", "model.drop_path=0.2")
WATCHED = ("evaluators=[knn,linear,pictures]", "task.evaluators.pictures.images=8")
QUIET = ("tracking=none", "task.features_dir=null")


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.fixture(scope="module")
def pretrained(method: Method, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three steps, with a moving average, watched by all evaluators."""
    home = tmp_path_factory.mktemp("pretrained")
    return run(home, *PATCHES, *method.options, *AVERAGED, *WATCHED, "trainer.warmup_epochs=0", "trainer.max_steps=3")


def tags(folder: Path) -> dict[str, str]:
    return {name: value for line in journal(folder) for name, value in line.get("tags", {}).items()}


def test_a_run_continues_to_the_last_bit(method: Method, pretrained: Path, tmp_path: Path) -> None:
    """Whether or not evaluators watch it."""
    options = (*PATCHES, *method.options, *AVERAGED, "trainer.warmup_epochs=0")
    for steps in (1, 3):
        parts = run(tmp_path, *options, f"trainer.max_steps={steps}")
    one, other = weights(pretrained), weights(parts)
    for part in ("architecture", "model", "ema", "optimizer", "rng", "step", "loss"):
        assert_same_bits(one[part], other[part], part)
    assert losses(pretrained) == losses(parts)


def test_evaluators_watch_it(method: Method, pretrained: Path) -> None:
    result = status(pretrained)["result"]
    assert {"online/knn_10_mean_before", "online/knn_10_mean_after", "online/linear_cls_after"} <= result.keys()
    assert tags(pretrained)["method"] == method.name
    assert (pretrained / "pictures" / "step_00000003.png").stat().st_size > 10_000
    with np.load(pretrained / "pictures" / "step_00000003.npz") as stored:
        assert stored["error_BL"].shape == (8, 16)
        masked = "predicted_BL" in stored.files
        assert masked == (method.predicted < 16)
        if masked:
            assert stored["predicted_BL"].sum(1).tolist() == [method.predicted] * 8


@torch.no_grad()
@pytest.mark.parametrize("ema", [False, True])
def test_its_encoder_is_evaluated_and_exported(
    pretrained: Path, ema: bool, images: Callable[..., Tensor], tmp_path: Path
) -> None:
    """All patches are seen, none is masked; the moving average has other weights."""
    model = semaim.load_model(pretrained, ema=ema)
    expected_BND = model.encode(images(4))
    found = source(pretrained, *PATCHES, f"task.source.ema={str(ema).lower()}").encoder()
    assert (found.forward_features(images(4)) - expected_BND).abs().max() <= 1e-6 * expected_BND.abs().max()
    assert (semaim.load_model(pretrained, ema=not ema).encode(images(4)) - expected_BND).abs().max() > 1e-4
    timm_model = by_timm(exported(tmp_path, pretrained, *(["--ema"] if ema else [])))
    assert torch.equal(timm_model.forward_features(images(4)), found.forward_features(images(4)))


@pytest.mark.parametrize("task", ["knn", "linprobe", "finetune", "fewshot"])
def test_evaluations(method: Method, pretrained: Path, tmp_path: Path, task: str) -> None:
    """Their results are numbers, and they know what they evaluate."""
    short = {"knn": ("task.ks=[10]",), "fewshot": ("task.shots=[1]", "task.repeats=2")}
    options = short.get(task, ("trainer.max_steps=2", "trainer.batch_size=32"))
    quiet = QUIET if task in ("knn", "fewshot") else QUIET[:1]
    folder = go(tmp_path, *quiet, f"task={task}", f"checkpoint={pretrained}", "run_name=x", *PATCHES, *options)
    result = status(folder)["result"]
    assert any(name.startswith(("knn_", task)) for name in result)
    assert all(np.isfinite(value) for value in result.values())
    found = tags(folder)
    assert found["pretrained.method"] == method.name
    assert found["pretrained.run"] == pretrained.name


def test_features_are_those_of_its_encoder(method: Method, pretrained: Path, tmp_path: Path) -> None:
    folder = go(tmp_path, "tracking=none", "task=features", f"checkpoint={pretrained}", "run_name=x", *PATCHES)
    task = task_of(*PATCHES, *method.options)
    _, images_BCHW = read_images(task.data.splits.val, range(8), task.data.eval_transform, task.data.unreadable)
    (file,) = (each for each in folder.rglob("*.npz") if "val" in each.name)
    with torch.no_grad(), np.load(file) as stored:
        for kind, expected_BD in pooled(semaim.load_model(pretrained).encode(images_BCHW)).items():
            np.testing.assert_allclose(stored[kind][:8], expected_BD, rtol=1e-4, atol=1e-5)


def test_pictures_show_what_is_visible(method: Method, pretrained: Path, tmp_path: Path) -> None:
    """A film shows patches that are predicted one after the other; masked models have none."""
    folder = go(tmp_path, "task=visualize", "tracking=none", f"checkpoint={pretrained}", "run_name=x", "task.count=2",
                "task.formats=[svg]", *PATCHES)  # fmt: skip
    files = {file.name for file in (folder / "pictures").iterdir()}
    film = {"film.gif", "film.svg"} if method.predicted == 16 else set()
    assert files == {"images.csv", "orders.svg", "reconstruction.svg"} | film
    drawing = (folder / "pictures" / "reconstruction.svg").read_text()
    assert ("<!-- visible -->" in drawing) == (method.predicted < 16)


# Targets


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Options of each target, with a small teacher where it has one."""
    return with_small_teachers(tmp_path_factory.mktemp("weights")) | {
        "raw pixels": ("target.norm_pix=false", "target.blur_kernel_size=0", "target.loss=l1")
    }


@pytest.mark.parametrize("target", ["pixels", "raw pixels", "online", "ema", "dino", "clip"])
def test_the_loss_is_that_of_the_patches_it_predicts_in_the_order_of_the_map(
    method: Method, files: dict[str, Any], target: str, images: Callable[..., Tensor]
) -> None:
    """The map is of all patches: of the teacher or the moving average if the target has one, else of the encoder."""
    task = task_of(*PATCHES, *method.options, *files[target], "permutation=attention_center")
    task.load(ALONE)
    images_BCHW = images(4)
    ema = ModelEmaV3(task.model) if task.trainer.ema else None
    if ema is not None:
        with torch.no_grad():
            for parameter in ema.module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    state = TrainingState(task.model.eval(), task.model, ema, None, None)  # type: ignore[arg-type]
    noise = StepNoise(0, 0, 4)
    loss_B = task.loss(Batch(images_BCHW, torch.zeros(4).long(), torch.arange(4), 0, []), state, noise)

    network: Any = task.teacher or (ema.module if ema is not None else task.model)
    with torch.no_grad():
        tokens_BND = network.encode(images_BCHW)
    assert tokens_BND.shape[:2] == (4, 17)
    noise_BK = noise.rows(0, 4, noise_columns((4, 4)), images_BCHW.device)
    order_BL = task.permutation.order((4, 4), noise_BK, semantic_map(tokens_BND, "cls"))
    prediction_BLP, counted_BL = task.model(images_BCHW, order_BL)
    wanted_BLP = task.target(images_BCHW, None) if isinstance(task.target, Pixels) else tokens_BND[:, 1:]
    loss_BL = task.target.loss(prediction_BLP, wanted_BLP)
    counted_BL = torch.ones(4, 16, dtype=torch.bool) if counted_BL is None else counted_BL
    assert counted_BL.sum(1).tolist() == [method.predicted] * 4
    expected = [loss_L[counted_L].mean().item() for loss_L, counted_L in zip(loss_BL, counted_BL, strict=True)]
    assert loss_B.tolist() == pytest.approx(expected, rel=1e-5)
    loss_B.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())


def test_a_target_of_its_own_average_trains(method: Method, tmp_path: Path) -> None:
    folder = run(tmp_path, *PATCHES, *method.options, "target=ema", "permutation=attention", "semantic_map=self", *NOW)
    assert all(0 < loss < 4 for loss in losses(folder).values())
    assert semaim.load_model(folder, ema=True).architecture["out_channels"] == 32


# Mistakes


def test_a_run_does_not_start_from_another_kind_of_model(
    method: Method, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message ends with a command that has the model of the run."""
    kind = method.options[0].removeprefix("model=").removesuffix("_tiny")
    other = "mae" if kind == "aim" else "aim"
    assert run_here(tmp_path, "tracking=none", f"model={other}_tiny", f"checkpoint={pretrained}", *PATCHES) == 2
    words = (f"checkpoint={pretrained} holds another model (model={kind}_...) than this command trains "
             f"(model={other}_...): choose model={kind}_.... Add your changes to this command, which has that model:\n",
             f"again {pretrained} checkpoint={pretrained}\n")  # fmt: skip
    assert_one_message(capsys, words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("change", ["model.visible=0.5", "model.decoder_depth=1"])
def test_a_run_does_not_continue_with_another_method(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*SMALL, *PATCHES, *METHODS["mae"].options, "run_name=run", "trainer.max_steps=1")
    assert run_here(tmp_path, *options) == 0
    capsys.readouterr()
    assert run_here(tmp_path, *options, change) == 2
    assert_one_message(capsys, ("was started with another configuration", f"{change.partition('=')[0]}: "))


def test_what_is_no_predictor_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n\n\nclass Bare(nn.Module):\n    def __init__(self, out_channels: int) -> None:\n"
        "        super().__init__()\n"
    )
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "bare.yaml").write_text("_target_: my_model.Bare\n_partial_: true\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_here(tmp_path, "--config-dir", "own", "model=bare", "tracking=none") == 2
    assert_one_message(capsys, ("model._target_=my_model.Bare is no semaim.models.predictor.Predictor",))
    assert not (tmp_path / "runs").exists()
