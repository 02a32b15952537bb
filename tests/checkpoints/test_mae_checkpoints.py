"""MAE's pretraining checkpoints: predictions of transformers' model, a start of other trainings, pictures, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEForPreTraining

import semaim
from semaim.errors import UserError
from semaim.models.mae import MAE
from semaim.targets import Pixels
from semaim.visualization.trained_models import load
from support import mae_files
from support.commands import SMALL
from support.encoders import source, weights
from support.in_process import go, run_here
from support.mistakes import assert_one_message

STILL = ("optimizer.base_lr=1e-30", "optimizer.weight_decay=0.0", "trainer.warmup_epochs=0", "trainer.max_steps=1")
SIZED = [option for option in SMALL if not option.startswith("model.")]


@pytest.fixture(scope="module")
def theirs() -> ViTMAEForPreTraining:
    return mae_files.theirs()


@pytest.fixture(scope="module")
def file(theirs: ViTMAEForPreTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the authors' layout."""
    return mae_files.saved(theirs, tmp_path_factory.mktemp("mae"), "authors")


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("layout", mae_files.LAYOUTS)
@torch.no_grad()
def test_every_layout_predicts_as_transformers(
    theirs: ViTMAEForPreTraining, images: Callable[..., Tensor], tmp_path: Path, layout: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    path = mae_files.saved(theirs, tmp_path, layout)
    model = semaim.load_model(path)
    assert isinstance(model, MAE)
    assert model.architecture == {
        "model": "mae", "out_channels": 48, "image_size": (32, 32), "patch_size": 4, "embed_dim": 64, "depth": 3,
        "num_heads": 1, "decoder_dim": 32, "decoder_depth": 2, "decoder_num_heads": 2, "visible": 0.25,
        "mlp_ratio": 4.0,
    }  # fmt: skip
    assert "of MAE's code, 74 weights loaded, none missing" in caplog.text
    assert "assuming 2 attention heads for the decoder's width 32" in caplog.text
    assert not any(module.training for module in model.modules())

    images_BCHW, noise_BL = images(3), torch.rand(3, 64, generator=torch.Generator().manual_seed(1))
    expected = theirs(images_BCHW, noise=noise_BL)
    assert_close(model.predict(images_BCHW, noise_BL.argsort(1)), expected.logits)
    prediction, target = model(images_BCHW, noise_BL.argsort(1)), Pixels(4, blur_kernel_size=0)
    loss = prediction.mean(target.loss(prediction.predictions_BLP, target(images_BCHW))).mean()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)

    theirs.vit.config.mask_ratio = 0.0  # with all patches visible, in their places
    in_place_BL = torch.linspace(0, 1, 64).expand(3, -1)
    try:
        tokens_BND = theirs.vit(images_BCHW, noise=in_place_BL).last_hidden_state
    finally:
        theirs.vit.config.mask_ratio = 0.75
    assert_close(model.encode(images_BCHW), tokens_BND)
    assert_close(source(path).encoder().forward_features(images_BCHW), tokens_BND)


@torch.no_grad()
def test_heads_that_are_not_the_usual_ones(tmp_path: Path, images: Callable[..., Tensor]) -> None:
    theirs = mae_files.theirs(heads=4, decoder_heads=8)
    path = mae_files.saved(theirs, tmp_path, "authors")
    images_BCHW, noise_BL = images(2), torch.rand(2, 64, generator=torch.Generator().manual_seed(1))
    expected, order_BL = theirs(images_BCHW, noise=noise_BL).logits, noise_BL.argsort(1)
    assert_close(semaim.load_model(path, num_heads=4, decoder_num_heads=8).predict(images_BCHW, order_BL), expected)
    assert not torch.allclose(semaim.load_model(path, num_heads=4).predict(images_BCHW, order_BL), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"decoder_num_heads": 5}, r"^decoder_num_heads=5 does not divide the width 32 of checkpoint=.*mae\.pth$"),
        ({"decoder_num_heads": 0}, r"^decoder_num_heads=0 does not divide the width 32"),
        ({"num_heads": 5}, r"^num_heads=5 does not divide the width 64 of checkpoint=.*mae\.pth$"),
    ],
)
def test_heads_that_do_not_fit(file: Path, heads: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        semaim.load_model(file, **heads)


# A start


def test_a_training_starts_from_it(file: Path, theirs: ViTMAEForPreTraining, tmp_path: Path, capfd) -> None:
    folder = go(tmp_path, *SIZED, *mae_files.MODEL, *STILL, f"checkpoint={file}", "run_name=same")
    expected, found = mae_files.authors_weights(theirs), weights(folder)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-20) for name, value in expected.items())
    said = capfd.readouterr().err
    assert "mae.pth: the weights are taken, the optimizer, the schedule and the step are not" in said
    assert "new, since" not in said


def test_another_target_and_image_size_start_from_all_other_weights(
    file: Path, theirs: ViTMAEForPreTraining, tmp_path: Path, capfd
) -> None:
    options = ("target=online", "data.image_size=48", "permutation=raster", f"checkpoint={file}", "run_name=other")
    found, expected = (
        weights(go(tmp_path, *SIZED, *mae_files.MODEL, *STILL, *options)),
        mae_files.authors_weights(theirs),
    )
    new = {"decoder_pred.weight", "decoder_pred.bias", "pos_embed", "decoder_pos_embed"}
    assert {name for name in expected if found[name].shape != expected[name].shape} == new
    assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-20) for name in expected.keys() - new)
    said = capfd.readouterr().err
    assert "new, since the target is another one: decoder_pred.bias, decoder_pred.weight\n" in said
    assert "new, since the image size is another one: decoder_pos_embed, pos_embed\n" in said


# Pictures


def test_pictures_are_of_its_own_order_and_target(file: Path, tmp_path: Path, images: Callable[..., Tensor]) -> None:
    """Random orders, and pixels without blur: those of a semaim run are known, here they are MAE's."""
    folder = go(tmp_path, "task=visualize", "tracking=none", f"checkpoint={file}", "task.formats=[svg]", "run_name=x")
    assert {each.name for each in (folder / "pictures").iterdir()} == {"images.csv", "orders.svg", "reconstruction.svg"}
    shown = load(str(file), "mae", tracking=None)  # type: ignore[arg-type]  # not asked
    assert shown.order == "stochastic"
    assert torch.equal(shown.target(images()), Pixels(4, blur_kernel_size=0)(images()))


# Refusals


def encoder_only(theirs: ViTMAEForPreTraining) -> dict[str, Tensor]:
    """As mae_pretrain_vit_base.pth, the authors' file for fine-tuning."""
    every = mae_files.authors_weights(theirs)
    return {name: value for name, value in every.items() if not name.startswith(("decoder_", "mask_token"))}


@pytest.fixture
def without_decoder(theirs: ViTMAEForPreTraining, tmp_path: Path) -> Path:
    torch.save({"model": encoder_only(theirs)}, tmp_path / "mae_pretrain_vit_base.pth")
    return tmp_path / "mae_pretrain_vit_base.pth"


ENCODER_ONLY = (
    "mae_pretrain_vit_base.pth holds an encoder without what predicts patches (MAE's files for fine-tuning, and "
    "fine-tuned ones, have no decoder): give the pretraining checkpoint with its decoder; an encoder alone is for "
    "evaluations, such as task=knn"
)


@pytest.mark.parametrize("options", [("task=visualize",), mae_files.MODEL, ("model=aim_tiny",)])
def test_an_encoder_alone_predicts_nothing(
    without_decoder: Path, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(tmp_path, "tracking=none", f"checkpoint={without_decoder}", *options) == 2
    assert_one_message(capsys, (f"error: checkpoint={without_decoder.parent}/{ENCODER_ONLY}",))
    assert not (tmp_path / "runs").exists()


@torch.no_grad()
def test_an_encoder_alone_is_evaluated(without_decoder: Path, file: Path, images: Callable[..., Tensor]) -> None:
    tokens_BND = source(without_decoder).encoder().forward_features(images())
    assert torch.equal(tokens_BND, semaim.load_model(file).encode(images()))


@pytest.mark.parametrize("missing", ["mask_token", "decoder_embed.weight", "decoder_pred.weight"])
def test_a_decoder_that_is_incomplete(theirs: ViTMAEForPreTraining, tmp_path: Path, missing: str) -> None:
    every = mae_files.authors_weights(theirs)
    del every[missing]
    torch.save(mae_files.checkpoint(every), tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth is not a pretraining checkpoint of semaim, SemAIM, SAIM or MAE"):
        semaim.load_model(tmp_path / "part.pth")


def test_a_decoder_that_lacks_a_weight(theirs: ViTMAEForPreTraining, tmp_path: Path) -> None:
    every = mae_files.authors_weights(theirs)
    del every["decoder_norm.bias"]
    torch.save(mae_files.checkpoint(every), tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth is of another architecture .*1 missing: decoder_norm\.bias"):
        semaim.load_model(tmp_path / "part.pth")


@pytest.mark.parametrize("model", ["aim", "simmim"])
def test_a_model_of_another_kind_does_not_start_from_it(
    file: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(tmp_path, "tracking=none", f"model={model}_tiny", f"checkpoint={file}") == 2
    words = (f"checkpoint={file} holds another model (model=mae_...) than this command trains (model={model}_...)",
             "choose model=mae_...")  # fmt: skip
    assert_one_message(capsys, words)
    assert not (tmp_path / "runs").exists()
