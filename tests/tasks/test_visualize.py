"""task=visualize: one or several checkpoints, one or many images, any target."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semaim.checkpoints import store
from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError
from semaim.lifecycle import execute, session
from semaim.visualization.trained_models import load, short_names
from semaim.visualization.views import View, Viewer
from support import teaching  # noqa: F401 - registers the small teachers
from support.commands import SMALL, status
from support.in_process import go, logging_left_as_found, run, run_here
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
        *("film.gif", "film.png", "film.svg", "images.csv"),
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
    rows = files["images.csv"].read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows[15:18]] == [["1", "16"], ["2", "1"], ["2", "2"]]
    assert len({row.split(",")[2] for row in rows}) == 20
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
    assert sorted(files) == ["film.gif", "film.svg", "images.csv", "orders.svg", "reconstruction.svg"]
    assert files["images.csv"].read_text() == f"page,row,image\n1,1,{folder}/a.png\n1,2,{folder}/b.png\n"
    assert "3 of 3 images; pictures/images.csv names their files" in capsys.readouterr().err
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
    assert sorted(files) == ["images.csv", "orders.png", "orders.svg"]


def test_weights_do_not_change(home: Path) -> None:
    path = home / "run_raster_pixels" / "checkpoints" / "step_00000002.pt"
    before = path.read_bytes()
    draw(home, "again", f"checkpoint={path}", "task.count=1", "task.orders=[raster]", "task.formats=[png]")
    assert path.read_bytes() == before


OWN = """
import torch
from semaim.permutations import Permutation
from semaim.semantics import SemanticMap
from semaim.targets import Pixels


class Columns(Permutation):
    def __init__(self, backwards):
        self.backwards = backwards

    def priority(self, grid, noise_BK, semantic_map_BL):
        column_L = torch.arange(grid[0] * grid[1]).view(*grid).T.reshape(-1).argsort()
        return -column_L if self.backwards else column_L


class Corner(SemanticMap):
    def __call__(self, cache, network):
        L = (cache.images_BCHW.shape[-1] // 4) ** 2
        return torch.eye(L)[0].expand(len(cache.images_BCHW), L)


class Bright(Pixels):
    def __call__(self, images_BCHW, cache=None):
        return super().__call__(images_BCHW, cache) + 100
"""


def run_with(folders: list[str], home: Path, *options: str) -> Path:
    """Run a command with additional configuration folders."""
    spec = compose_run_spec([f"runs_dir={home}", "tracking=none", *options], folders)
    with logging_left_as_found(), session("cpu") as (processes, stop):
        execute(spec, processes, stop)
    return Path(spec.config["run_dir"])


def test_parts_of_ones_own_are_drawn_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    for group, text in {
        "permutation": "_target_: own_parts.Columns\nbackwards: false\n",
        "semantic_map": "defaults: [cls, _self_]\n_target_: own_parts.Corner\n",
        "target": "defaults: [pixels, _self_]\n_target_: own_parts.Bright\n",
    }.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    mine, conf = [f"{group}=mine" for group in ("permutation", "semantic_map", "target")], [f"file://{tmp_path}/conf"]
    small = [option for option in SMALL if not option.startswith("tracking")]
    run_with(conf, tmp_path, *small, *LITTLE, *mine, "permutation.backwards=true", "run_name=own")

    seen: list[View] = []
    view = Viewer.view
    monkeypatch.setattr(Viewer, "view", lambda *given: seen.append(view(*given)) or seen[-1])
    options = ("task=visualize", f"checkpoint={tmp_path}/own", "task.count=2", "task.formats=[png]")
    drawn = run_with([], tmp_path, *options, "run_name=drawn")
    columns_L = torch.arange(64).view(8, 8).T.reshape(-1)
    assert seen[0].orders["mine"].tolist() == 2 * [columns_L.flip(0).tolist()], "with the option it was trained with"
    assert "object_in_first_quarter/mine" in status(drawn)["result"]
    prediction = seen[0].prediction
    assert prediction is not None
    assert torch.equal(prediction.order_BL, seen[0].orders["mine"])
    assert prediction.error_BL.min() > 5000, "its target is far away"
    assert torch.equal(seen[0].maps.semantic_BL, torch.eye(64)[0].expand(2, 64))

    run_with([], tmp_path, *options, "task.orders=[mine,raster]", "run_name=two")
    run_with(conf, tmp_path, *options[:1], *options[2:], f"checkpoint={tmp_path}/own", "task.orders=[zigzag,mine]",
             "semantic_map=cls", "run_name=three")  # fmt: skip
    assert not torch.equal(seen[2].maps.semantic_BL, seen[0].maps.semantic_BL), "the command names another map"

    official = tmp_path / "official.pth"
    torch.save({"state_dict": torch.load(tmp_path / "own" / "checkpoints" / "step_00000002.pt")["model"]}, official)
    run_with(conf, tmp_path, *options[:1], *options[2:], f"checkpoint={official}", "task.orders=[mine]",
             "model.num_heads=2", "run_name=four")  # fmt: skip
    assert seen[3].orders["mine"].tolist() == 2 * [columns_L.tolist()], "a choice of the configuration folders"

    (tmp_path / "own_parts.py").unlink()
    sys.modules.pop("own_parts")
    capsys.readouterr()
    assert run_here(tmp_path, *options, "tracking=none", "run_name=gone") == 2
    said = capsys.readouterr().err
    assert said.count("\n") <= 3, "one message, after lines on the data and the weights"
    assert "error: checkpoint=" in said
    assert "was trained with permutation own_parts.Columns, which cannot be imported (" in said


def test_a_stored_configuration_runs_no_other_code(home: Path, tmp_path: Path) -> None:
    state = store.newest(home / "run_raster_pixels" / "checkpoints")
    assert state is not None
    state["config"]["permutation"] = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    path = store.save(tmp_path / "checkpoints", 1, state)
    with pytest.raises(UserError, match=r"os\.system"):
        load(str(path), "heading", None)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["elsewhere.run.order", "elsewhere.order"])
def test_a_module_that_came_with_a_run_is_not_imported(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """The working directory is on Python's path, so that a folder that was unpacked in it is one of modules."""
    state = store.newest(home / "run_raster_pixels" / "checkpoints")
    assert state is not None
    state["config"]["permutation"] = {"_target_": f"{module}.Order"}
    folder = tmp_path / "elsewhere" / "run"
    path = store.save(folder / "checkpoints", 1, state)
    file = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"{module}.Order, which lies beside it"):
        load(str(folder), "heading", None)  # type: ignore[arg-type]
    if module == "elsewhere.run.order":
        with pytest.raises(UserError, match="lies beside it"):
            load(str(path), "heading", None)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("checkpoint=null",), "task=visualize needs a checkpoint: checkpoint=runs/<name>"),
        (("task.orders=[spiral]",), "task.orders: there is no order spiral; choose from attention, attention_c"),
        (("task.predict_order=spiral",), "task.predict_order: there is no order spiral; choose from attention, "),
        (("task.formats=[pdf]",), "task.formats=[pdf]: task.formats must be [png], [svg] or [png,svg]"),
        (("task.palette=rainbows",), "task.palette=rainbows is no colour map"),
        (
            ("images=/nowhere/at/all",),
            "images=/nowhere/at/all is neither a file nor a folder: give files of images, or folders",
        ),
        (("checkpoint=runs/nothing",), "checkpoint=runs/nothing"),
        (("checkpoint=other.pth",), "is not a pretraining checkpoint of semaim, SemAIM, SAIM or MAE"),
    ],
)
def test_mistakes(
    home: Path, options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "other.pth")
    assert run_here(tmp_path, *DRAW, "run_name=mistake", f"checkpoint={home}/run_raster_pixels", *options) == 2
    assert_one_message(capsys, (words,))
    assert not (tmp_path / "runs").exists()
