"""Runs in a Jupyter kernel: the notebook of the documentation, and an interrupt."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

from support.commands import SMALL
from support.paths import ROOT
from support.waiting import PATIENCE

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_notebook_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    assert len(cells) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
def test_notebook_of_the_documentation(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("trainer.epochs=4", "trainer.epochs=1")
    NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (run,) = (tmp_path / "runs").glob("pretrain_*")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output["data"]["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert texts[0].startswith(f"finished: runs/{run.name}\n  loss ")
    assert texts[1].startswith("(torch.Size([6, 64]), torch.Size([6, 64, 48]), tensor(")
    assert 20 < float(texts[2]) < 100  # accuracy of k-NN
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    shown = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "step 44/44" in shown
    assert len(shown.splitlines()) < 100


@contextmanager
def kernel(folder: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), startup_timeout=PATIENCE)
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def outputs_of(client: BlockingKernelClient, code: str, at_step: Any = None) -> tuple[str, list[str]]:
    """What a cell writes, and the lines shown for its error; `at_step` is called once, when it shows a step."""
    request, text, error, waiting = client.execute(code), "", [], at_step is not None
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            continue
        content = message["content"]
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return text, error
        text += content.get("text", "") or content.get("data", {}).get("text/plain", "")
        error = content.get("traceback", error)
        if waiting and re.search(r"step \d+/", text):
            waiting = False
            at_step()
    raise AssertionError(f"the cell has not ended:\n{text}")


def test_interrupt_of_the_kernel_saves_and_the_same_call_continues(tmp_path: Path) -> None:
    options = ", ".join(map(repr, (*SMALL, "run_name=run")))
    with kernel(tmp_path) as (manager, client):
        outputs_of(client, "import semaim")
        text, error = outputs_of(client, f"semaim.launch({options})", manager.interrupt_kernel)
        assert len(error) == 1
        stopped = re.fullmatch(
            r"Interrupted: stopped by SIGINT after step (\d+), which is saved; the same call continues", error[0]
        )
        assert stopped, text
        last = int(stopped[1]) + 2
        text, error = outputs_of(
            client, f"semaim.launch({options}, 'trainer.max_steps={last}').history().index.tolist()"
        )
        assert not error
        assert f"step {last}/{last}" in text
        assert str([*range(1, last + 1)]) in text
        text, error = outputs_of(client, "semaim.launch('model=aim_tny')")
        assert [line.partition(":")[0] for line in error] == ["UserError"]
