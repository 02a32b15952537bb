"""The training-step benchmark runs, compares equivalent forms and has the sizes of the models. No timing is checked."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir

from semaim.models.aim import AIM
from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "pretrain_step.py"


def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module; its changes to the search path are undone after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("pretrain_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pretrain_step", module)
    spec.loader.exec_module(module)
    return module


def test_it_runs_and_reports(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    sizes = "--model tiny --image-size 32 --patch-size 8 --batch-size 2 --map --precision float32 --device cpu"
    done = subprocess.run(
        [sys.executable, SCRIPT, *sizes.split(), "--warmup", "0", "--repeats", "1", "--json", file],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())

    assert result["losses"]["sorted"] == pytest.approx(result["losses"]["masked"], rel=1e-5)
    assert result["relative_loss_difference"] <= 1e-5
    ratio = result["times_as_fast_as_masked"]["sorted"]
    assert all(math.isfinite(value) and value > 0 for value in ratio.values())
    assert set(result["forms"]) == {"sorted", "masked", "semantic pass"}
    for name, form in result["forms"].items():
        assert form["milliseconds"] > 0, name
        assert form["images_per_second"] == pytest.approx(2 / form["milliseconds"] * 1e3)
        assert form["share_of_matmul_peak"] > 0
        if name == "semantic pass":
            assert form["peak_memory_bytes"] is None  # not measured separately
        else:  # at least gradients and AdamW's two moments, four bytes each, for half a million parameters
            assert form["peak_memory_bytes"] > 3 * 4 * 500_000
        assert name in done.stdout
    assert result["flops_per_image"] > 0
    assert result["hardware"]["cpu_cores"] >= 1
    assert result["versions"]["torch"]
    assert {"date", "command", "commit", "dirty", "matmul_peak_flops_per_second"} <= set(result)
    assert result["settings"]["batch_size"] == 2
    assert result["settings"]["embed_dim"] == 96


def test_it_refuses_to_compare_forms_that_disagree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load_benchmark(monkeypatch)
    right = benchmark.masked_predict
    monkeypatch.setattr(benchmark, "masked_predict", lambda *args: 1.001 * right(*args))
    sizes = "--model tiny --image-size 16 --patch-size 8 --batch-size 1 --precision float32 --device cpu"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *sizes.split()])
    assert benchmark.main() == 1
    assert "disagree" in capsys.readouterr().err


def test_sizes_match_the_configured_models(monkeypatch: pytest.MonkeyPatch) -> None:
    models = load_benchmark(monkeypatch).MODELS
    assert {f"aim_{name}" for name in models} == {path.stem for path in (ROOT / "conf" / "model").glob("aim_*.yaml")}
    defaults = {name: p.default for name, p in inspect.signature(AIM).parameters.items()}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, sizes in models.items():
            configured = compose("config", [f"model=aim_{name}"]).model
            assert {key: configured[key] for key in sizes._fields} == sizes._asdict(), name
            for key in ("mlp_ratio", "head", "drop_path"):  # the benchmark leaves these at their defaults
                assert configured[key] == defaults[key], (name, key)
