"""The benchmarks run, compare forms that agree, and the page of results shows them. No timing is checked."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import campaign, communication, forms, methods, table
from benchmarks.__main__ import main
from benchmarks.targets import targets
from hydra import compose, initialize_config_dir

from semaim.models.aim import AIM
from support.golden import golden, relative
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "pixels_mlp_l2_norm.npz"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    return main()


def test_the_authors_form_reproduces_the_results_of_the_authors_code() -> None:
    stored = golden(GOLDEN)
    with torch.no_grad():
        tokens = forms.authors_tokens(stored.model, stored.images_BCHW)
        assert relative(tokens, stored["encoder_tokens"]) < 1e-3  # some are near zero
        torch.testing.assert_close(tokens, stored["encoder_tokens"], rtol=1e-5, atol=1e-5)
        for order in ("stochastic", "attention_center"):
            prediction = forms.authors_predict(stored.model, stored.images_BCHW, stored.order(order))
            loss = stored.target.loss(prediction, stored.targets())
            assert relative(loss, stored[f"{order}/loss_per_patch"]) < 1e-5


def test_a_step_of_every_form_has_the_same_loss_and_gradient() -> None:
    every, shared = forms.build(forms.MODELS["tiny"], 32, 8, 2, torch.device("cpu"), torch.float32, compiled=False)
    assert set(every) == {"sorted", "masked", "authors'"}
    gradients = {}
    for name, form in every.items():
        before = {key: value.clone() for key, value in shared.model.state_dict().items()}
        seen: list[str] = []
        shared.run(form, mark=seen.append)
        assert seen == ["semantic pass", "forward", "backward", "optimizer"]
        assert all(torch.equal(value, before[key]) for key, value in shared.model.state_dict().items())
        gradients[name] = shared.model.blocks[0].attn.proj.weight.grad.clone()
    for name in ("masked", "authors'"):
        torch.testing.assert_close(gradients[name], gradients["sorted"], rtol=1e-3, atol=1e-7)


def test_forms_that_disagree_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = forms.authors_predict
    monkeypatch.setattr(forms, "authors_predict", lambda *args: 1.001 * right(*args))
    assert run(monkeypatch, "step", "--small", "--device", "cpu", "--json", str(tmp_path / "result.json")) == 1
    assert "disagree" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_step_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "new" / "result.json"
    assert run(monkeypatch, "step", "--small", "--device", "cpu", "--json", str(file)) == 0
    result = json.loads(file.read_text())
    assert set(result["losses"]) == set(result["forms"]) == {"sorted", "masked", "authors'"}
    for name, form in result["forms"].items():
        assert form["images_per_second"] == pytest.approx(2 / form["milliseconds"] * 1e3), name
        assert form["share_of_matmul_peak"] > 0
        parts = form["phases"]
        assert set(parts) == {"semantic pass", "forward", "backward", "optimizer", "whole"}
    for reference in ("masked", "authors'"):
        assert all(math.isfinite(value) for value in result["times_as_fast_as"][reference]["sorted"].values())
    real = result["breakdown"]["sorted"]
    assert sum(real.values()) - real["whole"] == pytest.approx(real["whole"])  # the phases and gaps are the whole
    assert real["data"] > 0
    assert {"date", "command", "commit", "dirty", "busy", "load_before"} <= set(result)
    assert result["versions"]["torch"]
    printed = capsys.readouterr().out
    assert "| authors' |" in printed
    assert "sorted; real images" in printed


@pytest.mark.slow
def test_peak_memory_of_a_form_is_that_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = "step --model tiny --image-size 32 --patch-size 8 --batch-size 2 --images 0 --warmup 0 --repeats 1 "
    words += f"--forms sorted --no-compile --device cpu --json {file}"
    assert run(monkeypatch, *words.split()) == 0
    result = json.loads(file.read_text())
    # At least gradients and AdamW's two moments, four bytes each, for half a million parameters.
    assert result["forms"]["sorted"]["peak_memory_bytes"] > 3 * 4 * 500_000
    assert result["breakdown"] == {}


def test_sizes_match_the_configured_models() -> None:
    names = {path.stem for path in (ROOT / "conf" / "model").glob("aim_*.yaml")}
    assert {f"aim_{name}" for name in forms.MODELS} == names
    defaults = {name: p.default for name, p in inspect.signature(AIM).parameters.items()}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, sizes in forms.MODELS.items():
            configured = compose("config", [f"model=aim_{name}"]).model
            assert {key: configured[key] for key in sizes._fields} == sizes._asdict(), name
            for key in ("mlp_ratio", "head", "drop_path"):  # the benchmark leaves these at their defaults
                assert configured[key] == defaults[key], (name, key)


def test_decoders_match_the_configured_models() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, decoder in methods.DECODERS.items():
            configured = compose("config", [f"model=mae_{name}"]).model
            assert (configured.decoder_dim, configured.decoder_depth, configured.decoder_num_heads) == decoder, name
            sizes = forms.MODELS[name]
            assert (configured.embed_dim, configured.depth, configured.num_heads) == sizes[:3], name


@pytest.mark.slow
def test_the_campaign_for_a_gpu_machine_works_in_miniature(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "benchmarks/gpu_campaign.sh"],
        cwd=ROOT,
        env=os.environ | {"DRY": "1", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    logs = "\n".join(file.read_text() for file in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(results) == {"step", "data", "parts", "knn", "startup", "scaling", "methods"}

    paths = results["data"]["per_core"]
    assert set(paths) == {"pretraining", "evaluation", "RandAugment"}
    assert all(path["times_as_fast_as_plain"]["median"] > 0 for path in paths.values())
    assert [each["workers"] for each in results["data"]["workers"]] == [1]
    assert results["knn"]["same_class"] == 1
    stages = results["startup"]["seconds"]["this"]
    sums = ("to the first step", "in all", "CPU time of all processes")
    total = sum(seconds for stage, seconds in stages.items() if stage not in sums)
    assert total == pytest.approx(stages["in all"])
    assert stages["first step"] > 0
    (two,) = results["scaling"]["processes"]
    assert two["processes"] == 2
    assert two["predicted_seconds"] > two["seconds"]["without communication"]

    of_methods = results["methods"]["methods"]
    assert list(of_methods) == ["SemAIM", "SAIM", "RandSAC-11", "MAE", "SimMIM"]
    assert of_methods["MAE"]["flops_per_image"] < of_methods["SimMIM"]["flops_per_image"]
    assert all(each["images_per_second"] > 0 for each in of_methods.values())

    trained = table.of_training((tmp_path / "training_base_compiled.jsonl").read_text().splitlines())
    assert trained["batch_size"] == 8
    summary = (tmp_path / "summary.txt").read_text()
    assert "tests: exit code 0" in summary
    for benchmark in results:
        assert f"{benchmark}: done after" in summary


def test_a_benchmark_ends_at_its_time_limit_with_its_processes(tmp_path: Path) -> None:
    started = time.monotonic()
    ends = tmp_path / "ends"
    assert campaign.bounded(["bash", "-c", f"(sleep 3; touch {ends}) & sleep 60"], 0.5) is None
    assert time.monotonic() - started < 30
    time.sleep(3.5)
    assert not ends.exists()
    assert campaign.bounded(["bash", "-c", "exit 3"], 60) == 3


def test_what_has_no_time_left_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(campaign, "bounded", lambda *_: pytest.fail("no time is left"))
    assert run(monkeypatch, "all", "--small", "--device", "cpu", "--minutes", "0", "--only", "knn", "data") == 0
    assert capsys.readouterr().out.splitlines() == ["data: left out, no time left", "knn: left out, no time left"]


def test_communication_by_the_model_on_paper() -> None:
    assert communication.ring_bytes(100, 2) == 100
    assert communication.ring_bytes(100, 256) == pytest.approx(199.21875)
    bucket = communication.BUCKET_BYTES
    assert communication.all_reduce_seconds(4 * bucket, 1, 1e9) == 0
    assert communication.all_reduce_seconds(4 * bucket, 4, bucket, latency=0) == pytest.approx(6)
    assert communication.all_reduce_seconds(4 * bucket, 4, bucket, latency=1) == pytest.approx(6 + 4 * 4)
    # Four buckets of a second each: the last is never hidden, and without a backward pass nothing is.
    assert communication.exposed_seconds(4, 100, 4 * bucket) == 1
    assert communication.exposed_seconds(4, 2, 4 * bucket) == pytest.approx(2.5)
    assert communication.exposed_seconds(4, 0, 4 * bucket) == 4
    assert communication.SLOW.bandwidth(8) == communication.FAST.bandwidth(8) == pytest.approx(0.8 * 450e9)
    assert communication.SLOW.bandwidth(16) == pytest.approx(0.8 * 12.5e9)
    assert communication.efficiency(1, 0.6, 10**8, 1, communication.SLOW) == 1
    shares = [communication.efficiency(0.05, 0.03, 10**8, n, communication.SLOW) for n in (8, 32, 256)]
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def test_the_page_shows_the_stored_results() -> None:
    assert table.page(table.PAGE.read_text(), table.stored()) == table.PAGE.read_text(), (
        "run python -m benchmarks table"
    )


def step_result(date: str, share: float, gpu: str | None = "NVIDIA H100") -> dict[str, Any]:
    form = {"share_of_matmul_peak": share, "milliseconds": 100.0}
    return {
        "benchmark": "step",
        "date": f"{date}T00:00:00+0000",
        "commit": "0123456789",
        "hardware": {"gpu": gpu},
        "settings": {"model": "base", "batch_size": 256},
        "forms": {"sorted": form, "sorted, compiled": form},
    }


def test_targets_are_judged_by_the_newest_result_of_the_right_machine() -> None:
    share = next(target for target in targets if "55 %" in target.text)
    assert share.judge([]) == (None, None)
    assert share.judge([step_result("2026-01-01", 0.9, gpu=None)]) == (None, None)
    results = [step_result("2026-01-02", 0.5), step_result("2026-01-01", 0.6)]
    assert share.judge(results) == ("50% (2026-01-02, 0123456)", False)
    assert share.judge(results[1:]) == ("60% (2026-01-01, 0123456)", True)
    assert "not measured yet" in table.of_targets([])


def test_tables_name_what_does_not_fit_into_memory() -> None:
    result = step_result("2026-01-01", 0.5) | {"out_of_memory": ["authors'"], "times_as_fast_as": {}, "forms": {}}
    assert "| authors' | out of memory |" in table.step([result])
