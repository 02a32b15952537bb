"""A full disk ends a save with a message; the older checkpoints stay intact, and no file of the failed save is left."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest

from semaim.checkpoints import store
from semaim.core.files import HashingWriter
from semaim.errors import UserError
from support.saving import is_of, names, state_of
from support.small_disk import small_disk

FULL = r"step_00000004\.pt cannot be written \(No space left on device\): make room, .* is .*step_00000003\.pt$"


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_no_space_after_some_writing(three, monkeypatch, after):
    before, calls, write = names(three), [], HashingWriter.write

    def full(self, data):
        calls.append(len(data))
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(HashingWriter, "write", full)
    with pytest.raises(UserError, match=FULL):
        store.save(three, 4, state_of(4))
    assert len(calls) > after
    assert names(three) == before
    assert is_of(store.newest(three), 3)
    monkeypatch.undo()
    store.save(three, 4, state_of(4))
    assert is_of(store.newest(three), 4)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_at_the_last_moment(three, monkeypatch, call):
    """The checksum is already on disk and must be removed."""
    before, calls, original = names(three), [], getattr(os, call)

    def full(*args):
        calls.append(args)
        if len(calls) == (3 if call == "fsync" else 2):  # the checksum, its folder, then the checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=FULL):
        store.save(three, 4, state_of(4))
    assert names(three) == before


def test_another_error_keeps_its_reason(folder, monkeypatch):
    monkeypatch.setattr(HashingWriter, "write", lambda *_: os.open("/none", 0))
    with pytest.raises(UserError, match=r"there is no older checkpoint") as error:
        store.save(folder, 1, state_of(1))
    assert "no space" not in str(error.value)
    assert names(folder) == []


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MiB."""
    with small_disk(tmp_path / "disk", "2m") as place:
        yield place


def test_a_full_disk(disk):
    for step in (1, 2, 3):
        store.save(disk, step, state_of(step, 150_000))  # 600 kB
    before = names(disk)
    with pytest.raises(UserError, match=FULL):
        store.save(disk, 4, state_of(4, 150_000))
    assert names(disk) == before
    assert is_of(store.newest(disk), 3)


def test_a_disk_that_fills_up_at_any_point_of_saving(disk):
    """For every amount of free space around the required one, in pages: the save is complete or has changed nothing."""
    folder, page, filler = disk / "checkpoints", 4096, disk / "filler"
    path = store.save(folder, 1, state_of(1))
    needed = -(-path.stat().st_size // page) + 1  # the checkpoint's pages and one for its checksum
    outcomes = []
    for pages in range(needed + 2):
        free = os.statvfs(disk)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_frsize - pages * page))
        with contextlib.suppress(UserError):
            store.save(folder, 2, state_of(2))
        filler.unlink()
        newest = store.newest(folder)
        outcomes.append(newest["step"])
        assert is_of(newest, newest["step"])
        assert len(names(folder)) == 2 * newest["step"], pages  # a checkpoint and its checksum, no temporary file
        for left in folder.glob("step_00000002*"):
            left.unlink()
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (1, 2)


def test_saving_a_step_again_never_leaves_it_with_a_wrong_checksum(three, monkeypatch):
    """The disk fills up at each moment of saving step 3 again, over an intact checkpoint."""
    for call in range(6):
        store.save(three, 3, state_of(3))
        counted = iter(range(100))

        def fsync(_, call=call, counted=counted):
            if next(counted) == call:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        with contextlib.suppress(UserError, OSError):
            store.save(three, 3, {**state_of(3), "again": True})
        monkeypatch.undo()
        newest = store.newest(three)
        assert newest["step"] in (2, 3)
        assert is_of(newest, newest["step"])
