"""Makes the pictures of docs/mlflow.md: screenshots of a sweep on the default data in MLflow, by a headless Chromium.

    python docs/screenshots.py [folder of an earlier sweep]

The sweep takes some minutes (in a temporary folder, unless one is given). Needs Debian's packages `chromium` and
`chromium-driver`. Writes docs/images/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browser import Pages, browser, missing
from support.commands import ENVIRONMENT, RUN, sweep_folder
from support.mlflow_server import Server

IMAGES = Path(__file__).parent / "images"
ORDERS = ("raster", "stochastic", "attention", "attention_center")
SWEEP = (
    "-m",
    f"permutation={','.join(ORDERS)}",
    "trainer.epochs=4",
    "task.evaluators.knn.every_epochs=1",
    "then=[knn]",
)
PALETTE_SIZE = 256  # colours of a screenshot; enough for a page with curves


def make_sweep(folder: Path) -> None:
    """Pretrain with each order, evaluate, and draw the views of one model."""
    command(folder, *SWEEP)
    command(folder, "task=visualize", f"checkpoint={pretraining(folder).relative_to(folder)}", "run_name=drawn")


def command(folder: Path, *overrides: str) -> None:
    """Run in a folder, as long as it takes."""
    subprocess.run([*RUN, *overrides], cwd=folder, env=ENVIRONMENT, check=True)


def pretraining(folder: Path) -> Path:
    """The run folder of the pretraining with the paper's order."""
    return next(folder.glob("runs/pretrain_digits_aim_tiny_attention_center_pixels_*"))


def tracked(folder: Path) -> dict[str, str]:
    """Ids of the MLflow run of a folder, and of its experiment."""
    state: dict[str, str] = json.loads((folder / "mlflow.json").read_text())
    return state


def visit_pages(pages: Pages, sweep: str, run: str, pictures: str) -> None:
    """Visit the pages that docs/mlflow.md describes, and save screenshots.

    Args:
        pages: of the experiment.
        sweep: id of the MLflow run of the sweep.
        run: id of a pretraining run of the sweep.
        pictures: id of a run of task=visualize.
    """
    window = pages.browser
    pages.view(sweep)
    window.see("eval/knn_10_mean", *ORDERS)
    save_picture(pages, "view")
    pages.models()
    window.click("//a[contains(@href, '/models/m-')][.='attention_center']")
    window.see("About this logged model")
    window.open(f"{window.driver.current_url}?{pages.TRAINING}")
    window.see("eval/knn_10_mean", "embed_dim")
    save_picture(pages, "model")
    pages.runs()
    pages.unfold(sweep)
    pages.unfold(run)
    save_picture(pages, "runs")
    pages.run(sweep)
    pages.whole_description()
    window.see("sweep/finished")
    save_picture(pages, "sweep")
    pages.runs("tags.task = 'pretrain'", charts=True)
    pages.group_by("permutation")
    pages.only_charts("knn_10_mean")
    window.see(*(f"{order} (online/knn_10_mean)" for order in ORDERS))
    pages.section("online")
    save_picture(pages, "orders")
    pages.run(run)
    pages.whole_description()
    window.see("train/loss")
    save_picture(pages, "run")
    pages.run(run, "model-metrics")
    pages.section("online")
    window.see("knn_20_mean")
    save_picture(pages, "metrics")
    pages.section("pictures")
    pages.enlarge()
    save_picture(pages, "steps")
    pages.run(pictures, "artifacts")
    pages.artifact("pictures", "reconstruction.png")
    pages.see_pictures(1)
    save_picture(pages, "pictures")


def save_picture(pages: Pages, name: str) -> None:
    """Save a screenshot of the page, with a reduced palette."""
    file = pages.browser.picture(IMAGES / f"mlflow_{name}.png")
    with Image.open(file) as image:
        reduced = image.convert("RGB").quantize(PALETTE_SIZE, dither=Image.Dither.NONE)
    reduced.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Run the command line."""
    if reason := missing():
        sys.exit(reason)
    with TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        if not (folder / "mlflow.db").is_file():
            make_sweep(folder)
        server = Server(folder, f"sqlite:///{folder}/mlflow.db")
        try:
            server.start()
            sweep = tracked(sweep_folder(folder))
            run, pictures = tracked(pretraining(folder)), tracked(folder / "runs" / "drawn")
            with browser() as window:
                pages = Pages(window, server.uri, sweep["experiment_id"])
                visit_pages(pages, sweep["run_id"], run["run_id"], pictures["run_id"])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
