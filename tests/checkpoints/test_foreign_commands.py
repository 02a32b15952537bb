"""Whole commands with encoders of other projects: evaluation, fine-tuning, and evaluation of trained heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from semaim.errors import UserError
from semaim.models.vit import encode
from support import foreign_files
from support.commands import RUN, journal, status, succeed
from support.encoders import MODEL, images, source
from support.foreign_layouts import TIMM_SIZES, File, randomised, saved
from support.in_process import go


@pytest.fixture(scope="module")
def mae_classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """Layout of MAE's fine-tuning checkpoints, with the normalised mean of the patches; and the model."""
    model = randomised(timm.create_model("vit_tiny_patch16_224", **TIMM_SIZES, num_classes=10,
                                         global_pool="avg"))  # fmt: skip
    path = tmp_path_factory.mktemp("mae") / "mae_finetuned.pth"
    torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 99}, path)
    return path, model


@torch.no_grad()
def test_a_fine_tuned_encoder(mae_classifier: tuple[Path, torch.nn.Module]) -> None:
    path, model = mae_classifier
    found = encode(source(path).encoder(), images())
    tokens_BND = model.forward_features(images())
    assert torch.equal(found["mean"], model.fc_norm(tokens_BND[:, 1:].mean(1)))
    assert torch.equal(found["cls"], model.fc_norm(tokens_BND[:, 0]))
    trained = source(path).trained_classifier(10)
    assert not trained.training
    assert torch.equal(trained(images()), model(images()))
    with pytest.raises(UserError, match=r"was fine-tuned for 10 classes, the data have 9"):
        source(path).trained_classifier(9)


@torch.no_grad()
def test_a_classifier_of_transformers(tmp_path: Path) -> None:
    file = foreign_files.huggingface_vit()
    found = source(saved(file, tmp_path)).trained_classifier(5)
    expected_BC = file.tokens(images())[:, 0] @ file.content["classifier.weight"].T + file.content["classifier.bias"]
    assert torch.allclose(found(images()), expected_BC, rtol=1e-4, atol=1e-4)


def test_an_encoder_without_a_head_has_none_to_measure(tmp_path: Path) -> None:
    for make in (foreign_files.mae_encoder, foreign_files.clip_open_clip, foreign_files.dino_whole):
        with pytest.raises(UserError, match=r"has no trained head, so there is nothing to evaluate"):
            source(saved(make(), tmp_path)).trained_classifier(16)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(
    "make",
    [
        foreign_files.beit,
        foreign_files.dinov2_registers_swiglu,
        foreign_files.clip_openai,
        foreign_files.mae_pretrained,
    ],
    ids=lambda make: make.__name__,
)
def test_fine_tuned_here_and_measured_again(make: Callable[[], File], pool: str, tmp_path: Path) -> None:
    """From our own checkpoint, which describes the model in plain data: the original file is deleted by then."""
    file = make()
    path = saved(file, tmp_path)
    tune = ("task=finetune", f"task.pool={pool}", "trainer.max_steps=1", "trainer.batch_size=16", "run_name=tuned")
    resized = ("task.source.interpolate=true", "data.image_size=16")
    before = source(path, *resized).encoder().state_dict()
    folder = go(tmp_path, *MODEL, *tune, *resized, f"checkpoint={path}")
    path.unlink()
    (kept,) = (folder / "checkpoints").glob("*.pt")
    state = torch.load(kept, weights_only=True)
    new = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    assert state["model"].keys() - before.keys() == new
    for name, value in state["model"].items():  # the first learning rate of the warm-up is 0
        assert name in new or torch.equal(value, before[name]), name
    alone = ("task=finetune", "task.eval_only=true", "run_name=alone", f"checkpoint={folder}", "data.image_size=16")
    assert status(go(tmp_path, *MODEL, *alone))["result"]["finetune"] == status(folder)["result"]["finetune"]
    with pytest.raises(UserError, match=r"is fine-tuned already"):
        source(folder, "data.image_size=16").classifier(10, "mean", 0.1)


def test_a_classifier_of_another_project_is_fine_tuned_anew(mae_classifier: tuple[Path, torch.nn.Module]) -> None:
    path, model = mae_classifier
    again = source(path).classifier(10, "mean", 0.1)
    assert torch.equal(again.fc_norm.weight, model.fc_norm.weight)
    assert torch.equal(again.blocks[2].mlp.fc2.weight, model.blocks[2].mlp.fc2.weight)
    assert again.head.weight.std() < 1e-4
    by_cls = source(path).classifier(7, "cls", 0.0)
    assert torch.equal(by_cls.norm.weight, torch.ones(32))


# Evaluations


def test_an_encoder_is_evaluated_by_the_command(tmp_path: Path) -> None:
    """Its output, its result in the journal, and the reuse of its features."""
    path = saved(foreign_files.dinov2_registers(), tmp_path)
    options = ("task=knn", *MODEL, f"checkpoint={path}", "task.ks=[10]", "task.source.interpolate=true")
    said = succeed(tmp_path, *options, "run_name=knn", "data.image_size=24")
    assert "DINOv2, width 32, 3 blocks, 2 heads, images of 32x32 in patches of 8; 49 weights loaded" in said
    assert "left out: mask token (1 weight)" in said
    assert "positions of 32x32 pixels are resampled to 24x24" in said
    result = status(tmp_path / "runs" / "knn")["result"]
    assert set(result) == {f"knn_10_{kind}{top}" for kind in ("cls", "mean") for top in ("", "_top5")}
    assert result["knn_10_mean"] > 30
    tags = [line["tags"] for line in journal(tmp_path / "runs" / "knn") if "tags" in line]
    assert {"pretrained.run": str(path)} in tags
    again = succeed(tmp_path, *options, "run_name=again", "data.image_size=24")
    assert "features were computed before" in again
    assert status(tmp_path / "runs" / "again")["result"] == result
    assert succeed(tmp_path, *options, launcher=(*RUN[:2], "semaim", "check")).endswith(" GPU-hours\n")


@pytest.mark.parametrize("task", ["linprobe", "fewshot", "features"])
def test_other_evaluations(task: str, tmp_path: Path) -> None:
    short = {
        "linprobe": ("trainer.max_steps=1", "task.features=[mean]"),
        "fewshot": ("task.shots=[1]", "task.repeats=1", "task.features_dir=null"),
        "features": (),
    }
    path = saved(foreign_files.beit(), tmp_path)
    folder = go(tmp_path, *MODEL, f"task={task}", *short[task], f"checkpoint={path}", f"run_name={task}")
    assert status(folder)["state"] == "finished"
