"""The training loop: reference losses, accumulation, precision, moving average, journal entries of a step."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from semaim.errors import UserError
from semaim.training.settings import TrainerSettings
from support.commands import journal, losses, measured
from support.in_process import composed, run

# The first ten losses of `SMALL` at seed 0. A refactoring must not change them; a commit that changes results says so
# and why. Between kinds of CPU they differ by rounding.
REFERENCE_LOSSES = (
    1.115010142326355,
    1.056288480758667,
    0.9960090517997742,
    0.9981881976127625,
    0.9965418577194214,
    0.9611241221427917,
    0.9693614840507507,
    0.9411098957061768,
    0.9337289929389954,
    0.9406911134719849,
)


def weights(folder: Path, part: str = "model") -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    return torch.load(newest, weights_only=True)[part]


def trainer(*overrides: str) -> TrainerSettings:
    return instantiate(composed(*overrides).trainer)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("plain"), "trainer.max_steps=10", "trainer.warmup_epochs=0")


def test_reference_losses(plain_run: Path) -> None:
    assert list(losses(plain_run).values()) == pytest.approx(REFERENCE_LOSSES, rel=2e-6)


def test_the_journal_contains_the_logged_values_of_a_step(plain_run: Path) -> None:
    lines = [line for line in journal(plain_run) if "metrics" in line]
    assert [line["step"] for line in lines] == list(range(1, 11))
    peak, total = 1.6e-2 * 16 / 256, 20 * 89
    for line in lines:
        metrics = line["metrics"]
        done = line["step"] - 1
        assert metrics["train/lr"] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi * done / total)), rel=1e-12)
        assert metrics["train/epoch"] == pytest.approx(line["step"] / 89)
        assert metrics["train/images_per_second"] > 0
        assert 0 <= metrics["data/wait"] <= 1
        assert metrics["train/grad_norm"] > 0


def test_another_seed_gives_other_losses(tmp_path: Path, plain_run: Path) -> None:
    other = run(tmp_path, "trainer.max_steps=1", "trainer.warmup_epochs=0", "seed=1")
    assert losses(other)[1] != losses(plain_run)[1]


@pytest.mark.parametrize("accumulate", [2, 16])
def test_micro_batches_give_the_losses_of_the_whole_batch(tmp_path: Path, plain_run: Path, accumulate: int) -> None:
    folder = run(tmp_path, "trainer.max_steps=5", "trainer.warmup_epochs=0", f"trainer.accumulate={accumulate}")
    for step, loss in losses(folder).items():
        assert loss == pytest.approx(losses(plain_run)[step], rel=1e-5)


def test_checkpointed_activations_change_no_bit(tmp_path: Path, plain_run: Path) -> None:
    folder = run(tmp_path, "trainer.max_steps=10", "trainer.warmup_epochs=0", "trainer.activation_checkpointing=true")
    assert losses(folder) == losses(plain_run)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(tmp_path: Path, plain_run: Path) -> None:
    folder = run(tmp_path, "trainer.max_steps=3", "trainer.warmup_epochs=0", "trainer.compile=true")
    for step, loss in losses(folder).items():
        assert loss == pytest.approx(losses(plain_run)[step], rel=1e-4)


def test_bf16_is_close_but_not_equal(tmp_path: Path, plain_run: Path) -> None:
    folder = run(tmp_path, "trainer.max_steps=3", "trainer.warmup_epochs=0", "trainer.precision=bf16")
    for step, loss in losses(folder).items():
        assert loss == pytest.approx(losses(plain_run)[step], rel=2e-2)
    assert losses(folder)[1] != losses(plain_run)[1]


def test_fp16_scales_its_loss_and_saves_the_scale(tmp_path: Path, plain_run: Path) -> None:
    folder = run(tmp_path, "trainer.max_steps=2", "trainer.warmup_epochs=0", "trainer.precision=fp16")
    assert losses(folder)[1] == pytest.approx(losses(plain_run)[1], rel=1e-2)
    assert weights(folder, "scaler")["scale"] == 65536.0


def test_precision_auto_is_float32_on_the_cpu() -> None:
    assert trainer().dtype(torch.device("cpu")) == torch.float32
    assert trainer("trainer.precision=bf16").dtype(torch.device("cpu")) == torch.bfloat16


def test_the_moving_average_follows_its_schedule(tmp_path: Path) -> None:
    ramp = trainer("trainer.ema_ramp_epochs=100")
    assert ramp.ema_decay_at(0) == 0.999
    assert ramp.ema_decay_at(50) == pytest.approx(0.99945)
    assert ramp.ema_decay_at(100) == ramp.ema_decay_at(700) == pytest.approx(0.9999)
    # With a constant decay d: average = d * start + (1 - d) * weights after one step from the start.
    options = (
        "trainer.ema=true",
        "trainer.ema_decay=[0.5,0.5]",
        "trainer.warmup_epochs=0",
        "trainer.save_every_steps=1",
    )
    folder = run(tmp_path, "trainer.max_steps=2", *options)
    first, second = (torch.load(folder / "checkpoints" / f"step_{step:08d}.pt", weights_only=True) for step in (1, 2))
    for name, value in second["ema"].items():
        torch.testing.assert_close(value, 0.5 * first["ema"][name] + 0.5 * second["model"][name])


def test_the_semantic_map_can_follow_the_moving_average(tmp_path: Path, plain_run: Path) -> None:
    options = ("trainer.ema=true", "semantic_map.source=ema", "trainer.warmup_epochs=0", "trainer.max_steps=10")
    found, online = losses(run(tmp_path, *options)), losses(plain_run)
    assert found[1] == online[1], "before the first update both are the same"
    assert found != online, "later their maps differ"


@pytest.mark.parametrize("kind", ["gap", "self"])
def test_other_semantic_maps_train(tmp_path: Path, plain_run: Path, kind: str) -> None:
    folder = run(tmp_path, "trainer.max_steps=2", "trainer.warmup_epochs=0", f"semantic_map={kind}")
    assert losses(folder)[1] != losses(plain_run)[1]


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    """With a tiny bound the gradient that AdamW receives has that norm."""
    bound = 1e-3
    folder = run(tmp_path, "trainer.max_steps=1", "trainer.warmup_epochs=0", f"trainer.clip_grad={bound}")
    moments = torch.load(folder / "checkpoints" / "step_00000001.pt", weights_only=True)["optimizer"]["state"]
    # After the first step AdamW's first moment is (1 - 0.9) times the gradient.
    norm = math.sqrt(sum(float((state["exp_avg"] / 0.1).square().sum()) for state in moments.values()))
    assert norm == pytest.approx(bound, rel=1e-3)


def test_checkpoints_keep_the_last_two_and_milestones(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        "trainer.batch_size=1437",
        "trainer.accumulate=3",
        "model.depth=1",
        "model.query_depth=1",
        "model.embed_dim=8",
        "trainer.max_steps=5",
        "trainer.milestone_every_epochs=2",
    )
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    assert kept == [f"step_{step:08d}.pt" for step in (2, 4, 5)]


def test_pretraining_starts_from_given_weights(tmp_path: Path, plain_run: Path) -> None:
    folder = run(tmp_path, "trainer.max_steps=1", f"checkpoint={plain_run}")
    for name, value in weights(folder).items():  # the first learning rate of the warm-up is 0
        assert torch.equal(value, weights(plain_run)[name]), name


def test_online_knn_before_during_and_after(tmp_path: Path) -> None:
    knn = ("evaluators=[knn]", "task.evaluators.knn.every_epochs=1", "task.evaluators.knn.ks=[10]")
    knn += ("task.evaluators.knn.max_bank=200", "task.evaluators.knn.max_queries=50")
    folder = run(tmp_path, "trainer.batch_size=718", "trainer.max_steps=4", *knn)
    found = json.loads((folder / "evaluations.json").read_text())
    assert sorted(found) == ["0", "2", "4"]
    assert set(found["0"]) == {"online/knn_10_cls", "online/knn_10_mean"}
    in_journal = {line["step"]: line["metrics"] for line in measured(folder) if "online/" in str(line)}
    assert {str(step): metrics for step, metrics in in_journal.items()} == found
    result = json.loads((folder / "status.json").read_text())["result"]
    assert result["online/knn_10_mean_before"] == found["0"]["online/knn_10_mean"]
    assert result["online/knn_10_mean_after"] == found["4"]["online/knn_10_mean"]


def test_other_data_under_the_same_name_are_refused(tmp_path: Path, plain_run: Path) -> None:
    shutil.copytree(plain_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"  # only the number of images differs, as in a changed folder
    config.write_text(config.read_text().replace("val_fraction: 0.2", "val_fraction: 0.5"))
    with pytest.raises(UserError, match=r"was trained on 1437 images, these data \(data.root\) have 898"):
        run(tmp_path, "trainer.max_steps=11", "trainer.warmup_epochs=0", "data.source.val_fraction=0.5")
