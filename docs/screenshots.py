"""Makes the pictures of docs/mlflow.md: a real sweep on the default data, looked at in MLflow by a headless Chromium.

    python docs/screenshots.py [folder of an earlier sweep]

Takes some minutes for the sweep (in a temporary folder, unless one is given) and needs Debian's packages `chromium` and
`chromium-driver`. Writes docs/images/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browser import Pages, browser, missing
from support.commands import succeed, sweep_folder
from support.mlflow_server import Server

IMAGES = Path(__file__).parent / "images"
ORDERS = ("raster", "stochastic", "attention", "attention_center")
SWEEP = ("-m", f"permutation={','.join(ORDERS)}", "trainer.epochs=4", "task.knn_every_epochs=1", "then=[knn]")
COLOURS = 256  # enough for a page with its curves


def make_sweep(place: Path) -> None:
    """Pretrain with each order, evaluate, and draw what one of them sees."""
    succeed(place, *SWEEP)
    succeed(place, "task=visualize", f"checkpoint={pretraining(place).relative_to(place)}", "run_name=drawn")


def pretraining(place: Path) -> Path:
    """The run folder with the paper's order."""
    return next(place.glob("runs/pretrain_digits_aim_tiny_attention_center_pixels_*"))


def tracked(folder: Path) -> dict[str, str]:
    """Ids of the MLflow run of a folder, and of its experiment."""
    found: dict[str, str] = json.loads((folder / "mlflow.json").read_text())
    return found


def tour(pages: Pages, sweep: str, run: str, pictures: str) -> None:
    """Visit the pages that docs/mlflow.md speaks of, and keep what they look like.

    Args:
        pages: of the experiment.
        sweep: id of the run of the sweep.
        run: of a pretraining under it.
        pictures: of a run of task=visualize.
    """
    window = pages.browser
    pages.runs()
    pages.unfold(sweep)
    pages.unfold(run)
    keep(pages, "runs")
    pages.run(sweep)
    pages.whole_description()
    window.see("sweep/finished")
    keep(pages, "sweep")
    pages.runs("tags.task = 'pretrain'", charts=True)
    pages.group_by("permutation")
    pages.only_charts("knn_10_mean")
    window.see(*(f"{order} (online/knn_10_mean)" for order in ORDERS))
    pages.section("online")
    keep(pages, "orders")
    pages.run(run)
    pages.whole_description()
    window.see("train/loss")
    keep(pages, "run")
    pages.run(run, "model-metrics")
    pages.section("online")
    window.see("knn_20_mean")
    keep(pages, "metrics")
    pages.section("pictures")
    pages.enlarge()
    keep(pages, "steps")
    pages.run(pictures, "artifacts")
    pages.artifact("pictures", "reconstruction.png")
    pages.see_pictures(1)
    keep(pages, "pictures")


def keep(pages: Pages, name: str) -> None:
    """Keep what the page looks like, in few colours."""
    file = pages.browser.picture(IMAGES / f"mlflow_{name}.png")
    with Image.open(file) as image:
        few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Command line."""
    if reason := missing():
        sys.exit(reason)
    with TemporaryDirectory() as temporary:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        if not (place / "mlflow.db").is_file():
            make_sweep(place)
        server = Server(place, f"sqlite:///{place}/mlflow.db")
        try:
            server.start()
            sweep = tracked(sweep_folder(place))
            run, pictures = tracked(pretraining(place)), tracked(place / "runs" / "drawn")
            with browser() as window:
                pages = Pages(window, server.uri, sweep["experiment_id"])
                tour(pages, sweep["run_id"], run["run_id"], pictures["run_id"])
        finally:
            server.stop()


if __name__ == "__main__":
    main()
