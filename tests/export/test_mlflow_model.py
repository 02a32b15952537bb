"""A logged MLflow model of an encoder loads without semaim installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from semaim.cli import main
from semaim.config.source_run import run_folder_of
from semaim.export.mlflow_model import tracked_run
from semaim.tracking.store import SQLITE
from support import foreign_files
from support.commands import succeed
from support.exporting import TWO_STEPS, images, stored
from support.in_process import go

LOAD = """
import sys
sys.modules["semaim"] = None  # as where it is not installed
import json, torch
{snippet}
images = torch.load({images!r})
with torch.no_grad():
    features = model.eval()(images)
assert torch.equal(features, mlflow.pytorch.load_model({run!r}).eval()(images))
found = mlflow.pyfunc.load_model({model!r}).predict(images.numpy())
info = mlflow.models.get_model_info({model!r})
print(json.dumps({{"type": type(model).__name__, "features": features.tolist(), "predicted": found.tolist(),
    "inputs": str(info.signature.inputs), "outputs": str(info.signature.outputs), "run": info.run_id,
    "example": list(mlflow.models.Model.load({model!r}).load_input_example().shape)}}))
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a pretraining that is tracked in a real store."""
    place = tmp_path_factory.mktemp("tracked")
    tracking = ("tracking=mlflow", f"tracking.uri={SQLITE}{place}/mlflow.db", "tracking.system_metrics_seconds=0")
    return go(place, *TWO_STEPS[1:], *tracking, "run_name=tracked")


def test_a_logged_model_loads_without_semaim(tracked: Path, tmp_path: Path) -> None:
    """With the printed lines and with the run's own URI; the run is unchanged."""
    from mlflow import MlflowClient

    noted = json.loads((tracked / "mlflow.json").read_text())
    client = MlflowClient(noted["uri"])
    before = client.get_run(noted["run_id"]).info
    said = succeed(tmp_path, str(tracked), "--output", "out", "--mlflow", "--uri", noted["uri"],
                   launcher=(sys.executable, "-m", "semaim", "export"))  # fmt: skip
    model_uri = said.split("logged to MLflow: ")[1].split()[0]
    snippet = "\n".join(line[4:] for line in said.split("logged to MLflow")[1].splitlines() if line.startswith("    "))
    torch.save(images(3), tmp_path / "images.pt")
    code = LOAD.format(snippet=snippet, images=str(tmp_path / "images.pt"), model=model_uri,
                       run=f"runs:/{noted['run_id']}/encoder")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = SimpleNamespace(**json.loads(done.stdout.splitlines()[-1]))
    with torch.no_grad():
        expected_BD = stored(tracked).forward_features(images(3))[:, 0]
    assert found.type == "VisionTransformer"
    assert torch.equal(torch.tensor(found.features), expected_BD)
    assert torch.equal(torch.tensor(found.predicted), expected_BD)
    assert "(-1, 3, 32, 32)" in found.inputs
    assert "(-1, 32)" in found.outputs
    assert found.example == [1, 3, 32, 32]
    assert found.run == noted["run_id"]
    after = client.get_run(noted["run_id"]).info
    assert (after.status, after.start_time, after.end_time) == (before.status, before.start_time, before.end_time)
    (logged,) = [model for model in client.search_logged_models([before.experiment_id]) if model.model_uri == model_uri]
    assert logged.source_run_id == noted["run_id"]
    file = sorted((tracked / "checkpoints").glob("*.pt"))[-1]
    assert tracked_run(run_folder_of(file), file).state["run_id"] == noted["run_id"], "a file's run is the folder's"


def test_a_run_that_was_not_tracked_has_no_model(square: Path, tmp_path: Path, capsys) -> None:
    torch.save(foreign_files.timm_plain().content, tmp_path / "theirs.pth")
    for given in (square, tmp_path / "theirs.pth"):
        assert main(["export", str(given), "--output", str(tmp_path / "out"), "--mlflow"]) == 2
        assert f"--mlflow: checkpoint={given} is not of a run that MLflow tracked" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_transformers_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None; import semaim.export.export, semaim.checkpoints.encoder_source"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
