"""A large folder is listed once: later starts compare the times of its sub-folders, and list what has changed."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from semaim.data import folders, listing_cache
from semaim.data.sources import image_folders
from support.image_folders import files, make, omitted


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every listing is worth keeping; the folder of the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_cache, "WORTHWHILE_SECONDS", 0.0)
    monkeypatch.setattr(listing_cache, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "semaim" / "listings"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that are listed on the disk."""
    names: list[str] = []
    scandir = os.scandir

    def recorded(path: str) -> object:
        names.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", recorded)
    return names


def test_an_unchanged_folder_is_not_listed_again(
    tmp_path: Path, cache: Path, listed: list[str], said: pytest.LogCaptureFixture
) -> None:
    strange = os.fsdecode(b"not-\xff-utf8.png")
    root = make(tmp_path / "data", "cat/1.png", f"cat/{strange}", "cat/b.gif", "dög, 2/deep.er/3.jpg")
    first = image_folders(root).train
    assert listed == ["data", "cat", "dög, 2", "deep.er"]
    listed.clear()
    again = image_folders(root)
    assert listed == []
    assert files(again.train) == files(first) == ["cat/1.png", f"cat/{strange}", "dög, 2/deep.er/3.jpg"]
    assert again.train.fingerprint() == first.fingerprint()
    assert again.classes == ["cat", "dög, 2"]
    (file,) = cache.glob("*.json")
    assert said.messages[-1].endswith(f"4 of 4 folders are unchanged since they were listed ({file})")
    assert omitted(said, 1) == ["1 .gif file"]
    assert "1 .gif file" in said.messages[-1]


@pytest.mark.usefixtures("cache")
def test_only_changed_folders_are_listed(tmp_path: Path, listed: list[str]) -> None:
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png", "emu/3.png")
    image_folders(root)
    listed.clear()
    before = os.stat(tmp_path / "data" / "dog")
    make(tmp_path / "data", "dog/4.png")
    os.utime(tmp_path / "data" / "dog", ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync sets it back
    (tmp_path / "data" / "emu" / "3.png").rename(tmp_path / "data" / "emu" / "5.png")
    (tmp_path / "data" / "new").mkdir()
    make(tmp_path / "data", "new/6.png")
    assert files(image_folders(root).train) == ["cat/1.png", "dog/2.png", "dog/4.png", "emu/5.png", "new/6.png"]
    assert listed == ["data", "dog", "emu", "new"]


@pytest.mark.usefixtures("cache")
def test_folders_whose_content_may_change_unnoticed_are_listed(tmp_path: Path, listed: list[str]) -> None:
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    (tmp_path / "data" / "cat" / "later.png").symlink_to(tmp_path / "later.png")
    assert files(image_folders(root).train) == ["cat/1.png", "dog/2.png"]
    (tmp_path / "later.png").touch()
    listed.clear()
    assert files(image_folders(root).train) == ["cat/1.png", "cat/later.png", "dog/2.png"]
    assert listed == ["cat"]


def test_what_was_changed_just_now_is_listed_again(
    tmp_path: Path, cache: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_cache, "SETTLED_SECONDS", 60.0)
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    image_folders(root)
    listed.clear()
    image_folders(root)
    assert listed == ["data", "cat", "dog"]
    assert not list(cache.glob("*"))


def test_a_quick_listing_leaves_no_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_cache, "WORTHWHILE_SECONDS", 600.0)
    image_folders(make(tmp_path / "data", "cat/1.png", "dog/2.png"))
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("content", ["", "{", '{"version": 1}', '{"version": 2, "folders": {}}',
                                     '{"version": 1, "folders": {"/": [[1, 2, 3], [7], [], {}]}}'])  # fmt: skip
def test_a_damaged_cache_is_replaced(tmp_path: Path, cache: Path, listed: list[str], content: str) -> None:
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    image_folders(root)
    (file,) = cache.glob("*.json")
    file.write_text(content)
    listed.clear()
    assert files(image_folders(root).train) == ["cat/1.png", "dog/2.png"]
    assert listed == ["data", "cat", "dog"]
    assert len(json.loads(file.read_text())["folders"]) == 3


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("home", ["file", "none"])
def test_without_a_place_for_the_cache_folders_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "file").touch()  # a folder without permissions would not stop root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if home == "file" else "~no-such-user/cache")
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    assert files(image_folders(root).train) == ["cat/1.png", "dog/2.png"]


def test_of_several_processes_one_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, listed: list[str]
) -> None:
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    image_folders(root)
    (file,) = cache.glob("*.json")
    stored = file.read_bytes()
    file.unlink()
    listed.clear()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    waiting = threading.Event()
    monkeypatch.setattr(
        "semaim.core.locks.taken", lambda *_: waiting.set() or file.exists()
    )  # held until it is written

    def other() -> None:
        assert waiting.wait(60)
        time.sleep(0.1)
        file.write_bytes(stored)

    thread = threading.Thread(target=other)
    thread.start()
    assert files(image_folders(root).train) == ["cat/1.png", "dog/2.png"]
    thread.join()
    assert listed == []
