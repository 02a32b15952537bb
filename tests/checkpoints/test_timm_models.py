"""timm models are evaluated from a folder, without network access."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

from semaim.errors import UserError
from semaim.models.vit import encode
from support.commands import status
from support.encoders import KNN, MODEL, TINY, images, source, timm_folder, weights
from support.in_process import go


def test_a_model_of_timm(tmp_path: Path) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    found = source(given).encoder()
    assert not any(module.training for module in found.modules())
    theirs = model.state_dict()
    assert found.state_dict().keys() == theirs.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(value, theirs[name]) for name, value in found.state_dict().items())
    with torch.no_grad():
        expected_BND = model.eval().forward_features(images())
        assert torch.equal(encode(found, images())["cls"], expected_BND[:, 0])


def test_a_model_of_timm_is_evaluated(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    result = status(go(tmp_path, *KNN, "run_name=knn", f"checkpoint='{given}'"))["result"]
    assert set(result) == {f"knn_10_{kind}{top}" for kind in ("cls", "mean") for top in ("", "_top5")}
    assert result["knn_10_mean"] > 20


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_model_of_timm_is_fine_tuned_and_measured_again(tmp_path: Path, pool: str) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=7)
    tune = (*MODEL, "task=finetune", f"task.pool={pool}", "run_name=tuned", f"checkpoint='{given}'")
    steps = ("trainer.batch_size=16", "trainer.max_steps=1")  # the first learning rate of the warm-up is 0
    folder = go(tmp_path, *tune, *steps)
    own = model.state_dict()
    new = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if pool == "mean" else set())
    for name, value in weights(folder).items():
        assert name in new or torch.equal(value, own[name]), name
    assert weights(folder)["head.weight"].shape == (10, 32)
    alone = ("task=finetune", "task.eval_only=true", "run_name=alone", f"checkpoint={folder}")
    assert status(go(tmp_path, *MODEL, *alone))["result"]["finetune"] == status(folder)["result"]["finetune"]


def test_a_model_without_a_class_token(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY, num_classes=7, class_token=False, global_pool="avg")
    found = source(given).encoder()
    assert set(encode(found, images())) == {"mean"}
    options = (*MODEL, "task=linprobe", "trainer.max_steps=1", "run_name=probe", f"checkpoint='{given}'")
    with pytest.raises(Exception, match=r"has no class token: set task\.features=\[mean\]") as raised:
        go(tmp_path, *options, "task.features=[cls,mean]")
    assert isinstance(raised.value.__cause__, UserError)
    assert set(status(go(tmp_path, *options, "task.features=[mean]"))["result"]) == {
        "linprobe_mean", "linprobe_mean_top5", "linprobe_mean_loss",
    }  # fmt: skip


def test_a_register_is_no_class_token(tmp_path: Path) -> None:
    sizes = {**TINY, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}
    given, _ = timm_folder(tmp_path / "vit", **sizes)
    assert set(encode(source(given).encoder(), images())) == {"mean"}


def test_a_model_of_timm_is_fine_tuned_for_as_many_classes_as_before(tmp_path: Path) -> None:
    given, model = timm_folder(tmp_path / "vit", **TINY, num_classes=10)
    found = source(given).classifier(10, "mean", 0.1)
    assert torch.equal(found.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert torch.equal(found.fc_norm.weight, torch.ones(32))
    assert found.head.weight.std() < 1e-4


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_model_of_timm_that_is_no_vision_transformer_is_refused(tmp_path: Path, name: str) -> None:
    given, _ = timm_folder(tmp_path / "other", name)
    with pytest.raises(UserError, match=rf"checkpoint={given} is not a vision transformer"):
        source(given).encoder()


def test_a_model_that_timm_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown name, no network, a missing folder: one message."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"architecture": "vit_tiny_')
    for given in (
        "timm:vit_of_nobody",
        "timm:",
        "timm:vit_tiny_patch16_224",
        f"timm:local-dir:{tmp_path / 'nope'}",
        f"timm:local-dir:{tmp_path / 'half'}",
    ):
        with pytest.raises(
            UserError, match=rf"checkpoint={given}: timm cannot load this model \(.+\)\. Is it one"
        ) as e:
            source(given).encoder()
        assert "\n" not in str(e.value)


def test_a_model_of_timm_without_weights(tmp_path: Path) -> None:
    given, _ = timm_folder(tmp_path / "vit", **TINY)
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"timm cannot load this model \(.+\)"):
        source(given).encoder()
