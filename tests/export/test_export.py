"""Exported encoders compute elsewhere what they compute here, and come back as they were."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hydra.utils import instantiate
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semaim.checkpoints import store
from semaim.checkpoints.encoder_source import EncoderSource, fingerprint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.checkpoints.two_stream import read_checkpoint
from semaim.data.transforms import evaluation
from semaim.export import export, formats
from semaim.export.mlflow_model import tracked_run
from semaim.export.model_card import run_folder_of
from semaim.tracking.store import SQLITE
from support import foreign_files
from support.commands import PIPED, status, succeed
from support.in_process import composed, go
from support.paths import GOLDEN_PIXELS

SMALL = ("tracking=none", "data.patch_size=8", "model.embed_dim=32", "model.num_heads=2", "trainer.batch_size=16")
TWO_STEPS = (*SMALL, "task.online_knn=null", "trainer.max_steps=2", "trainer.warmup_epochs=0")


def source(given: Path | str, *overrides: str) -> EncoderSource:
    """The encoder of a command line."""
    cfg = composed(*SMALL[:-1], "task=knn", f"checkpoint='{given}'", "run_name=x", *overrides)
    return instantiate(cfg.task.source, _convert_="all")


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def photograph(width: int = 50, height: int = 41) -> Image.Image:
    """A smooth picture with some noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 50, (height, width, 3))
    return Image.fromarray(ramp.astype(np.uint8))


def stored(path: Path, ema: bool = False) -> VisionTransformer:
    """The encoder or classifier in a checkpoint, as it is used here."""
    found = StoredEncoder(path, read_checkpoint(path), ema, None, None)
    return (found.trained_classifier() if found.num_classes else found.encoder()).eval()


def exported(folder: Path, given: Path, *options: str) -> Path:
    """Export by the command's own function."""
    output = folder / "exported"
    assert export.main([f"checkpoint={given}", f"output={output}", *options]) == 0
    return output


def by_timm(folder: Path) -> VisionTransformer:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a pretraining on images that are not square, with a moving average."""
    average = ("trainer.ema=true", "trainer.ema_decay=[0.5,0.5]")
    sizes = ("data.image_size=[32,24]", "data.eval_transform.crop_ratio=0.8", "seed=3")
    return go(tmp_path_factory.mktemp("pretrained"), *TWO_STEPS, *average, *sizes, "run_name=begun")


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("square"), *TWO_STEPS, "run_name=square")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, square: Path) -> dict[str, Path]:
    """Run folders of fine-tunings, by what the head reads."""
    place = tmp_path_factory.mktemp("tuned")
    options = (*SMALL, "task=finetune", "trainer.max_steps=2", "trainer.warmup_epochs=0", f"checkpoint={square}")
    return {pool: go(place, *options, f"task.pool={pool}", f"run_name={pool}") for pool in ("cls", "mean")}


# timm


@torch.no_grad()
def test_timm_computes_the_same_tokens(pretrained: Path, tmp_path: Path) -> None:
    for options, ema in (((), False), (("ema=true",), True)):
        folder = exported(tmp_path / str(ema), pretrained, *options)
        theirs, ours = by_timm(folder), stored(pretrained, ema)
        assert type(theirs) is VisionTransformer
        assert theirs.patch_embed.img_size == (32, 24)
        pictures = images(2, 32, 24)
        assert torch.equal(theirs.forward_features(pictures), ours.forward_features(pictures))
        assert torch.equal(theirs(pictures), ours.forward_features(pictures)[:, 0])
    assert not torch.equal(ours.blocks[0].mlp.fc1.weight, stored(pretrained).blocks[0].mlp.fc1.weight)


def test_timm_prepares_images_the_same_way(square: Path, tmp_path: Path) -> None:
    settings = timm.data.resolve_model_data_config(by_timm(exported(tmp_path, square)))
    settings |= {"mean": list(settings["mean"]), "std": list(settings["std"])}
    assert settings == {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "mean": [0.3, 0.3, 0.3],
        "std": [0.36, 0.36, 0.36],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    theirs = timm.data.create_transform(**settings)(photograph())
    ours = evaluation(32, crop_ratio=1.0, mean=[0.3] * 3, std=[0.36] * 3)(photograph())
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.875, 0.9, 1.0, 0.73, 0.99])
@pytest.mark.parametrize("side", [24, 32, 224, 384])
def test_the_side_before_the_crop_is_the_same(side: int, ratio: float, square: Path) -> None:
    """timm rounds it down, where we round to the nearest."""
    found = StoredEncoder(square, read_checkpoint(square), False, None, None)
    found.state["config"]["data"]["eval_transform"]["crop_ratio"] = ratio
    model = formats.Model.of(found)
    model.vit.patch_embed.img_size = (side, side)
    card = formats.timm_content(model).settings["config.json"]["pretrained_cfg"]
    assert math.floor(side / card["crop_pct"]) == round(side / ratio)
    if math.floor(side / ratio) == round(side / ratio):
        assert card["crop_pct"] == ratio


def test_there_and_back_again(pretrained: Path, tmp_path: Path) -> None:
    """Bit for bit, from the folder or its file: the same encoder to whoever asks."""
    before = source(pretrained, "data.image_size=[32,24]")
    folder = exported(tmp_path, pretrained)
    for given in (folder, folder / "model.safetensors"):
        after = source(given, "data.image_size=[32,24]")
        state = before.encoder().state_dict()
        assert after.encoder().state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in after.encoder().state_dict().items())
        assert fingerprint(after.encoder()) == fingerprint(before.encoder())
        origin = before.origin(0, {})
        assert after.origin(0, {}).tags == origin.tags
        assert after.origin(0, {}).metrics == origin.metrics
        assert after.origin(0, {}).step == 2
    again = exported(tmp_path / "again", folder)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_evaluation_of_an_exported_folder(square: Path, tmp_path: Path, capsys) -> None:
    """The same accuracies, from the same features."""
    said = succeed(
        tmp_path, f"checkpoint={square}", "output=it", launcher=(sys.executable, "-m", "semaim.export.export")
    )
    assert "evaluate it: python -m semaim.run task=knn checkpoint=it data=..." in said
    knn = (*SMALL[:-1], "task=knn", "task.ks=[10]")
    before = go(tmp_path / "runs", *knn, f"checkpoint={square}", "run_name=before")
    assert "features were computed before" not in capsys.readouterr().err
    after = go(tmp_path / "runs", *knn, f"checkpoint={tmp_path / 'it'}", "run_name=after")
    assert "features were computed before" in capsys.readouterr().err
    results = [status(folder)["result"] for folder in (before, after)]
    assert results[0] == results[1]
    assert results[0]["knn_10_mean"] > 30


def test_a_finished_evaluation_hears_of_another_export(square: Path, pretrained: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square)
    before = store.fingerprint(folder)
    exported(tmp_path, pretrained, "overwrite=true")
    assert store.fingerprint(folder) not in (before, None)


@torch.no_grad()
def test_an_official_checkpoint(tmp_path: Path) -> None:
    """The authors' own tokens, from timm."""
    with np.load(GOLDEN_PIXELS) as arrays:
        theirs = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config_json"}
    weights = {f"module.{name[6:]}": value for name, value in theirs.items() if name.startswith("state/")}
    torch.save({"state_dict": weights}, tmp_path / "official.pth")
    vit = by_timm(exported(tmp_path, tmp_path / "official.pth"))
    assert list(vit.pretrained_cfg["mean"]) == [0.485, 0.456, 0.406]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images_BCHW = ((theirs["images_uint8_nhwc"] / 255 - mean) / std).permute(0, 3, 1, 2)
    expected_BND = theirs["encoder_tokens"]
    assert (vit.forward_features(images_BCHW) - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


@pytest.mark.parametrize(
    "make",
    [foreign_files.beit, foreign_files.dinov2_registers_swiglu, foreign_files.clip_openai, foreign_files.timm_parts,
     foreign_files.timm_no_class_token],
    ids=lambda make: make.__name__,
)  # fmt: skip
@torch.no_grad()
def test_encoders_of_other_projects(make: Any, tmp_path: Path) -> None:
    """Out again for timm, and back: bit for bit."""
    torch.save(make().content, tmp_path / "theirs.pth")
    folder = exported(tmp_path, tmp_path / "theirs.pth")
    before, theirs = source(tmp_path / "theirs.pth").encoder(), by_timm(folder)
    assert torch.equal(theirs.forward_features(images()), before.forward_features(images()))
    after = source(folder).encoder()
    assert torch.equal(after.forward_features(images()), before.forward_features(images()))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@torch.no_grad()
def test_a_fine_tuned_classifier_keeps_its_head(pool: str, tuned: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(tmp_path, tuned[pool])
    ours, theirs = stored(tuned[pool]), by_timm(folder)
    assert theirs.num_classes == 10
    assert torch.equal(theirs(images()), ours(images()))
    assert torch.equal(source(folder).trained_classifier(10)(images()), ours(images()))
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    assert torch.equal(bare.forward_features(images()), ours.forward_features(images()))


@torch.no_grad()
def test_a_fine_tuned_run_of_another_projects_encoder(tmp_path: Path) -> None:
    with torch.enable_grad():
        torch.save(foreign_files.beit().content, tmp_path / "beit.pth")
        options = (*SMALL, "task=finetune", "trainer.max_steps=1", "run_name=tuned", "task.pool=mean")
        run = go(tmp_path, *options, f"checkpoint={tmp_path / 'beit.pth'}")
    theirs = by_timm(exported(tmp_path, run))
    assert type(theirs).__name__ == "Beit"
    assert torch.equal(theirs(images()), stored(run)(images()))


# transformers


@torch.no_grad()
def test_transformers_computes_the_same_tokens(pretrained: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, pretrained, "format=huggingface")
    pictures = images(2, 32, 24)
    expected_BND = stored(pretrained).forward_features(pictures)
    for load in (transformers.ViTModel, transformers.AutoModel):
        model, said = load.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
        assert type(model) is transformers.ViTModel
        assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert all(module.eps == 1e-6 for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
        found_BND = model.eval()(pictures).last_hidden_state
        assert (found_BND - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


@torch.no_grad()
def test_transformers_classifies_the_same(tuned: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(tmp_path, tuned["cls"], "format=huggingface")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    expected_BC = stored(tuned["cls"])(images())
    assert (model(images()).logits - expected_BC).abs().max() <= 1e-5 * expected_BC.abs().max()
    assert torch.equal(source(folder).trained_classifier(10)(images()), expected_BC)


def test_transformers_prepares_images(square: Path, tmp_path: Path) -> None:
    """Exactly where nothing is resized; elsewhere resizing rounds a little otherwise."""
    processor = transformers.AutoImageProcessor.from_pretrained(exported(tmp_path, square, "format=huggingface"))
    ours = evaluation(32, crop_ratio=1.0, mean=[0.3] * 3, std=[0.36] * 3)
    for picture, tolerance in ((photograph(40, 32), 1e-6), (photograph(90, 64), 3 / 255 / 0.36)):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        assert theirs.shape == (3, 32, 32)
        assert torch.allclose(theirs, ours(picture), rtol=0, atol=tolerance)


def test_there_and_back_again_by_transformers(square: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square, "format=huggingface")
    assert fingerprint(source(folder).encoder()) == fingerprint(source(square).encoder())
    assert source(folder).origin(0, {}).tags == source(square).origin(0, {}).tags
    assert StoredEncoder(folder, read_checkpoint(folder), False, None, None).normalisation == ((0.3,) * 3, (0.36,) * 3)


def test_what_transformers_does_not_have_is_refused(tuned: dict[str, Path], tmp_path: Path, capsys) -> None:
    torch.save(foreign_files.dinov2().content, tmp_path / "dinov2.pth")
    for given, message in (
        (
            tuned["mean"],
            "this encoder norms the mean of the patches: export it with format=timm",
        ),
        (
            tmp_path / "dinov2.pth",
            "format=huggingface has no vit_base_patch14_dinov2, only the plain",
        ),
    ):
        output = tmp_path / "out"
        assert export.main([f"checkpoint={given}", "format=huggingface", f"output={output}"]) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()


# What is written and said


@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_what_is_printed_can_be_typed(form: str, tuned: dict[str, Path], square: Path, tmp_path: Path, capsys) -> None:
    for run in (square, tuned["cls"]):
        exported(tmp_path / run.name, run, f"format={form}")
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


def test_where_it_goes_by_itself(square: Path, tmp_path: Path, capsys) -> None:
    assert export.main([f"checkpoint={square}", "format=huggingface"]) == 0
    assert (square / "huggingface" / "model.safetensors").is_file()
    file = tmp_path / "theirs.pth"
    torch.save(foreign_files.timm_plain().content, file)
    assert export.main([f"checkpoint={file}"]) == 0
    assert (tmp_path / "theirs-timm" / "config.json").is_file()
    assert "note: how its images were normalised is not known" in capsys.readouterr().out
    assert "(assumed: the checkpoint does not say)" in (tmp_path / "theirs-timm" / "README.md").read_text()


def test_the_model_card_says_how_it_was_trained(pretrained: Path, tuned: dict[str, Path], tmp_path: Path) -> None:
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
            "the shorter side has 40 pixels (bicubic), the centre of 32x24",
            "mean 0.3, 0.3, 0.3 and deviation 0.36, 0.36, 0.36.",
        ):
            assert row in card, row
    card = (exported(tmp_path / "tuned", tuned["mean"]) / "README.md").read_text()
    assert "(classifier of 10 classes)" in card
    assert "| run | square |" in card
    assert "| result: finetune | " in card


def test_nothing_is_replaced_unasked(square: Path, pretrained: Path, tmp_path: Path, capsys) -> None:
    folder = exported(tmp_path, square)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    words = [f"checkpoint={pretrained}", f"output={folder}"]
    assert export.main(words) == 2
    assert f"output={folder} exists: choose another, or replace it with overwrite=true" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "thesis.txt").write_text("five years")
    assert export.main([*words, "overwrite=true"]) == 2
    assert "holds thesis.txt, which no export wrote, so it is not replaced" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "five years"
    (folder / "thesis.txt").unlink()
    assert export.main([*words, "overwrite=true"]) == 0
    assert (folder / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert export.main([*words, "overwrite=true", "format=huggingface"]) == 0  # the other format may take its place
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]
    (tmp_path / "file").write_text("")
    assert export.main([words[0], f"output={tmp_path / 'file'}", "overwrite=true"]) == 2


def test_a_folder_is_there_complete_or_not_at_all(square: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = exported(tmp_path, square)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(export, "write_text", full)
    assert export.main([f"checkpoint={square}", f"output={folder}", "overwrite=true"]) == 2
    assert "cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert export.main([f"checkpoint={square}", f"output={tmp_path / 'new'}"]) == 2
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]


def test_others_may_read_it(square: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {(folder / "README.md").stat().st_mode & 0o777}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=x", "fromat=timm"], r"fromat=timm: there is no such option; there are: checkpoint=, format="),
        (["checkpoint=x", "timm"], r"timm: there is no such option"),
        (["checkpoint=x", "format=onnx"], r"format=onnx is unknown: choose timm or huggingface"),
        (["checkpoint=x", "ema=perhaps"], r"ema=perhaps: "),
        (["checkpoint=x", "num_heads=two"], r"num_heads=two: "),
        (["format=timm"], r"which encoder\? checkpoint=runs/<name>"),
        (["checkpoint=null"], r"checkpoint=null: "),
        (["checkpoint=/nowhere/x"], r"checkpoint=/nowhere/x does not exist"),
    ],
)
def test_mistakes_in_the_options(words: list[str], message: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(rf"error: {message}", line), line
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "semaim.export.export", "checkpoint=no"], cwd=tmp_path, **PIPED, check=False
    )
    assert (done.returncode, done.stdout) == (2, "error: checkpoint=no does not exist\n")


def test_what_evaluates_nothing_is_not_exported(square: Path, tmp_path: Path, capsys) -> None:
    probe = go(tmp_path, *SMALL, "task=linprobe", "trainer.max_steps=1", "run_name=probe", f"checkpoint={square}")
    assert export.main([f"checkpoint={probe}"]) == 2
    assert "is of an evaluation, it holds no pretrained two-stream model" in capsys.readouterr().err
    assert export.main([f"checkpoint={square}", "ema=true"]) == 2
    assert "holds no moving average" in capsys.readouterr().err


# MLflow

LOAD = """
import sys
sys.modules["semaim"] = None  # as where it is not installed
import json, torch
{snippet}
images = torch.load({images!r})
with torch.no_grad():
    features = model.eval()(images)
assert torch.equal(features, mlflow.pytorch.load_model({run!r}).eval()(images))
found = mlflow.pyfunc.load_model({model!r}).predict(images.numpy())
info = mlflow.models.get_model_info({model!r})
print(json.dumps({{"type": type(model).__name__, "features": features.tolist(), "predicted": found.tolist(),
    "inputs": str(info.signature.inputs), "outputs": str(info.signature.outputs), "run": info.run_id,
    "example": list(mlflow.models.Model.load({model!r}).load_input_example().shape)}}))
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a pretraining that a real store knows."""
    place = tmp_path_factory.mktemp("tracked")
    tracking = ("tracking=mlflow", f"tracking.uri={SQLITE}{place}/mlflow.db", "tracking.system_metrics_seconds=0")
    return go(place, *TWO_STEPS[1:], *tracking, "run_name=tracked")


def test_a_logged_model_loads_without_semaim(tracked: Path, tmp_path: Path) -> None:
    """By the printed lines and by the run's own address; the run stays as it was."""
    from mlflow import MlflowClient

    noted = json.loads((tracked / "mlflow.json").read_text())
    client = MlflowClient(noted["uri"])
    before = client.get_run(noted["run_id"]).info
    said = succeed(tmp_path, f"checkpoint={tracked}", "output=out", "mlflow=true",
                   launcher=(sys.executable, "-m", "semaim.export.export"))  # fmt: skip
    model_uri = said.split("logged to MLflow: ")[1].split()[0]
    snippet = "\n".join(line[4:] for line in said.split("logged to MLflow")[1].splitlines() if line.startswith("    "))
    torch.save(images(3), tmp_path / "images.pt")
    code = LOAD.format(snippet=snippet, images=str(tmp_path / "images.pt"), model=model_uri,
                       run=f"runs:/{noted['run_id']}/encoder")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]))
    with torch.no_grad():
        expected_BD = stored(tracked).forward_features(images(3))[:, 0]
    assert found.type == "VisionTransformer"
    assert torch.equal(torch.tensor(found.features), expected_BD)
    assert torch.equal(torch.tensor(found.predicted), expected_BD)
    assert "(-1, 3, 32, 32)" in found.inputs
    assert "(-1, 32)" in found.outputs
    assert found.example == [1, 3, 32, 32]
    assert found.run == noted["run_id"]
    after = client.get_run(noted["run_id"]).info
    assert (after.status, after.start_time, after.end_time) == (before.status, before.start_time, before.end_time)
    (logged,) = [model for model in client.search_logged_models([before.experiment_id]) if model.model_uri == model_uri]
    assert logged.source_run_id == noted["run_id"]
    file = sorted((tracked / "checkpoints").glob("*.pt"))[-1]
    assert tracked_run(run_folder_of(file), file).state["run_id"] == noted["run_id"], "a file's run is the folder's"


def test_a_run_that_was_not_tracked_has_no_model(square: Path, tmp_path: Path, capsys) -> None:
    torch.save(foreign_files.timm_plain().content, tmp_path / "theirs.pth")
    for given in (square, tmp_path / "theirs.pth"):
        assert export.main([f"checkpoint={given}", f"output={tmp_path / 'out'}", "mlflow=true"]) == 2
        assert f"mlflow=true: checkpoint={given} is not of a run that MLflow tracked" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_transformers_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None; import semaim.export.export, semaim.checkpoints.encoder_source"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
