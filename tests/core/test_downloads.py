"""Processes that start together download once: the first that comes, under a lock; the others wait for it."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from torchvision.datasets import CIFAR10

from semaim.checkpoints import timm_models
from semaim.core import locks
from semaim.core.locks import one_at_a_time
from semaim.data.sources import cifar10
from semaim.errors import UserError
from support.waiting import PATIENCE, wait_for

PROCESSES = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)


def together(work: Callable[[], Any], count: int = PROCESSES) -> list[int]:
    """Exit codes of forked processes that do the same work, started together."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()
    return [process.exitcode or 0 for process in processes]


# torchvision's data sets


class Server(ThreadingHTTPServer):
    """Serves one archive in slow pieces; `requests` counts, and the first `cut` answers end early."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.requests, self.cut = content, 0, 0


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if self.server.requests > self.server.cut:
            time.sleep(0.2)
            self.wfile.write(content[half:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """CIFAR-10 of 12 images, in its true format and with its checksums."""
    entry = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    parts = {name: pickle.dumps(entry | {"name": name}) for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]}
    parts[CIFAR10.meta["filename"]] = pickle.dumps({"label_names": ["x"] * 10})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, listed, [[name, md5(parts[name])] for name, _ in getattr(CIFAR10, listed)])
    monkeypatch.setitem(CIFAR10.meta, "md5", md5(parts[CIFAR10.meta["filename"]]))
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)  # a request of its own
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed.getvalue()))
    with Server(packed.getvalue()) as serving:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{serving.server_port}/{CIFAR10.filename}")
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def read_all(root: Path) -> None:
    splits = cifar10(str(root), download=True)
    assert (len(splits.train), len(splits.val or ())) == (10, 2)


def test_a_data_set_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    assert together(partial(read_all, tmp_path / "new" / "cifar10")) == [0] * PROCESSES
    assert server.requests == 1
    read_all(tmp_path / "new" / "cifar10")
    assert server.requests == 1


def test_a_partial_download_is_not_used(server: Server, tmp_path: Path) -> None:
    server.cut = 1
    with pytest.raises(UserError, match=r"CIFAR-10 is neither complete in data\.root="):
        cifar10(str(tmp_path), download=True)
    assert (tmp_path / CIFAR10.filename).stat().st_size < len(server.content)
    with pytest.raises(UserError, match=r"CIFAR-10 is neither complete in data\.root="):
        cifar10(str(tmp_path), download=False)
    assert together(partial(read_all, tmp_path)) == [0] * PROCESSES
    assert server.requests == 2
    (tmp_path / CIFAR10.base_folder / "test_batch").write_bytes(b"")  # as of a process killed while it extracts
    read_all(tmp_path)
    assert server.requests == 2, "the archive is complete"


@pytest.mark.usefixtures("server")
def test_complete_data_are_read_without_writing(tmp_path: Path) -> None:
    """They may be in a folder that is not writable."""
    read_all(tmp_path)
    (tmp_path / ".download.lock").unlink()
    read_all(tmp_path)
    assert not (tmp_path / ".download.lock").exists()


# Weights of the hub


def test_weights_are_fetched_once_and_then_read_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def create_model(*_: Any, **__: Any) -> None:
        """Fetches as torch.hub: a complete file appears at the end. Reading takes as long as fetching."""
        if not (tmp_path / "weights").exists():
            with open(tmp_path / "fetched", "ab", 0) as file:
                file.write(b"x")
            time.sleep(0.3)
            (tmp_path / "weights").touch()
            return
        (tmp_path / f"reading_{os.getpid()}").touch()
        wait_for(lambda: len(list(tmp_path.glob("reading_*"))) == PROCESSES - 1, "all others, which read together")

    monkeypatch.setattr(timm, "create_model", create_model)
    assert together(partial(timm_models.create, "hf-hub:some/model", True)) == [0] * PROCESSES
    assert (tmp_path / "fetched").read_bytes() == b"x"


def test_a_cache_that_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setattr(timm, "create_model", lambda name, **_: name)
    assert timm_models.create("vit", True) == "vit"


# The lock


def hold(path: Path) -> None:
    with one_at_a_time(path, "download of x"):
        path.with_name("held").touch()
        time.sleep(PATIENCE)


def test_the_wait_is_bounded_and_names_who_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "semaim")
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.05)
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / ".lock",))
    process.start()
    wait_for((tmp_path / "held").exists, "the lock")
    for together in (False, True):
        with (
            pytest.raises(
                UserError, match=rf"^process {process.pid} on \S+ has held \S+\.lock for 0 s \(download of x\)"
            ),
            one_at_a_time(tmp_path / ".lock", "download of x", together),
        ):
            pass
        assert f"waiting for process {process.pid} on " in caplog.messages[-1]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(PATIENCE)
    with one_at_a_time(tmp_path / ".lock", "download of x"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
