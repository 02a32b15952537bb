"""task=visualize: one or several checkpoints, one or many images, any target."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.visualization.trained_models import short_names
from support import teaching  # noqa: F401 - registers the small teachers
from support.commands import status
from support.in_process import go, run, run_here
from support.mistakes import assert_one_message

LITTLE = ("trainer.max_steps=2", "trainer.warmup_epochs=0")
DRAW = ("task=visualize", "tracking=none")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two orders."""
    home = tmp_path_factory.mktemp("visualize")
    for order in ("raster", "attention_center"):
        run(home, *LITTLE, f"permutation={order}", f"run_name=run_{order}_pixels")
    return home


def draw(home: Path, name: str, *options: str) -> tuple[dict[str, Path], dict[str, float]]:
    """The files that a command wrote, by name, and its result."""
    folder = go(home, *DRAW, f"run_name={name}", *options)
    return {file.name: file for file in (folder / "pictures").iterdir()}, status(folder)["result"]


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_one_checkpoint_draws_orders_predictions_and_films(home: Path) -> None:
    files, result = draw(home, "one", f"checkpoint={home}/run_raster_pixels", "task.count=3")
    assert sorted(files) == [
        *("film.gif", "film.png", "film.svg"),
        *("orders.png", "orders.svg", "reconstruction.png", "reconstruction.svg"),
    ]
    assert size(files["orders.png"])[0] == pytest.approx((7 * 1.5 + 0.2) * 150, abs=2), "image, two maps, four orders"
    words = " ".join(text for text in ElementTree.parse(files["orders.svg"]).getroot().itertext())
    assert "path" in files["orders.svg"].read_text()
    assert "matplotlib" in words
    with Image.open(files["film.gif"]) as film:
        assert film.n_frames == 65, "from nothing to all 64 patches"
        first = np.asarray(film.convert("RGB"))
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 2, "blank, and the frame"
    assert result["images"] == 3
    assert 0 < result["map_entropy"] <= 1
    orders = ("raster", "stochastic", "attention", "attention_center")
    about_orders = {f"object_in_first_quarter/{order}" for order in orders}
    assert set(result) == {"images", "map_entropy", "map_peak_from_centre", "object_in_image", *about_orders}


def test_checkpoints_side_by_side_show_their_own_order(home: Path) -> None:
    both = f"checkpoint=[{home}/run_raster_pixels,{home}/run_attention_center_pixels]"
    files, result = draw(home, "both", both, "task.count=1", "task.formats=[png]")
    assert {"reconstruction_1.png", "reconstruction_2.png", "film_1.gif", "film_2.gif"} < set(files)
    assert size(files["orders.png"])[0] == pytest.approx((7 * 1.5 + 0.2) * 150, abs=2), "an image, and three of each"
    assert {name.split("/")[0] for name in result if "/" in name} == {"raster", "attention_center"}
    assert short_names(["runs/run_raster_pixels", "runs/run_attention_center_pixels"]) == [
        "raster",
        "attention_center",
    ]
    assert short_names(["runs/a", "runs/a"]) == ["a", "a"]


def test_many_images_fill_pages(home: Path) -> None:
    one_order = ("task.orders=[zigzag]", "task.formats=[png]", "task.palette=viridis")
    files, result = draw(home, "many", f"checkpoint={home}/run_raster_pixels", "task.count=20", *one_order)
    assert {"orders_page1.png", "orders_page2.png"} < set(files)
    heights = [size(files[f"orders_page{page}.png"])[1] for page in (1, 2)]
    assert heights[0] > 2 * heights[1], "sixteen images, and four"
    assert result["images"] == 20


def test_own_images_one_of_them_unreadable(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(generator.integers(0, 255, (50, 40, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "c.png").write_text("no image")
    other_sizes = ("data.image_size=224", "data.patch_size=16")  # the size stored in the checkpoint
    options = (f"images={folder}", "task.orders=[raster]", "task.formats=[svg]", *other_sizes)
    files, _ = draw(home, "own", f"checkpoint={home}/run_raster_pixels", *options)
    assert sorted(files) == ["film.gif", "film.svg", "orders.svg", "reconstruction.svg"]
    (home / "broken").mkdir()
    (home / "broken" / "c.png").write_text("no image")
    broken = ("run_name=broken", f"checkpoint={home}/run_raster_pixels", f"images={home}/broken")
    assert run_here(home, *DRAW, *broken) == 2
    said = capsys.readouterr().err
    assert f"error: none of these images can be read: '{home}/broken/c.png'" in said


@pytest.mark.parametrize("target", ["online", "ema", "dino"])
def test_predicted_features_have_an_error_but_no_picture(home: Path, target: str) -> None:
    options = [f"target={target}"]
    if target == "dino":
        options += ["target.model=tiny_dino.here", "target.pretrained=false"]
    trained = run(home, *LITTLE, *options, f"run_name={target}")
    files, _ = draw(home, f"{target}_drawn", f"checkpoint={trained}", *options, "task.count=1", "task.formats=[png]")
    assert size(files["reconstruction.png"])[0] == pytest.approx((3 * 1.5 + 0.2) * 150, abs=2), "image, error, order"


def test_a_model_of_another_target_shows_only_maps_and_orders(home: Path) -> None:
    files, _ = draw(home, "other", f"checkpoint={home}/run_raster_pixels", "target=online", "task.count=1")
    assert sorted(files) == ["orders.png", "orders.svg"]


def test_weights_do_not_change(home: Path) -> None:
    path = home / "run_raster_pixels" / "checkpoints" / "step_00000002.pt"
    before = path.read_bytes()
    draw(home, "again", f"checkpoint={path}", "task.count=1", "task.orders=[raster]", "task.formats=[png]")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("checkpoint=null",), "task=visualize needs a checkpoint: checkpoint=runs/<name>"),
        (("task.count=0",), "task.count=0 must be positive"),
        (("task.orders=[spiral]",), "task.orders: there is no order spiral; choose from attention, attention_c"),
        (("task.predict_order=spiral",), "task.predict_order: there is no order spiral; choose from attention, "),
        (("task.formats=[pdf]",), "task.formats=['pdf'] is unknown: choose png, svg or both"),
        (("task.palette=rainbows",), "task.palette=rainbows is no colour map"),
        (("images=/nowhere/at/all",), "images=/nowhere/at/all does not exist: give files of images, or folders"),
        (("checkpoint=runs/nothing",), "checkpoint=runs/nothing"),
        (("checkpoint=other.pth",), "is not a pretraining checkpoint of semaim, SemAIM or SAIM"),
    ],
)
def test_mistakes(
    home: Path, options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "other.pth")
    assert run_here(tmp_path, *DRAW, "run_name=mistake", f"checkpoint={home}/run_raster_pixels", *options) == 2
    assert_one_message(capsys, (words,))
    assert not (tmp_path / "runs").exists()
