"""A newcomer's second hour: own photographs, order and model; which order is best; evaluation; the encoder in timm.

Every command is one of the documentation, or one that an earlier command has printed. None may fail.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import pytest
import torch

import semaim
from support import browser
from support.browser import Pages
from support.commands import ENVIRONMENT, finished, status, sweep_folder
from support.mlflow_server import Server
from support.photos import BROKEN, photos

FILES = {
    "meine.py": """
import torch

from semaim.permutations import Permutation


class Backwards(Permutation):
    def priority(self, grid, noise_BK, semantic_map_BL):
        return -torch.arange(grid[0] * grid[1])
""",
    "conf/data/fotos.yaml": """
# My photographs.
defaults: [folder, _self_]
root: Meine Fotos
image_size: 32
patch_size: 8
val_fraction: 0.2
""",
    "conf/permutation/backwards.yaml": """
# From the last patch to the first.
_target_: meine.Backwards
""",
    "conf/model/slim.yaml": """
# Half as wide as aim_tiny.
defaults: [aim_tiny, _self_]
embed_dim: 48
num_heads: 3
depth: 2
query_depth: 2
""",
}
ORDERS = ("backwards", "attention_center")
METHODS = {"backwards": "AIM, backwards", "attention_center": "SemAIM"}
SWEEP = (
    f"semaim run -m --config-dir conf data=fotos model=slim permutation={','.join(ORDERS)} seed=0,1 "
    "trainer.epochs=4 trainer.batch_size=16 then=[knn]"
)


class Shell:
    """A terminal in the newcomer's folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def type(self, command: str) -> str:
        """Run a command of the program, require exit code 0, and return what it says."""
        program, *words = shlex.split(command)
        assert Path(program).name == "semaim"
        done = finished([sys.executable, "-m", "semaim", *words], self.folder, ENVIRONMENT)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def results(self, order: str, metric: str = "knn_10_mean") -> list[float]:
        """The results of the evaluations of an order, one for each seed."""
        folders = sorted(self.folder.glob(f"runs/knn_fotos_slim_{order}_*"))
        return [status(folder)["result"][metric] for folder in folders]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, str]:
    """The folder of the newcomer after the sweep, and what the sweep said."""
    shell = Shell(tmp_path_factory.mktemp("neu hier"))
    photos(shell.folder / "Meine Fotos")
    for name, text in FILES.items():
        (shell.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shell.folder / name).write_text(text)
    return shell, shell.type(SWEEP)


def best_of(shell: Shell) -> str | None:
    """The order with the best mean, computed from the runs; None if they are equal."""
    means = {order: fmean(shell.results(order)) for order in ORDERS}
    return None if len(set(means.values())) == 1 else max(means, key=lambda order: means[order])


def printed(said: str, purpose: str) -> str:
    """The last command that was printed for a purpose."""
    return re.findall(rf"^.*\b{purpose}: +(semaim .*)$", said, re.MULTILINE)[-1]


@pytest.mark.slow
def test_photographs_are_read_and_a_broken_one_is_named_once(swept: tuple[Shell, str]) -> None:
    shell, said = swept
    assert "data.root=Meine Fotos: layout classes, 91 images of 3 classes" in said
    logs = [file.read_text() for file in shell.folder.glob("runs/pretrain_*/run.log")]
    assert [log.count(BROKEN) for log in logs] == 4 * [1]


@pytest.mark.slow
def test_names_tell_the_runs_apart(swept: tuple[Shell, str]) -> None:
    shell, _ = swept
    names = {folder.name for folder in shell.folder.glob("runs/pretrain_*")}
    rest = "_trainer.batch_size-16_trainer.epochs-4"
    assert names == {f"pretrain_fotos_slim_{order}_pixels_seed-{seed}{rest}" for order in ORDERS for seed in (0, 1)}


@pytest.mark.slow
def test_the_best_order_is_read_from_the_table(swept: tuple[Shell, str]) -> None:
    shell, said = swept
    again = shell.type(f"semaim status runs/{sweep_folder(shell.folder).name}")
    report = shell.type("semaim report")
    assert "SemAIM (paper)" not in report
    for text in (said, again, report):
        for order in ORDERS:
            mean = fmean(shell.results(order))
            assert re.search(rf"{order}\b.*\W{mean:.1f} ± \d+\.\d \(2\)", text), text
        marked = re.findall(rf"\bbest\W+(?:AIM, |SemAIM\W+)?({'|'.join(ORDERS)})\b", text)  # perhaps after the method
        assert marked[:1] == ([best] if (best := best_of(shell)) else []), text


@contextmanager
def pages_of(shell: Shell) -> Iterator[Pages]:
    """MLflow's pages of the newcomer's experiment, in a browser."""
    server = Server(shell.folder, f"sqlite:///{shell.folder}/mlflow.db")
    try:
        server.start()
        with browser.browser() as window:
            experiment = json.loads((sweep_folder(shell.folder) / "mlflow.json").read_text())["experiment_id"]
            yield Pages(window, server.uri, experiment)
    finally:
        server.stop()


@pytest.mark.slow
def test_the_best_order_is_read_from_the_page_of_the_sweep(swept: tuple[Shell, str]) -> None:
    if reason := browser.missing():
        pytest.skip(reason)
    shell, _ = swept
    with pages_of(shell) as pages:
        pages.run(json.loads((sweep_folder(shell.folder) / "mlflow.json").read_text())["run_id"])
        pages.whole_description()
        pages.browser.see(*(f"{METHODS[order]} {fmean(shell.results(order)):.1f} ±" for order in ORDERS))
        assert re.findall(rf"^best ({'|'.join(ORDERS)})\b", pages.browser.text(), re.MULTILINE) == (
            [best] if (best := best_of(shell)) else []
        )


@pytest.mark.slow
def test_every_command_that_a_run_prints_works(swept: tuple[Shell, str]) -> None:
    shell, said = swept
    first = printed(said, "evaluate")
    assert re.fullmatch(r"semaim run task=knn checkpoint=runs/pretrain_fotos_slim_\S+", first), "no data to be guessed"
    assert "this run is finished already" in shell.type(first)
    others = re.findall(r"and also: +with (.*)$", said, re.MULTILINE)[-1]
    for words in re.split(r", | or ", others):
        shorter = {"task=linprobe": " trainer.epochs=2", "task=finetune": " trainer.epochs=1"}
        evaluated = shell.type(first.replace("task=knn", words) + shorter.get(words.split()[0], ""))
        assert "data and seed from runs/pretrain_fotos_slim_" in evaluated
    drawn = shell.type(first.replace("task=knn", "task=visualize") + " task.count=3 'task.formats=[png]'")
    assert "3 of 18 held-out images" in drawn
    (names,) = shell.folder.glob("runs/visualize_*/pictures/images.csv")
    assert names.read_text().count("(Größe 1)") == 3
    longer = shell.type(printed(said, "train longer").replace("epochs=8", "epochs=5"))
    assert "after step 16 of 20" in longer


@pytest.mark.slow
def test_the_encoder_is_used_in_timm(swept: tuple[Shell, str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell, said = swept
    run = printed(said, "evaluate").split("checkpoint=")[1]
    exported = shell.type(f"semaim export {run}")
    assert "knn_10_mean" in shell.type(printed(exported, "evaluate it"))
    monkeypatch.chdir(shell.folder)
    snippet = re.findall(r"^ +(import timm|model = .*)$", exported, re.MULTILINE)
    found: dict[str, torch.nn.Module] = {}
    exec("\n".join(snippet), found)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        in_timm = found["model"].forward_features(images)  # type: ignore[operator]
        torch.testing.assert_close(in_timm, semaim.load_model(run).encode(images), rtol=1e-5, atol=1e-5)
