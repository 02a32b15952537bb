"""What `python -m semaim.check` finds before anything is queued: costs, mistakes at each point, what a cluster lacks.

Shapes: B images, L patches.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from torch import Tensor, nn

from semaim.config.follow_ups import follow_ups
from semaim.errors import UserError
from semaim.models.aim import AIM
from semaim.models.flops import activations, cost, encoder_cost, moments, training_memory
from semaim.models.vit import vit_of
from semaim.preflight import check, slurm_nodes
from semaim.preflight.check import Checked, check_sweep
from semaim.preflight.slurm_nodes import Asked, Node, gpus_in, minutes_in, nodes_of, not_granted
from semaim.tracking import store
from semaim.training.optimizers import Optimization, parameter_groups
from support.in_process import go, job
from support.mistakes import MISTAKES, place_of_mistakes
from support.slurm import Cluster

# What sinfo said of a cluster of two nodes with two GPUs each.
SINFO = """\
main*|n1|gpu:2|4|8000|infinite|idle
main*|n2|gpu:2|4|8000|infinite|idle
"""
SLURM = {"_target_": "SlurmLauncher", "partition": "main", "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 1}


def asked(**options: Any) -> Asked:
    return Asked.of(SLURM | options)


def one(*words: str, launcher: dict[str, Any] | None = None) -> Checked:
    """A single run is looked at."""
    return check_sweep([list(words)], launcher=launcher)


def command(*words: str) -> int:
    """The command, inside this process; its exit code."""
    with mock.patch.object(sys, "argv", ["check.py", *words]):
        return check.main()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM says what it said when it was recorded."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(slurm_nodes, "answer", lambda *words: {slurm_nodes.SINFO: SINFO}[words])


# Costs


def test_the_default_command_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    header, row, nothing, last = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", header) == [
        "run", "encoder", "parameters", "FLOP/image", "steps", "images", "held out", "classes", "memory/process",
        "GPU-hours", "state",
    ]  # fmt: skip
    assert re.split(r"  +", row) == [
        "pretrain_digits_aim_tiny_attention_center_pixels", "452 k", "732 k", "370 M", "880", "1437", "360", "10",
        "98.6 MB", "0.0", "new",
    ]  # fmt: skip
    assert nothing == ""
    assert last == "OK: 1 run, 1 process each, about 0.0 GPU-hours"
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_those_of_the_real_model() -> None:
    real = AIM(48, 32, 4, embed_dim=96, depth=4, num_heads=3, query_depth=2)
    for order, needs_map in (("attention_center", True), ("raster", False)):
        (row,) = one(f"permutation={order}", "trainer.epochs=40").rows
        expected = cost(real, needs_map)
        assert row.cost is not None
        assert row.cost.encoder_parameters == expected.encoder_parameters == 452_352
        assert row.cost.parameters == sum(p.numel() for p in real.parameters()) == 731_760
        assert row.cost.flops == expected.training_step
        assert (row.cost.steps, row.cost.images) == (40 * 44, 40 * 44 * 32)
        weights, moments, kept = 4 * 731_760, 2, 2 + 1  # one more while the oldest is still there
        assert row.cost.checkpoints == weights * (1 + moments) * kept
        assert row.cost.memory == weights * (2 + moments) + 32 * activations(real, 4)


def test_hours_follow_from_operations_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("model=aim_huge", "trainer.epochs=1000", "permutation=raster", "--tflops", "40") == 0
    with torch.device("meta"):
        huge = AIM(48, 32, 4, embed_dim=1280, depth=32, num_heads=16, query_depth=16)
    hours = cost(huge, False).training_step * 1000 * 44 * 32 / 40e12 / 3600
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"OK: 1 run, 1 process each, about {hours:.1f} GPU-hours"
    assert f"  {hours:.1f}  new" in said[1]
    assert hours > 3


def test_a_sweep_and_what_follows_have_a_row_each() -> None:
    points = [["then=[knn,linprobe]", f"seed={seed}", "model=aim_small"] for seed in (1, 2)]
    GlobalHydra.instance().hydra = under_way = mock.Mock()
    with mock.patch.object(check, "opened", wraps=check.opened) as opened:
        checked = check_sweep(points)
    assert GlobalHydra.instance().hydra is under_way  # a sweep may check itself before it begins
    GlobalHydra.instance().clear()
    assert opened.call_count == 1  # of six runs on the same data
    jobs = [each for point in points for each in (job(*point), *follow_ups(job(*point)))]
    assert [row.name for row in checked.rows] == [each.cfg.run_name for each in jobs]
    assert (checked.problems, checked.runs) == ([], 2)
    assert str(checked).splitlines()[-1].startswith("OK: 2 runs and 4 evaluations after, 1 process each, about 0.")
    first, knn, probe = (row.cost for row in checked.rows[:3])
    assert first is not None
    assert knn is not None
    assert probe is not None
    assert knn.encoder_parameters == probe.encoder_parameters == first.encoder_parameters  # not those of aim_tiny
    assert (knn.steps, knn.images, knn.flops) == (None, 1437 + 360, probe.flops)
    assert (probe.steps, probe.images) == (20 * 22, 20 * 22 * 64)


def test_an_encoder_alone_costs_what_it_costs_in_the_model(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model()
    vit = vit_of(model, 10, "mean", 0.0)
    found, whole = encoder_cost(vit), cost(model, False)
    assert (found.encoder_parameters, found.encode) == (whole.encoder_parameters, whole.encode)
    assert found.parameters == whole.encoder_parameters + 32 * 10 + 10
    assert found.predict == whole.encode + 2 * 32 * 10
    assert found.training_step == 3 * found.predict - 2 * 64 * 48 * 32  # no gradient of the images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"head": "linear", "query_depth": 4, "patch_size": 8, "embed_dim": 96}])
@pytest.mark.parametrize("alone", [False, True])
def test_activations_are_what_autograd_saves(
    tiny_model: Callable[..., AIM],
    images: Callable[..., Tensor],
    sizes: dict[str, Any],
    alone: bool,
    dtype: torch.dtype,
) -> None:
    two_streams = tiny_model(**{"out_channels": 3 * sizes.get("patch_size", 4) ** 2, **sizes})
    model: Any = vit_of(two_streams, 10, "mean", 0.1) if alone else two_streams
    given = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def saved(batch: int) -> int:
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        orders_BL = torch.rand(batch, two_streams.grid[0] * two_streams.grid[1]).argsort(1)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            model.train()(images(batch), *([] if alone else [orders_BL])).square().mean()
        return sum(kept.untyped_storage().nbytes() for where, kept in found.items() if where not in given)

    assert activations(model, dtype.itemsize) == pytest.approx((saved(6) - saved(2)) / 4, rel=0.05)
    copies = (3 * saved(2) - saved(6)) / 2  # which do not grow with the batch: weights in bf16
    assert copies == pytest.approx(2 * sum(p.numel() for p in model.parameters()) * (dtype != torch.float32), rel=0.1)


def test_activation_checkpointing_keeps_the_inputs_of_blocks(tiny_model: Callable[..., AIM]) -> None:
    model, lean = tiny_model(depth=8, query_depth=4), tiny_model(depth=8, query_depth=4, activation_checkpointing=True)
    state, block = 64 * 32 * 4, 64 * (32 * (8 + 6 * 4) + 2 * 128 * 4 + 4 * 2 + 16)
    assert activations(model, 4) - activations(lean, 4) == 11 * block + 5 * state - 14 * state


def adamw(**options: Any) -> Optimization:
    return Optimization(lambda groups: torch.optim.AdamW(groups, lr=1.0, **options), parameter_groups, 1.0, 0.0, 0.05)


def test_the_state_of_an_optimizer_is_what_it_is_said_to_be(tiny_model: Callable[..., AIM]) -> None:
    model = tiny_model()
    optimization = adamw()
    optimizer = optimization.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [kept for state in optimizer.state.values() for kept in state.values() if kept.ndim]
    assert moments(optimization, model) == 2
    assert training_memory(model, 0, 4, 2, ema=False) == sum(t.nbytes for t in tensors)
    assert training_memory(model, 0, 2, 2, ema=True) - training_memory(model, 0, 4, 2, ema=False) == (
        (4 + 2) * sum(p.numel() for p in model.parameters())
    )


def test_an_optimizer_of_other_options() -> None:
    assert (
        moments(
            Optimization(lambda groups: torch.optim.SGD(groups, 0.1), parameter_groups, 1.0, 0.0, 0.0), nn.Linear(2, 2)
        )
        == 0
    )
    with pytest.raises(UserError, match=r"the optimizer does not take .*Invalid beta"):
        moments(adamw(betas=(2.0, 0.9)), nn.Linear(2, 2))
    (problem,) = one("optimizer.optimizer.betas=[0.9,2.0]").problems
    assert problem.startswith("the optimizer does not take optimizer.optimizer as it is set: Invalid beta")


# Mistakes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working directory with everything that the mistakes name."""
    with place_of_mistakes(tmp_path) as place:
        yield place


@pytest.mark.slow
def test_every_mistake_that_a_run_would_tell_of_is_found(place: Path) -> None:
    for name, (typed, words) in MISTAKES.items():
        if name == "no GPU" and torch.cuda.is_available():
            continue
        (problem,) = one(*typed.split()).problems
        assert [word for word in words if word not in problem] == [], problem
        assert "\n" not in problem
    assert not (place / "pwned").exists()


def test_a_mistake_at_one_point_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "model.num_heads=3,5,7", "trainer.batch_size=32,33", "trainer.accumulate=2", "then=[knn]") == 2
    out = capsys.readouterr().out.splitlines()
    assert out[-4:] == [
        "problem: trainer.batch_size=33 must be divisible by processes x trainer.accumulate = 1 x 2 "
        "[model.num_heads=3 trainer.batch_size=33]",
        "problem: model.num_heads=5 must divide model.embed_dim=96 "
        "[model.num_heads=5 trainer.batch_size=32; model.num_heads=5 trainer.batch_size=33]",
        "problem: model.num_heads=7 must divide model.embed_dim=96 "
        "[model.num_heads=7 trainer.batch_size=32; model.num_heads=7 trainer.batch_size=33]",
        "3 problems: 6 runs and 6 evaluations after, 1 process each, about 0.0 GPU-hours",
    ]
    cells = [re.split(r"  +", line)[1:] for line in out[1:13]]
    fine = ["452 k", "732 k", "370 M", "880", "1437", "360", "10", "55.1 MB", "0.0", "new"]
    nothing = [*["-"] * 4, "1437", "360", "10", "-", "-", "new"]
    assert [cells[point] for point in (0, 2, 4, 6)] == [fine, nothing, nothing, nothing]
    assert cells[3] == cells[1] == ["452 k", "452 k", "64.6 M", "-", "1437", "360", "10", "-", "0.0", "new"]
    assert cells[5] == nothing  # of a model that cannot be built nothing can be said


def test_what_all_points_share_is_said_once() -> None:
    points = [[f"permutation={order}", "data=folder", "data.root=nope", "then=[knn]"] for order in ("raster", "zigzag")]
    assert check_sweep(points).problems == [
        "data.root=nope is not a folder: set data.root to the folder that holds the images"
    ]


def test_mistakes_of_several_kinds_are_all_found() -> None:
    checked = one("seed=-1", "device=gpu", "model.num_heads=5", "tracking.uri=http://127.0.0.1:9", "runs_dir=nope")
    for word in ("seed=-1", "device=gpu", "model.num_heads=5", "tracking.uri=http://127.0.0.1:9"):
        assert [problem for problem in checked.problems if word in problem] != []
    assert len(checked.problems) == 4


def test_points_of_the_same_run() -> None:
    checked = check_sweep([["run_name=x", "seed=0"], ["run_name=x", "seed=1"], ["seed=2"]])
    (problem,) = checked.problems
    assert problem == (
        "several points of this sweep are the same run, runs/x: leave run_name to be made of the options, and sweep "
        "over what differs [run_name=x seed=1]"
    )
    assert [row.cost is None for row in checked.rows] == [False, False, False]


def test_a_sweep_needs_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("seed=0,1") == 2
    assert "To sweep over it, add --multirun" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=["], "error: no viable alternative"),
        (["--config-dir", "nope"], "error: --config-dir nope is not a folder"),
        (["--tflops", "0"], "error: --tflops 0 must be positive"),
    ],
)
def test_what_cannot_be_read(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_configuration_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("defaults: [aim_tiny, _self_]\nembed_dim: 48\n")
    assert command("--config-dir", "own", "-m", "model=mine,aim_tiny") == 0
    out = capsys.readouterr().out.splitlines()
    small = AIM(48, 32, 4, embed_dim=48, depth=4, num_heads=3, query_depth=2)
    assert f"  {cost(small, True).parameters / 1000:.0f} k" in out[1]
    assert out[2].startswith("pretrain_digits_aim_tiny_")


def test_options_of_the_launcher_are_told_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "seed=0,1", "hydra/launcher=submitit_local", "hydra.launcher.tasks=3", "model=nope") == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert problems[0].startswith("problem: there is no option hydra.launcher.tasks.")
    assert problems[1].startswith("problem: In 'config': Could not find 'model/nope'")
    assert len(problems) == 2


# Data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes, of which the first of each part cannot be read."""
    for part, count in (("train", 6), ("val", 3)):
        for kind in ("cat", "dog"):
            where = tmp_path / "data" / part / kind
            where.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((40, 40, 3), 9 * number, np.uint8)).save(where / f"{number}.png")
        (tmp_path / "data" / part / "cat" / "0.png").write_bytes(b"no image")
    return tmp_path / "data"


FOLDER = ("data=folder", "data.root=data", "data.image_size=32", "data.patch_size=4", "trainer.batch_size=4")


def test_data_are_counted_and_read(folder: Path) -> None:
    (problem,) = one(*FOLDER, "data.max_unreadable=0").problems
    assert problem.startswith("data/train/cat/0.png cannot be read (cannot identify image file")
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "train" / "cat" / "0.png")
    (problem,) = one(*FOLDER, "data.max_unreadable=0").problems
    assert problem.startswith("data/val/cat/0.png cannot be read")
    checked = one(*FOLDER)  # data.max_unreadable=10
    assert checked.problems == []
    (row,) = checked.rows
    assert row.cells(120.0)[5:8] == ["12", "6", "2"]


def test_what_follows_is_checked_before_anything_is_trained(folder: Path) -> None:
    assert one(*FOLDER, "then=[knn,linprobe,finetune]", "seed=1").problems == [
        "ks=[10, 20, 30], but there are 12 labelled training images: lower task.ks [then knn]",
        "trainer.batch_size=4096 images per step, but the data set has 12: choose a batch between 1 and that "
        "[then linprobe]",
        "trainer.batch_size=1024 images per step, but the data set has 12: choose a batch between 1 and that "
        "[then finetune]",
    ]
    shutil.rmtree(folder / "val")
    problems = one(*FOLDER, "then=[knn]", "task.online_knn=null").problems
    assert problems[0].startswith("these data hold no images out")
    assert problems[0].endswith("[then knn]")


def broken(**_: Any) -> Callable[[Image.Image], Tensor]:
    """A transform whose fault shows when it is used."""

    def transform(image: Image.Image) -> Tensor:
        raise ValueError(f"no {image.size}")

    return transform


def test_augmentation_is_tried() -> None:
    with mock.patch("semaim.data.transforms.finetuning", broken):
        assert one("task=finetune", "checkpoint=random").problems == ["ValueError: no (32, 32)"]


# Checkpoints and run folders


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a short pretraining was made: runs/run."""
    place = tmp_path_factory.mktemp("made")
    short = ("tracking=none", "task.online_knn=null", "trainer.max_steps=2")
    with contextlib.chdir(place):
        go(Path("runs"), "run_name=run", *short, "model.embed_dim=48")
    return place


SAME = ("run_name=run", "model.embed_dim=48", "tracking=none", "task.online_knn=null")


def test_how_far_a_run_is(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = contents(made)
    finished, more = one(*SAME, "trainer.max_steps=2"), one(*SAME)
    assert (finished.problems, more.problems) == ([], [])
    assert (finished.rows[0].state, finished.rows[0].gpu_hours(1.0)) == ("finished", 0.0)
    assert more.rows[0].state == "continues from step 2"
    anew = one(*SAME[1:]).rows[0]
    assert anew.state == "new"
    assert more.rows[0].gpu_hours(1.0) == pytest.approx(anew.gpu_hours(1.0) * (880 - 2) / 880)
    assert contents(made) == before


def test_a_run_of_another_configuration_cannot_continue(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    checked = one(*SAME, "trainer.batch_size=16", "seed=5", "trainer.log_every_steps=3")
    (problem,) = checked.problems
    assert problem.startswith(f"the run in {made}/runs/run was started with another configuration: seed: 0 -> 5; ")
    assert "; trainer.batch_size: 32 -> 16; Give this run another name with run_name=..." in problem
    assert "log_every_steps" not in problem
    (row,) = checked.rows
    assert row.state == "of another configuration"
    assert row.cost is not None  # the rest is looked at all the same
    assert row.cost.steps == 20 * 89


HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_run_that_is_running_is_left_alone(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    lock = tmp_path / "runs" / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert one(*SAME).problems == [f"the run folder {tmp_path}/runs/run is in use: wait for that run, or stop it"]
        holder.communicate(b"\n")
    assert one(*SAME).problems == []


def test_an_encoder_is_known_by_its_checkpoint(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = contents(made)
    real = AIM(48, 32, 4, embed_dim=48, depth=4, num_heads=3, query_depth=2)
    for task in ("knn", "linprobe", "finetune", "fewshot", "features"):
        checked = one(f"task={task}", "checkpoint=runs/run")
        assert checked.problems == []
        assert checked.rows[0].cost is not None
        assert checked.rows[0].cost.encoder_parameters == cost(real, False).encoder_parameters
    assert one("task=knn", "checkpoint=runs/run", "task.source.ema=true").problems == [
        "checkpoint=runs/run holds no moving average: its run had trainer.ema=false"
    ]
    assert one("model.embed_dim=48", "checkpoint=runs/run").problems == []  # pretraining from there
    saved = made / "runs" / "run" / "checkpoints" / "step_00000002.pt"
    assert contents(made) == before
    with mock.patch.object(Path, "read_bytes", return_value=b"0 other"):  # another checksum is written beside it
        (problem,) = one("task=knn", f"checkpoint={saved.parent}").problems
    assert problem.startswith(f"every checkpoint in {saved.parent} is damaged")


def test_a_large_encoder_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for task in ("knn", "finetune"):
        (row,) = one(f"task={task}", "checkpoint=random", "model=aim_huge").rows
        assert row.cost is not None
        assert row.cost.parameters > 629e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights alone are 2.5 GB


def test_an_encoder_of_timm() -> None:
    checked = one("task=knn", "checkpoint=timm:vit_tiny_patch16_224", "data.image_size=224", "data.patch_size=16")
    assert checked.problems == []
    assert checked.rows[0].cost is not None
    assert checked.rows[0].cost.parameters == 5_524_416 - 197 * 192  # without positions
    (problem,) = one("task=knn", "checkpoint=timm:vit_tiny_patch16_224").problems
    assert "is for images of 224x224, the data are of 32x32" in problem


# Tracking and disk


class Health(http.server.BaseHTTPRequestHandler):
    """A server that says how it is."""

    status = 200
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Its address."""
    Health.asked.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_a_tracking_server_is_asked_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [[f"seed={seed}", f"tracking.uri={server}/"] for seed in (0, 1)]
    assert check_sweep(points).problems == []
    assert Health.asked == ["/health", "/api/2.0/mlflow/experiments/search"]
    monkeypatch.setattr(Health, "status", 503)
    assert check_sweep(points).problems == [
        f"tracking.uri={server}/: the server answers 503 Service Unavailable; mend it, or set tracking=none"
    ]


def test_a_tracking_server_that_wants_to_know_who_asks(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLflow's basic-auth app answers; to its /health it answers everybody."""
    mend = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
    monkeypatch.setattr(Health, "status", 401)
    assert store.unreachable(server) == f"the server wants a password: {mend}"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    assert store.unreachable(server) == f"the server does not know user ada with this password: {mend}"
    monkeypatch.setattr(Health, "status", 403)
    assert store.unreachable(server) == (
        "the server does not let user ada do this: its administrator must give the permission EDIT"
    )


def test_a_tracking_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one("tracking.uri=http://127.0.0.1:9").problems == [
        "tracking.uri=http://127.0.0.1:9: no server answers ([Errno 111] Connection refused); start it, or set "
        "tracking=none"
    ]
    monkeypatch.setattr(store, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        assert one(uri).problems == [f"{uri}: no server answers (timed out); start it, or set tracking=none"]


def test_a_tracking_file_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    assert one("tracking.uri=sqlite:///new/mlflow.db").problems == []
    assert one("tracking.uri=sqlite:///text.txt/mlflow.db").problems == [
        "tracking.uri=sqlite:///text.txt/mlflow.db: this file cannot be written; choose another, or set tracking=none"
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["text.txt"]


def test_checkpoints_must_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [["then=[finetune]"]]
    finetune = 4 * (452_352 + 10 * 97 + 65 * 96) * 3 * 2  # weights and moments, one kept and one more
    needed = 4 * 731_760 * 3 * 3 + finetune
    disk = mock.Mock(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert check_sweep(points).problems == []
    disk.free -= 1
    (problem,) = check_sweep(points).problems
    assert problem.startswith("the checkpoints will take 37.")
    assert "make room" in problem


# Launchers


@pytest.mark.usefixtures("two_nodes")
def test_several_processes_share_a_batch() -> None:
    launcher = SLURM | {"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2}
    checked = one(launcher=launcher)
    assert (checked.problems, checked.notes, checked.processes) == ([], [], 4)
    assert str(checked).splitlines()[-1] == "OK: 1 run, 4 processes each, about 0.0 GPU-hours"
    (row,) = checked.rows
    real = AIM(48, 32, 4, embed_dim=96, depth=4, num_heads=3, query_depth=2)
    assert row.cost is not None
    assert row.cost.memory == 731_760 * (4 * 4 + 2) + 8 * activations(real, 2)  # 8 images each, bf16 on GPUs
    assert one("trainer.batch_size=30", launcher=launcher).problems == [
        "trainer.batch_size=30 must be divisible by processes x trainer.accumulate = 4 x 1"
    ]


@pytest.mark.usefixtures("two_nodes")
def test_gpus_and_processes_go_together() -> None:
    assert one("device=cuda", launcher=SLURM | {"gpus_per_node": None}).problems == [
        "device=cuda, but the launcher asks for no GPU: set hydra.launcher.gpus_per_node"
    ]
    two = SLURM | {"tasks_per_node": 2}
    assert one(launcher=two).problems == ["hydra.launcher.tasks_per_node=2 processes would share 1 GPUs: lower it"]
    assert one("device=cpu", launcher=two).problems == []
    assert one(launcher=SLURM | {"gpus_per_node": 2}).notes == [
        "of 2 GPUs on each node, 1 process will use one each: hydra.launcher.tasks_per_node=2 would use them all"
    ]


@pytest.mark.usefixtures("two_nodes")
def test_a_time_limit_that_is_too_short_is_noted() -> None:
    long = ("model=aim_huge", "trainer.epochs=10000")
    (note,) = one(*long, launcher=SLURM | {"timeout_min": 60, "max_num_timeout": 2}).notes
    assert re.fullmatch(
        r"the longest run takes about 14 h \d\d min, but is ended after 3 h 00 min: raise hydra.*", note
    )
    assert one(*long, launcher=SLURM | {"timeout_min": 60, "max_num_timeout": 20}).notes == []


def test_there_must_be_a_slurm_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert one(launcher=SLURM).problems == [
        "the launcher submits to SLURM, but there is no SLURM here (no sinfo): do this on a login node"
    ]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert one(launcher=SLURM).problems == [
        "the launcher submits to SLURM, but SLURM does not answer: see what sinfo says"
    ]
    assert one(launcher={"_target_": "LocalLauncher", "tasks_per_node": 2}).problems == []


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:2", 2),
        ("(null)", 0),
        ("gpu", 1),
        ("gpu:a100", 1),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:nvidia_h100_80gb_hbm3:4(S:0,2),gpu:v100:2,nvme:1", 6),
        ("craynetwork:4,gpu:1", 1),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert gpus_in(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("30:00", 30), ("8:00:00", 480), ("1-00:00:00", 1440), ("2-12:30:00", 3630)],
)
def test_time_limits(limit: str, minutes: int | None) -> None:
    assert minutes_in(limit) == minutes


def test_nodes_that_sinfo_tells_of() -> None:
    node = Node("main", True, 2, 4, 8000, None, True)
    assert nodes_of(SINFO) == [node, node]
    states = (
        "idle",
        "mixed",
        "allocated",
        "idle~",
        "reserved",
        "down",
        "down*",
        "drained",
        "draining",
        "idle*",
        "failing",
    )
    nodes = nodes_of("\n".join(f"gpu|n1|gpu:a100:8|128+|1031000+|2-00:00:00|{state}" for state in states))
    assert nodes[0] == Node("gpu", False, 8, 128, 1_031_000, 2880, True)
    assert [node.up for node in nodes] == [True] * 5 + [False] * 6


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({}, []),
        ({"partition": None}, []),
        ({"nodes": 2, "tasks_per_node": 2, "gpus_per_node": 2, "cpus_per_task": 2, "timeout_min": 9999}, []),
        ({"mem_gb": 7}, []),
        ({"partition": "gpu"}, ["hydra.launcher.partition=gpu: there is no such partition; choose from main"]),
        ({"nodes": 3}, ["hydra.launcher.nodes=3: partition main has 2, ask for fewer"]),
        (
            {"gpus_per_node": 4},
            ["hydra.launcher.gpus_per_node=4: partition main has 0 nodes with 4 GPUs (at most 2), 1 must have them"],
        ),
        (
            {"gpus_per_node": None, "gres": "gpu:a100:3"},
            ["hydra.launcher.gres=gpu:a100:3: partition main has 0 nodes with 3 GPUs (at most 2), 1 must have them"],
        ),
        (
            {"cpus_per_task": 3, "tasks_per_node": 2, "mem_gb": 8, "nodes": 2},
            [
                "hydra.launcher.cpus_per_task=3 x tasks_per_node=2: partition main has 0 nodes with 6 CPUs (at most "
                "4), 2 must have them",
                "hydra.launcher.mem_gb=8: partition main has 0 nodes with 8192 MB (at most 8000), 2 must have them",
            ],
        ),
    ],
)
def test_what_a_cluster_does_not_grant(options: dict[str, Any], problems: list[str]) -> None:
    assert not_granted(asked(**options), nodes_of(SINFO)) == problems


def test_nodes_out_of_service_time_limits_and_several_partitions() -> None:
    nodes = nodes_of(SINFO.replace("*", "").replace("infinite|idle\nmain|n2", "1:00:00|down*\nshort|n2"))
    assert [(node.partition, node.minutes, node.up) for node in nodes] == [("main", 60, False), ("short", None, True)]
    nodes = [replace(nodes[0], up=True), nodes[0], nodes[1]]
    assert not_granted(asked(nodes=2, timeout_min=90), nodes) == [
        "hydra.launcher.timeout_min=90: partition main allows 60 minutes, lower it",
        "hydra.launcher.nodes=2: partition main has 1 (1 more are out of service), ask for fewer",
    ]
    assert not_granted(asked(partition=None), nodes) == [
        "hydra.launcher.partition must be given, since none is the default; choose from main, short"
    ]
    assert not_granted(asked(partition="main,short", timeout_min=90), nodes) == []  # short grants it


def test_nodes_must_have_everything_together() -> None:
    gpus, cpus = Node("main", True, 4, 8, 8000, None, True), Node("main", True, 0, 64, 8000, None, True)
    assert not_granted(asked(gpus_per_node=4, cpus_per_task=8), [gpus, cpus]) == []
    assert not_granted(asked(gpus_per_node=4, cpus_per_task=16), [gpus, cpus]) == [
        "hydra.launcher.cpus_per_task=16 x tasks_per_node=1: partition main has 0 nodes with 16 CPUs (at most 8), 1 "
        "must have them"
    ]


def test_the_whole_command_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    sweep = ("-m", "hydra/launcher=slurm", "seed=0,1", "hydra.launcher.cpus_per_task=2")

    def check_there(*words: str) -> tuple[int, list[str]]:
        typed = [sys.executable, "-m", "semaim.preflight.check", *sweep, *words]
        done = subprocess.run(
            typed, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    code, said = check_there("hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=2")
    assert (code, said[-1]) == (0, "OK: 2 runs, 4 processes each, about 0.0 GPU-hours")
    assert [re.split(r"  +", line)[4] for line in said[1:3]] == ["880", "880"]
    code, said = check_there(
        "hydra.launcher.partition=short", "hydra.launcher.gpus_per_node=4", "hydra.launcher.mem_gb=8", "seed=0,1"
    )
    assert code == 2
    assert said[4:] == [
        "problem: hydra.launcher.timeout_min=1440: partition short allows 5 minutes, lower it",
        "problem: hydra.launcher.gpus_per_node=4: partition short has 0 nodes with 4 GPUs (at most 2), 1 must "
        "have them",
        "problem: hydra.launcher.cpus_per_task=2 x tasks_per_node=4: partition short has 0 nodes with 8 CPUs (at most "
        "4), 1 must have them",
        "problem: hydra.launcher.mem_gb=8: partition short has 0 nodes with 8192 MB (at most 8000), 1 must have them",
        "4 problems: 2 runs, 4 processes each, about 0.0 GPU-hours",
    ]
    assert list(tmp_path.iterdir()) == []
    assert cluster.squeue() == {}
