"""The measured peak of matrix products: measured once per machine, kept in a file, without touching the run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semaim.training import peak as measuring
from semaim.training.peak import Peak, Speed, forget, measure, peak

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the peaks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "semaim" / "peaks.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What was measured; the results are 1 TFLOP/s, 2 TFLOP/s, ..."""
    made: list[torch.dtype] = []

    def count(_: torch.device, dtype: torch.dtype) -> Speed:
        made.append(dtype)
        return Speed(len(made) * 1e12, 1.0)

    monkeypatch.setattr(measuring, "measure", count)
    return made


def at_next_start(dtype: torch.dtype = torch.float32) -> Peak:
    measuring._peak.cache_clear()
    return peak(CPU, dtype)


def test_a_measurement_is_plausible_and_changes_no_random_numbers() -> None:
    before = torch.get_rng_state()
    speed = measure(CPU, torch.float32)
    assert 1e8 < speed.flops < 1e14
    assert 0 < speed.undisturbed < 1.1
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_measured_once_for_a_precision_and_a_number_of_threads(cache: Path, measured: list[torch.dtype]) -> None:
    first = at_next_start()
    assert (first.flops, first.file) == (1e12, cache)
    assert str(first).startswith("1 TFLOP/s on ")
    assert " with 1 thread in float32, measured 20" in str(first)
    assert at_next_start() == first
    assert at_next_start(torch.bfloat16).flops == 2e12
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert at_next_start().flops == 3e12
    finally:
        torch.set_num_threads(threads)
    assert at_next_start() == first
    assert measured == [torch.float32, torch.bfloat16, torch.float32]
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"x": 1}', '{"KEY": {"flops": 0, "measured": "x"}}', '{"KEY": {"flops": NaN, "measured": "x"}}'],
)
def test_a_damaged_file_is_measured_again(cache: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    at_next_start()
    (key,) = json.loads(cache.read_text())
    cache.write_text(content.replace("KEY", key))
    with caplog.at_level(logging.DEBUG, logger="semaim"):
        assert at_next_start().flops == 2e12
    assert json.loads(cache.read_text())[key]["flops"] == 2e12
    assert caplog.text == ""


def test_a_disturbed_measurement_is_not_kept(
    cache: Path, measured: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disturbed:
        disturbed.setattr(measuring, "measure", lambda *_: Speed(5e9, 0.6))
        found = at_next_start()
    assert (found.flops, found.kept) == (5e9, "not kept, since other programs used the same processor cores")
    assert not cache.exists()
    assert at_next_start().flops == 1e12
    assert at_next_start().flops == 1e12
    assert measured == [torch.float32]


def test_a_process_that_shares_its_core_is_disturbed() -> None:
    """Four processes, bound to one core, that do nothing but count."""
    core, own = min(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    count = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    counting = [subprocess.Popen([sys.executable, "-c", count]) for _ in range(4)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        os.sched_setaffinity(0, {core})
        time.sleep(1)  # until they count
        assert measure(CPU, torch.float32).undisturbed < measuring.UNDISTURBED
    finally:
        os.sched_setaffinity(0, own)
        torch.set_num_threads(threads)
        for each in counting:
            each.kill()
            each.wait()


@pytest.mark.usefixtures("measured")
def test_a_peak_that_was_too_low_is_forgotten(cache: Path) -> None:
    first, other = at_next_start(), at_next_start(torch.bfloat16)
    forget(first)
    assert [each["flops"] for each in json.loads(cache.read_text()).values()] == [other.flops]
    assert at_next_start().flops == 3e12
    forget(Peak(1e12, "a device", "float32", "2026-11-28", None))


def test_without_a_writable_cache_every_start_measures(
    tmp_path: Path, measured: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.DEBUG, logger="semaim"):
        assert at_next_start().file is None
        assert peak(CPU, torch.float32).kept == "not kept, since there is no cache folder"
    assert len(measured) == 1  # in this process it is known
    assert at_next_start().flops == 2e12
    assert caplog.text == ""


def test_the_file_is_in_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which does not count
    file = measuring.cache_file()
    assert file == Path("/home/ada/.cache/semaim/peaks.json")
    assert Peak(1e12, "H100", "bf16", "2026-11-28", file).kept == "kept in ~/.cache/semaim/peaks.json"


@pytest.mark.parametrize(("setting", "name"), [("highest", "float32"), ("high", "tf32")])
def test_a_gpu_that_rounds_float32_has_another_peak(monkeypatch: pytest.MonkeyPatch, setting: str, name: str) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    monkeypatch.setattr(measuring, "_peak", lambda device, precision, threads: (device.type, precision, threads))
    assert peak(torch.device("cuda", 0), torch.float32) == ("cuda", name, 0)
    assert peak(torch.device("cuda", 0), torch.bfloat16) == ("cuda", "bf16", 0)
    assert peak(CPU, torch.float32) == ("cpu", "float32", torch.get_num_threads())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("cache")
def test_on_a_gpu_it_leaves_no_memory_and_the_random_numbers(dtype: torch.dtype) -> None:
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    before, reserved = torch.cuda.get_rng_state(device), torch.cuda.memory_reserved(device)
    measuring._peak.cache_clear()
    found = peak(device, dtype)
    assert found.flops > 1e12
    assert found.device == torch.cuda.get_device_name(device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    assert torch.cuda.memory_reserved(device) <= reserved + 2**26  # cuBLAS keeps a workspace
