"""MLflow's pages for a sweep, in a real browser on a real server.

Screenshots of every visited page are saved in the folder named by SEMAIM_SCREENSHOTS, or else in pytest's temporary
folder; the test prints the path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import browser
from support.browser import Pages
from support.commands import status, sweep_folder
from support.in_process import run_here
from support.mlflow_server import Server

SHORT = (
    "trainer.batch_size=16",
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "model.embed_dim=32",
    "model.num_heads=2",
    "task.evaluators.knn.max_bank=64",
    "task.evaluators.knn.max_queries=64",
    "task.evaluators.knn.every_epochs=1",
    "task.evaluators.pictures.images=8",
    "task.evaluators.pictures.drawn=2",
)
ORDERS = ("raster", "attention_center")
METHODS = {"raster": "ViT-iGPT", "attention_center": "SemAIM"}
SWEEP = ("-m", *SHORT, f"permutation={','.join(ORDERS)}", "then=[knn]")


Shot = Callable[[str], None]


def run_id(folder: Path) -> str:
    return json.loads((folder / "mlflow.json").read_text())["run_id"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a sweep over two orders, with pictures of one run."""
    if reason := browser.missing():
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("looked_at")
    assert run_here(place, *SWEEP) == 0
    centre = pretraining(place, "attention_center")
    checkpoint = f"checkpoint={centre.relative_to(place)}"
    assert run_here(place, "task=visualize", checkpoint, "task.count=2", "task.formats=[png]", "run_name=drawn") == 0
    return place


def pretraining(place: Path, order: str) -> Path:
    (folder,) = place.glob(f"runs/pretrain_digits_aim_tiny_{order}_pixels_*")
    return folder


def evaluated(place: Path, order: str) -> dict[str, float]:
    """Result of the evaluation of an order."""
    name = pretraining(place, order).name
    (folder,) = [each.parent for each in place.glob("runs/knn_*/config.yaml") if f"/{name}\n" in each.read_text()]
    return status(folder)["result"]


@pytest.fixture(scope="module")
def pages(place: Path) -> Iterator[Pages]:
    """The pages of the experiment."""
    server = Server(place, f"sqlite:///{place}/mlflow.db")
    try:
        server.start()
        with browser.browser() as window:
            experiment = json.loads((sweep_folder(place) / "mlflow.json").read_text())["experiment_id"]
            yield Pages(window, server.uri, experiment)
    finally:
        server.stop()


@pytest.fixture
def shot(pages: Pages, place: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Take a screenshot of the page; the last one is taken even if the test fails."""
    folder = Path(os.environ.get("SEMAIM_SCREENSHOTS") or place / "screenshots")
    name = request.node.name.removeprefix("test_")
    yield lambda what: print("picture:", pages.browser.picture(folder / f"{name}-{what}.png"))
    pages.browser.picture(folder / f"{name}-last.png")


def test_runs_and_evaluations_are_listed_below_their_parents(pages: Pages, place: Path, shot: Shot) -> None:
    sweep, drawn = run_id(sweep_folder(place)), run_id(place / "runs" / "drawn")
    raster, centre = (run_id(pretraining(place, order)) for order in ORDERS)
    pages.runs()
    pages.browser.wait(lambda: pages.listed() == [drawn, sweep], "the sweep and the pictures")
    pages.unfold(sweep)
    pages.browser.see("permutation (2 runs)", *ORDERS)
    pages.browser.see("Dataset", "digits (", "Training", "Source", "semaim run", "Models")
    models = "//a[contains(@href, '/models/m-')]"
    pages.browser.wait(lambda: [link.text for link in pages.browser.all(models)] == ["attention_center", "raster"], "")
    assert pages.listed() == [drawn, sweep, centre, raster]
    pages.unfold(centre)
    pages.unfold(raster)
    evaluations = [run_id(folder) for folder in place.glob("runs/knn_digits_*")]
    assert sorted(pages.listed()) == sorted([drawn, sweep, centre, raster, *evaluations])
    shot("table")


def test_the_model_of_a_pretraining_lists_its_evaluations(pages: Pages, shot: Shot) -> None:
    pages.models()
    pages.browser.click("//a[contains(@href, '/models/m-')][.='attention_center']")
    pages.browser.see("The weights are in the run folder, not in this store", "eval/knn_10_mean", "knn · attention")
    pages.browser.see("embed_dim", "num_heads", "digits (#")
    shot("model")


def test_the_sweep_shows_description_and_summary(pages: Pages, place: Path, shot: Shot) -> None:
    pages.run(run_id(sweep_folder(place)))
    pages.whole_description()
    results = {order: evaluated(place, order)["knn_10_mean"] for order in ORDERS}
    pages.browser.see(
        "Sweep of 2 runs over permutation = raster, attention_center",
        f"in {place}:",
        "2 runs: mean ± deviation over seeds (number of runs)",
        *(f"{order} {METHODS[order]} {value:.1f} (1)" for order, value in results.items()),
        "sweep/best_knn_30_mean",
        "swept.permutation\n: raster, attention_center",
    )
    shot("overview")
    pages.run(run_id(sweep_folder(place)), "model-metrics")
    pages.browser.see("best_knn_30_mean")


def test_charts_compare_orders(pages: Pages, shot: Shot) -> None:
    pages.runs("tags.task = 'pretrain'", charts=True)
    pages.group_by("permutation")
    pages.only_charts("knn_10_mean")
    pages.browser.see(*(f"{order} (online/knn_10_mean)" for order in ORDERS), "eval/knn_10_mean")
    shot("by_order")


def test_a_run_shows_how_to_repeat_it(pages: Pages, place: Path, shot: Shot) -> None:
    pages.run(run_id(pretraining(place, "attention_center")))
    pages.whole_description()
    pages.browser.see(
        f"semaim run {' '.join(SHORT)} permutation=attention_center 'then=[knn]'",
        "pretrain with model aim_tiny, permutation attention_center",
        "What to look at:",
        sweep_folder(place).name,
        "knn · attention_center",
        *("permutation\n: attention_center", "optimizer\n: adamw_small", "semantic_map\n: cls", "task\n: pretrain"),
    )
    shot("overview")


def test_a_run_shows_curves_and_pictures(pages: Pages, place: Path, shot: Shot) -> None:
    pages.run(run_id(pretraining(place, "attention_center")), "model-metrics")
    pages.browser.see(*(f"{group}\n(" for group in ("data", "eval", "online", "pictures", "train")))
    pages.section("online")
    pages.browser.see("knn_10_mean")
    shot("curves")
    pages.section("pictures")
    pages.see_pictures(1)
    pages.enlarge()
    shot("pictures_over_steps")


def test_a_run_of_pictures_shows_them_among_its_artifacts(pages: Pages, place: Path, shot: Shot) -> None:
    pages.run(run_id(place / "runs" / "drawn"), "artifacts")
    pages.artifact("pictures", "orders.png")
    pages.see_pictures(1)
    shot("artifacts")


def test_the_prepared_view_shows_what_was_swept_and_the_best_first(pages: Pages, place: Path, shot: Shot) -> None:
    pages.view(run_id(sweep_folder(place)))
    accuracies = {order: evaluated(place, order)["knn_10_mean"] for order in ORDERS}
    best_first = sorted(ORDERS, key=lambda order: accuracies[order], reverse=True)
    if len(set(accuracies.values())) == len(ORDERS):
        wanted = [run_id(pretraining(place, order)) for order in best_first]
        pages.browser.wait(lambda: pages.listed() == wanted, "the runs, best first")
    pages.browser.see("permutation", "eval/knn_10_mean", "Sort: eval/knn_10_mean", "Override saved view")
    pages.browser.see(*(f"{value:.6f}"[:6] for value in accuracies.values()))
    shot("table")
    pages.view(run_id(sweep_folder(place)), charts=True)
    pages.browser.see("compare", "eval/knn_10_mean")
    shot("charts")
