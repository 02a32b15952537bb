"""The linear probe on two processes: its accuracy is that of the heads that are saved, measured by one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semaim.checkpoints import store
from semaim.evaluation.accuracy import named
from support.commands import together
from support.evaluating import surroundings
from support.probing import PROBE, probe


@pytest.mark.parametrize("choice", ["task.base_lrs=null", "task.base_lrs=[0.1,0.5]"])
def test_two_processes_measure_what_one_measures_of_the_saved_heads(
    pretrained: Path, tmp_path: Path, choice: str
) -> None:
    """Batches of four make the statistics that each process has computed very different."""
    little = ("trainer.batch_size=8", "trainer.max_steps=6", "task.evaluate_every_epochs=1", choice)
    together(tmp_path, *PROBE, *little, "run_name=two", f"checkpoint={pretrained}")
    folder = tmp_path / "runs" / "two"
    measured = json.loads((folder / "evaluations.json").read_text())["6"]
    task, saved = probe(pretrained, *little), store.newest(folder / "checkpoints")
    assert saved is not None
    task.model.load_state_dict(saved["model"])
    task.model.eval()
    with surroundings(tmp_path) as alone:
        found = {f"val/{name}": each for name, each in task._predictions(task.held_out, alone).items()}
        if task.selection_images is not None:
            chosen = task._predictions(task.selection_images, alone)
            found |= {f"holdout/{name}": each for name, each in chosen.items()}
    assert measured == named(found)
