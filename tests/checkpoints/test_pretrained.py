"""Models from files: official checkpoints in every wrapping, our own files and run folders, and clear refusals."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

import semaim
from semaim.checkpoints import store
from semaim.checkpoints.official import encoder_sizes, two_stream_sizes
from semaim.checkpoints.pretrained import load_model, load_weights
from semaim.core.distributed import Processes
from semaim.errors import UserError
from semaim.targets import Features, Pixels
from semaim.training.state import TrainingState
from support.paths import GOLDEN_FILES

ORDERS = {
    "features_clip": "attention_center",
    "features_dino": "attention_center",
    "pixels_linear_l1_skip": "stochastic",
    "pixels_mlp_l2_norm": "attention_guided",
}


@pytest.fixture(params=GOLDEN_FILES, ids=lambda path: path.stem)
def golden(request):
    """A golden file: its name, its arrays as tensors, its configuration."""
    with np.load(request.param) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config_json"}
        return request.param.stem, tensors, json.loads(str(arrays["config_json"]))


def wrapped(weights, how):
    """An official checkpoint in one of its published forms."""
    if how == "plain":
        return weights
    if how == "parallel":
        weights = {f"module.{name}": value for name, value in weights.items()}
    rest = {"epoch": 3, "optimizer": {}, "scaler": None, "args": argparse.Namespace(model="aim_base", blr=2e-4)}
    return {"model": weights, **rest} if how == "mae" else {"state_dict": weights, "model": "aim_base", **rest}


def target_of(config, tensors):
    if "predict_feature" in config:
        return Features(channels=tensors["target_tokens"].shape[-1]), tensors["target_tokens"][:, 1:]
    kernel = config.get("gaussian_kernel_size", 0)
    pixels = Pixels(16, blur_kernel_size=kernel, norm_pix=config["norm_pix_loss"], loss=config["loss_type"].lower())
    return pixels, None


@pytest.mark.parametrize("how", ["official", "parallel", "mae", "plain"])
@torch.no_grad()
def test_official_checkpoints_predict_as_the_authors_code(tmp_path, golden, how, caplog):
    caplog.set_level("INFO")
    stem, tensors, config = golden
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("state/")}
    torch.save(wrapped(weights, how), tmp_path / "checkpoint.pth")
    model = semaim.load_model(tmp_path / "checkpoint.pth")
    taken = f": of SemAIM's or SAIM's code, {len(model.state_dict())} weights loaded, none missing"
    assert taken in caplog.text
    assert ("left out: the target's fixed blur kernel" in caplog.text) == ("gaussian_blur.weight" in weights)
    sizes = {key: config[key] for key in ("patch_size", "embed_dim", "depth", "num_heads", "query_depth", "mlp_ratio")}
    assert {key: model.architecture[key] for key in sizes} == sizes
    assert model.image_size == (224, 224)
    assert model.architecture["head"] == config["prediction_head_type"].lower()
    assert not any(module.training for module in model.modules())
    if how in ("official", "plain"):  # the other forms have the same content
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images_BCHW = ((tensors["images_uint8_nhwc"] / 255 - mean) / std).permute(0, 3, 1, 2)
        target, target_BLP = target_of(config, tensors)
        target_BLP = target(images_BCHW) if target_BLP is None else target_BLP
        order = ORDERS[stem]
        loss_BL = target.loss(model.predict(images_BCHW, tensors[f"{order}/order"].long()), target_BLP)
        theirs_BL = tensors[f"{order}/loss_per_patch"]
        assert ((loss_BL - theirs_BL).abs() / theirs_BL).max() <= 1e-5
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def weights_of_width(dim, depth=2, query_depth=1, head="mlp", side=4, patch=2, channels=12):
    """Shapes of an official checkpoint, without values."""

    def empty(*shape):
        return torch.empty(shape, device="meta")

    weights = {"patch_embed.proj.weight": empty(dim, 3, patch, patch), "pos_embed": empty(1, side * side + 1, dim)}
    weights |= {f"blocks.{i}.mlp.fc1.weight": empty(3 * dim, dim) for i in range(depth)}
    weights |= {f"query_blocks.{i}.attn.q.weight": empty(dim, dim) for i in range(query_depth)}
    if head == "linear":
        return weights | {"prediction_head.weight": empty(channels, dim)}
    return weights | {f"prediction_head.fc{i}.weight": empty(rows, dim) for i, rows in ((1, 3 * dim), (2, channels))}


@pytest.mark.parametrize(
    ("dim", "heads"),
    [(1024, 16), (1280, 16), (768, 12), (384, 6), (192, 3), (64, 1), (96, 6), (48, 3), (8, 1)],
)
def test_rule_for_the_number_of_heads(dim, heads):
    assert encoder_sizes(weights_of_width(dim), None, "checkpoint=x")["num_heads"] == heads
    assert encoder_sizes(weights_of_width(dim), 2, "checkpoint=x")["num_heads"] == 2  # unless given


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_sizes_are_inferred(head):
    weights = weights_of_width(48, depth=12, query_depth=3, head=head, side=6, patch=8, channels=192)
    assert encoder_sizes(weights, None, "checkpoint=x") | two_stream_sizes(weights, None) == {
        "out_channels": 192,
        "image_size": (48, 48),
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 12,
        "num_heads": 3,
        "query_depth": 3,
        "mlp_ratio": 3.0,
        "head": head,
    }


def test_an_official_checkpoint_of_a_grid_that_is_not_square():
    weights = weights_of_width(48) | {"pos_embed": torch.empty(1, 1 + 4 * 5, 48, device="meta")}
    with pytest.raises(UserError, match=r"checkpoint=x has positions for 20 patches: not square"):
        encoder_sizes(weights, None, "checkpoint=x")


def test_number_of_heads_changes_the_predictions(tmp_path, tiny_model, images):
    model = tiny_model(embed_dim=48, num_heads=6).eval()
    torch.save(model.state_dict(), tmp_path / "official.pth")
    order_BL = torch.arange(64).expand(2, -1)
    expected = model.predict(images(), order_BL)
    assert torch.equal(load_model(tmp_path / "official.pth", num_heads=6).predict(images(), order_BL), expected)
    assert not torch.allclose(load_model(tmp_path / "official.pth").predict(images(), order_BL), expected)  # 48 / 16


# Our own files


@pytest.fixture
def run_folder(tmp_path, tiny_model):
    """A run folder with two checkpoints in training format, and the state of the newer one."""
    for step in (1, 2):
        model = tiny_model(seed=step, image_size=(16, 24), head="linear", mlp_ratio=2.0)
        ema = ModelEmaV3(tiny_model(seed=10 + step, image_size=(16, 24), head="linear", mlp_ratio=2.0))
        optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
        state = TrainingState(model, model, ema, optimizer, scaler, step=step, loss=0.5)
        content = state.state_dict(Processes(0, 1, torch.device("cpu"))) | {"config": {"seed": 0}}
        store.save(tmp_path / "run" / "checkpoints", step, content)
    return tmp_path / "run", state


@torch.no_grad()
def test_our_run_folders_and_files(run_folder, images):
    folder, state = run_folder
    order_BL = torch.stack([torch.randperm(24), torch.randperm(24)])
    expected = state.model.eval().predict(images(height=16, width=24), order_BL)
    for path in (folder, str(folder), folder / "checkpoints" / "step_00000002.pt"):
        model = load_model(path)
        assert model.architecture == state.model.architecture
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.predict(images(height=16, width=24), order_BL), expected)
    older = load_model(folder / "checkpoints" / "step_00000001.pt")
    assert not torch.equal(older.cls_token, model.cls_token)


def test_the_moving_average(run_folder):
    folder, state = run_folder
    averaged, own = load_model(folder, ema=True).state_dict(), load_model(folder).state_dict()
    for name, value in state.ema.module.state_dict().items():
        assert torch.equal(averaged[name], value)
    assert all(torch.equal(own[name], value) for name, value in state.model.state_dict().items())
    assert not torch.equal(averaged["cls_token"], own["cls_token"])


def test_a_missing_moving_average(run_folder, tmp_path):
    folder, state = run_folder
    torch.save(state.model.state_dict(), tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"official\.pth is not from a run of semaim, so it holds no moving average"):
        load_model(tmp_path / "official.pth", ema=True)
    saved = store.newest(folder / "checkpoints") | {"ema": None}
    path = store.save(folder / "checkpoints", 3, saved)
    with pytest.raises(UserError, match=r"holds no moving average: its run had trainer\.ema=false"):
        load_model(path, ema=True)


def test_a_damaged_newest_checkpoint_is_skipped(run_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("semaim"), "propagate", True)
    folder, _ = run_folder
    (folder / "checkpoints" / "step_00000002.pt").write_bytes(b"torn")
    older = load_model(folder / "checkpoints" / "step_00000001.pt")
    assert torch.equal(load_model(folder).cls_token, older.cls_token)
    assert "step_00000002.pt is damaged" in caplog.text


# Refusals


def test_weights_of_another_architecture_are_named(tiny_model):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = tiny_model(seed=1, depth=6, out_channels=12).state_dict()
    for name in ("norm.bias", "cls_token", "blocks.0.norm1.bias", "blocks.0.norm1.weight"):
        del weights[name]
    with pytest.raises(UserError) as error:
        load_weights(model, weights, Path("there.pt"))
    message = str(error.value)
    assert message.startswith("checkpoint=there.pt is of another architecture than the model (")
    assert "4 missing: blocks.0.norm1.bias, blocks.0.norm1.weight, cls_token, ...;" in message
    unexpected = sorted(set(weights) - set(before))
    assert len(unexpected) == 24  # two blocks with twelve parameters each
    assert f"24 unexpected: {', '.join(unexpected[:3])}, ...;" in message
    assert "2 of another shape: prediction_head.fc2.bias is (12,) there and (48,) here" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # nothing is half-loaded


def test_weights_of_another_shape_alone_are_named(tiny_model):
    with pytest.raises(UserError, match=r"the model \(2 of another shape: prediction_head\.fc2\.bias is .*weight is"):
        load_weights(tiny_model(), tiny_model(out_channels=12).state_dict(), Path("x"))


def test_weights_that_fit_are_loaded(tiny_model):
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    load_weights(model, other.state_dict(), Path("x"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_checkpoints_of_other_methods_are_refused(tmp_path, tiny_model):
    weights = {f"module.{k}": v for k, v in tiny_model().state_dict().items() if not k.startswith("query_blocks")}
    weights |= {"module.mask_token": torch.zeros(1, 1, 32), "module.decoder_pred.weight": torch.zeros(48, 32)}
    torch.save({"model": weights, "epoch": 1}, tmp_path / "mae.pth")
    with pytest.raises(
        UserError, match=r"mae\.pth is not a pretraining checkpoint of semaim, SemAIM, SAIM or MAE: .*blocks"
    ):
        load_model(tmp_path / "mae.pth")
    torch.save({"epoch": 1, "lr": 0.1}, tmp_path / "numbers.pth")
    with pytest.raises(UserError, match=r"numbers\.pth is not a pretraining checkpoint .*\['epoch', 'lr'\]"):
        load_model(tmp_path / "numbers.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.norm1.bias", r"part\.pth .*1 missing: blocks\.1\.norm1\.bias"),
        ("blocks.0.mlp.fc1.weight", r"part\.pth is not a pretraining checkpoint"),  # sizes are inferred from these
        ("prediction_head.fc2.weight", r"part\.pth is not a pretraining checkpoint"),
        ("pos_embed", r"part\.pth is not a pretraining checkpoint"),
    ],
)
def test_an_official_checkpoint_that_lacks_weights_is_refused(tmp_path, tiny_model, name, message):
    weights = tiny_model().state_dict()
    del weights[name]
    torch.save({"state_dict": weights}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "part.pth")


def test_paths_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path} is a folder without checkpoints"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        load_model(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"architecture": {"depth": 2, "legs": 4}, "model": {}},
            "describes a model that this version of semaim does not support",
        ),
        ({"architecture": {}, "optimizer": {}}, "holds no model"),
        (
            {"architecture": None, "model": {}},
            "is of an evaluation, it holds no pretrained model that predicts patches",
        ),
        ({"architecture": {"classifier": {}}, "model": {}}, "is of an evaluation"),
    ],
)
def test_our_own_checkpoints_without_a_sound_model_are_refused(tmp_path, content, message):
    path = store.save(tmp_path, 1, content)
    with pytest.raises(UserError, match=rf"checkpoint={path} {message}"):
        load_model(path)


def test_a_model_of_ones_own_is_not_rebuilt(tmp_path):
    path = store.save(tmp_path, 1, {"architecture": {"model": "mine", "depth": 2}, "model": {}})
    with pytest.raises(UserError, match=rf"checkpoint={path} is of a model of your own \(mine\), whose encoder alone"):
        load_model(path)


def test_a_decoder_that_the_model_has_not(run_folder, tmp_path, tiny_model):
    with pytest.raises(UserError, match=r"a model without a decoder of its own width: leave out decoder_num_heads=2"):
        load_model(run_folder[0], decoder_num_heads=2)
    torch.save(tiny_model().state_dict(), tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"^decoder_num_heads is for checkpoints of MAE"):
        load_model(tmp_path / "official.pth", decoder_num_heads=2)
