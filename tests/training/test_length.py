"""The length of a training by epochs and by operations, and what everything that depends on it says.

The runs have 179 images, so 11 steps of 16 in an epoch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate

from semaim.checkpoints import store
from semaim.config.run_spec import compose_run_spec
from semaim.errors import UserError
from semaim.preflight.command_line import check_command_line
from semaim.runs.folder import RunFolder
from semaim.tasks.pretrain import Pretraining
from semaim.training.extension import check_extension
from semaim.training.optimizers import lr_at
from semaim.training.settings import Length, TrainerSettings
from support.commands import SMALL, journal, losses
from support.evaluating import assert_same_bits
from support.in_process import go, run_here

SHORT = (*SMALL, "data.source.val_fraction=0.9", "trainer.warmup_epochs=0.5", "trainer.save_every_steps=1")
SHORT += ("trainer.ema=true", "model.drop_path=0.1")
KNN = ("evaluators=[knn]", "task.evaluators.knn.max_queries=20", "task.evaluators.knn.every_epochs=1")
BATCH, STEPS = 16, 15


def trainer(*options: str) -> TrainerSettings:
    return instantiate(
        compose_run_spec(["trainer.warmup_epochs=0", f"trainer.batch_size={BATCH}", *options]).cfg.trainer
    )


@pytest.fixture(scope="module")
def step_cost() -> int:
    """Operations of a step of `SHORT`."""
    task = instantiate(compose_run_spec(SHORT).cfg.task)
    assert isinstance(task, Pretraining)
    spent = task.spent
    assert task.step_flops() == spent.training_step == 3 * spent.predict + spent.encode - 8 * 8 * 2 * 48 * 32  # the map
    return spent.training_step * BATCH


@pytest.fixture(scope="module")
def flops(step_cost: int) -> str:
    """An option that pays for 15 steps and a part of one."""
    return f"trainer.flops={STEPS * step_cost + step_cost - 1}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, flops: str) -> Path:
    return go(tmp_path_factory.mktemp("runs"), *SHORT, flops, *KNN, "run_name=undisturbed")


def test_the_steps_are_those_that_the_operations_pay_for() -> None:
    assert trainer("trainer.epochs=3").length(11, None) == Length(11, 33, 0, 33)
    for asked, steps in ((16_000, 10), (15_999, 9), (17_599, 10), (1.6e3, 1), (6.38e19, 39_875_000_000_000_000)):
        length = trainer(f"trainer.flops={asked}").length(11, 100)  # 1600 a step
        assert length == Length(11, steps, 0, steps)
    length = trainer("trainer.flops=16000", "trainer.max_steps=4", "trainer.warmup_epochs=0.5").length(11, 100)
    assert length == Length(11, 10, 6, 4)
    assert length.epochs == 10 / 11


def test_they_replace_the_epochs_of_a_file() -> None:
    assert (trainer("trainer.flops=1e9").epochs, trainer("trainer.flops=1e9").flops) == (None, 1e9)
    assert (trainer("trainer.flops=null").epochs, trainer().flops) == (20, None)


@pytest.mark.parametrize(("flops", "image_flops", "warmup", "message"), [
    ("1e3", 100, 0, "trainer.flops=1e3 is less than the 1.6 kFLOP of one step (100 FLOP per image, "
     "trainer.batch_size=16): give at least trainer.flops=1600"),
    ("1.6e4", 100, 1.5, "trainer.flops=1.6e4 is 10 steps (0.909 epochs), less than the warm-up, "
     "trainer.warmup_epochs=1.5: give more, or lower trainer.warmup_epochs"),
    ("1e18", None, 0, "trainer.flops=1e18: this task does not count its operations (step_flops), so give "
     "trainer.epochs and trainer.flops=null"),
])  # fmt: skip
def test_what_is_too_short_is_one_message(flops: str, image_flops: int | None, warmup: float, message: str) -> None:
    settings = trainer(f"trainer.flops={flops}", f"trainer.warmup_epochs={warmup}")
    with pytest.raises(UserError) as caught:
        settings.length(11, image_flops)
    assert str(caught.value) == message


def test_the_command_refuses_it_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(tmp_path, *SHORT, "trainer.flops=1e6") == 2
    assert run_here(tmp_path, *SHORT, "trainer.flops=1e12", "trainer.epochs=3") == 2
    assert run_here(tmp_path, "task=linprobe", "checkpoint=random", "recipe=short", "trainer.flops=1e3") == 2
    said = capsys.readouterr()
    found = [line for line in (said.out + said.err).splitlines() if line.startswith("error: ")]
    assert found[0].startswith("error: trainer.flops=1e6 is less than the ")
    assert found[1] == (
        "error: trainer.epochs=3 and trainer.flops=1e12 both give the length of the training: leave one out "
        "(trainer.flops=null)"
    )
    assert found[2].startswith("error: trainer.flops=1e3 is less than the ")
    assert len(found) == 3
    assert not list(tmp_path.iterdir())


def test_a_run_ends_within_an_epoch_as_at_its_end(undisturbed: Path) -> None:
    folder = RunFolder(undisturbed)
    assert list(losses(undisturbed)) == list(range(1, STEPS + 1))
    assert list(folder.evaluations()) == ["0", "11", "15"]
    assert store.list_steps(folder.checkpoints)[-1][0] == STEPS
    assert folder.config()["trainer"]["epochs"] is None
    saved = store.newest(folder.checkpoints)
    assert saved is not None
    assert saved["data_position"]["epochs"] == STEPS / 11
    lines = [line["metrics"] for line in journal(undisturbed) if "train/lr" in line.get("metrics", {})]
    assert [line["train/epoch"] for line in lines] == pytest.approx([step / 11 for step in range(1, STEPS + 1)])
    expected = [lr_at(step, 1.6e-2 * BATCH / 256, 0.0, round(0.5 * 11), STEPS) for step in range(STEPS)]
    assert [line["train/lr"] for line in lines] == expected


def test_continued_within_its_last_epoch_it_is_equal_to_the_bit(tmp_path: Path, undisturbed: Path, flops: str) -> None:
    command = (*SHORT, flops, *KNN, "run_name=continued")
    stopped = go(tmp_path, *command, "trainer.max_steps=13")
    assert max(losses(stopped)) == 13
    go(tmp_path, *command)
    assert losses(stopped) == losses(undisturbed)
    this, that = (store.newest(RunFolder(each).checkpoints) for each in (stopped, undisturbed))
    assert this is not None
    assert that is not None
    for part in ("model", "ema", "optimizer", "rng", "step", "loss"):
        assert_same_bits(this[part], that[part], part)


def test_the_check_knows_the_steps(tmp_path: Path, flops: str) -> None:
    (row,) = check_command_line([*SHORT, flops, f"runs_dir={tmp_path}"]).rows
    assert row.cost is not None
    assert (row.cost.steps, row.cost.images) == (STEPS, STEPS * BATCH)
    (row,) = check_command_line([*SHORT, "trainer.epochs=2", f"runs_dir={tmp_path}"]).rows
    assert row.cost is not None
    assert row.cost.steps == 22


def test_evaluations_that_follow_have_their_own_length(tmp_path: Path, flops: str) -> None:
    rows = check_command_line([*SHORT, flops, "then=[linprobe]", f"runs_dir={tmp_path}"]).rows
    assert [row.cost and row.cost.steps for row in rows] == [STEPS, 20 * 2]  # recipe=short: 20 epochs of 2 x 64 images


def test_a_linear_probe_can_have_it_too(tmp_path: Path) -> None:
    command = ["task=linprobe", "checkpoint=random", "recipe=short", "data.source.val_fraction=0.9"]
    cost = check_command_line([*command, f"runs_dir={tmp_path}"]).rows[0].cost
    assert cost is not None
    half = f"trainer.flops={cost.flops * cost.images // 2}"
    cost = check_command_line([*command, half, f"runs_dir={tmp_path}"]).rows[0].cost
    assert cost is not None
    assert cost.steps == 20


def test_an_extension_is_longer_by_the_same_measure(undisturbed: Path, step_cost: int, tmp_path: Path) -> None:
    def extend(*options: str) -> list[str]:
        spec = compose_run_spec([f"extend={undisturbed}", f"runs_dir={tmp_path}", *options])
        check_extension(RunFolder(Path(spec.config["run_dir"])), spec.config)
        return list(spec.overrides)

    again = r"extend=\S+ has trained for \d+ already; give more, such as trainer\.flops="
    with pytest.raises(UserError, match=rf"^trainer\.flops=\d+: {again}"):
        extend()
    with pytest.raises(UserError, match=r"^trainer\.epochs=9 and trainer\.flops=.* both give the length"):
        extend("trainer.epochs=9")
    with pytest.raises(UserError, match=rf"^trainer\.epochs=9: {again}"):
        extend("trainer.epochs=9", "trainer.flops=null")
    longer = go(tmp_path, f"extend={undisturbed}", f"trainer.flops={18 * step_cost}", "run_name=longer")
    assert list(losses(longer)) == [16, 17, 18]
