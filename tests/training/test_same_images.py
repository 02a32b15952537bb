"""A run continues on the images it was started with: fingerprints are compared, not numbers of images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from semaim.data.image_sets import ArrayImages, FileImages
from semaim.errors import UserError
from semaim.training.loop import prepare
from support.commands import losses, status
from support.evaluating import noise, together
from support.in_process import go

IMAGES = ("data=folder", "data.image_size=8", "data.patch_size=4", "data.num_workers=0", "tracking=none")
TINY = (
    "trainer.batch_size=4",
    "trainer.save_every_steps=1",
    "trainer.log_every_steps=1",
    "evaluators=[]",
    "device=cpu",
)
TINY += ("model=aim_tiny", "model.embed_dim=16", "model.depth=1", "model.query_depth=1", "model.num_heads=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("cat", "dog"):
        for number in range(4):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (30 * number, 0, 99)).save(tmp_path / "data" / kind / f"{kind}{number}.png")
    return tmp_path / "data"


def train(home: Path, steps: int, *options: str) -> Path:
    return go(home / "runs", *IMAGES, *TINY, f"data.root={home / 'data'}", "run_name=x", f"trainer.max_steps={steps}",
              *options)  # fmt: skip


CHANGES = {
    "a file is renamed": ("cat/cat0.png", "cat/cat9.png"),
    "a file is moved to another class": ("cat/cat0.png", "dog/cat0.png"),
    "a class is renamed": ("cat", "wolf"),
}


def test_as_many_other_images_are_refused_and_can_be_accepted(tmp_path: Path, root: Path) -> None:
    folder = train(tmp_path, 2)
    for before, after in CHANGES.values():
        (root / before).rename(root / after)
        with pytest.raises(
            UserError, match=r"trained on 8 images of other names or classes .*data\.accept_changes=true"
        ):
            train(tmp_path, 3)
        assert (list(losses(folder)), status(folder)["state"]) == ([1, 2], "failed")
        if before != "cat":
            (root / after).rename(root / before)
    train(tmp_path, 3, "data.accept_changes=true")
    train(tmp_path, 4)  # the new images are those of its newest checkpoint
    assert list(losses(folder)) == [1, 2, 3, 4]


def test_another_number_of_images_can_be_accepted_and_a_moved_copy_is_the_same(tmp_path: Path, root: Path) -> None:
    folder = train(tmp_path, 1)
    root = root.rename(tmp_path / "elsewhere")
    here = f"data.root={root}"
    train(tmp_path, 2, here)
    (root / "dog" / "dog0.png").unlink()
    with pytest.raises(UserError, match=r"was trained on 8 images, these data \(data\.root\) have 7: .*accept_changes"):
        train(tmp_path, 3, here)
    train(tmp_path, 3, here, "data.accept_changes=true")
    assert list(losses(folder)) == [1, 2, 3]


def test_held_out_images_are_compared(tmp_path: Path, root: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(root, tmp_path / "split" / part)
    here = f"data.root={tmp_path / 'split'}"
    train(tmp_path, 1, here)
    (tmp_path / "split" / "val" / "cat" / "cat0.png").rename(tmp_path / "split" / "val" / "dog" / "cat0.png")
    with pytest.raises(UserError, match="was measured on held-out images of other names or classes than these data"):
        train(tmp_path, 2, here)
    train(tmp_path, 2, here, "data.accept_changes=true")


def test_a_finished_run_is_not_that_of_another_folder(tmp_path: Path, root: Path) -> None:
    train(tmp_path, 1)
    root.rename(tmp_path / "elsewhere")
    train(tmp_path, 1)  # the same command needs no images
    train(tmp_path, 1, f"data.root={tmp_path / 'elsewhere'}")  # a copy
    shutil.copytree(tmp_path / "elsewhere" / "cat", root / "cat")
    with pytest.raises(UserError, match=r"was trained on 8 images, these data \(data\.root\) have 4"):
        train(tmp_path, 1)


def test_a_run_does_not_draw_among_its_images(tmp_path: Path, root: Path) -> None:
    inside = r"'?{}.* would be inside of data\.root=.*: start from another folder, or set {}".format
    with pytest.raises(UserError, match=inside(root / "runs", "runs_dir")):
        train(tmp_path, 1, f"runs_dir={root}/runs")
    with pytest.raises(UserError, match=inside(root / "mlflow.db", "tracking.uri")):
        train(tmp_path, 1, "tracking=mlflow", f"tracking.uri=sqlite:///{root}/mlflow.db")
    assert sorted(path.name for path in root.iterdir()) == ["cat", "dog"]
    train(tmp_path, 1, f"runs_dir={root}/.runs")
    root.rename(tmp_path / "train")
    train(tmp_path, 1, f"data.root={tmp_path}", "run_name=y")


def test_a_checkpoint_without_a_fingerprint_continues(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 0.1.0: their number of images is compared."""
    saved: Any = None

    def newest(folder: Path) -> Any:
        nonlocal saved
        files = sorted(folder.glob("*.pt"))
        saved = torch.load(files[-1], weights_only=True) if files else None
        if saved is not None:
            assert len(saved["data_position"].pop("fingerprint")) == 64
            del saved["data_position"]["held_out"]
        return saved

    folder = train(tmp_path, 1)
    monkeypatch.setattr("semaim.checkpoints.store.newest", newest)
    train(tmp_path, 2)
    assert list(losses(folder)) == [1, 2]
    (root / "dog" / "dog0.png").unlink()
    with pytest.raises(UserError, match="was trained on 8 images"):
        train(tmp_path, 3)


def test_fingerprints() -> None:
    def files(*names: str, labels: Any = (0, 1), root: str = "/a") -> str:
        return FileImages(Path(root), names, labels).fingerprint()

    sets = [files("a", "b"), files("a", "c"), files("a", "b", labels=(0, 0)), files("a", "b", labels=None),
            files("a\nb", labels=None), files("ab", labels=None), files("a\nb", "c"), files("a", "b\nc")]  # fmt: skip
    assert len(set(sets)) == len(sets)
    assert files("a", "b", root="/b") == files("a", "b")
    assert (
        ArrayImages(noise().images_NHWC, noise().labels.tolist(), "another title").fingerprint()
        == noise().fingerprint()
    )
    assert noise(seed=1).fingerprint() != noise().fingerprint()


def test_processes_with_different_images_stop() -> None:
    """For example, nodes with copies of their own."""

    def begin(processes: Any) -> None:
        run: Any = type("Run", (), {"processes": processes})
        task: Any = type(
            "Task", (), {"training": type("Data", (), {"fingerprints": {"held_out": f"of {processes.rank}"}})}
        )
        prepare(task, None, run, None)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="the processes have different images"):
        together(2, begin)
