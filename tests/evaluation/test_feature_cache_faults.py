"""Cached features when a pass fails, is killed, or runs in several processes."""

from __future__ import annotations

import dataclasses
import os
import signal

import numpy as np
import pytest

from semaim.errors import CannotWrite, Interrupted, UserError
from semaim.evaluation import feature_cache
from semaim.evaluation.feature_cache import cached_features
from semaim.evaluation.features import extract
from semaim.models.vit import vit_of
from support.caching import FILES, Encoder, same, wanted
from support.evaluating import noise, together
from support.folders import contents

# Faults


class Killed(Encoder):
    """Fails in the second batch."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def __call__(self, images_BCHW):
        if self.batches == 1:
            self.end()
        return super().__call__(images_BCHW)


def fail():
    raise RuntimeError("out of memory")


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("end", "error"), [(fail, RuntimeError), (interrupt, Interrupted)])
def test_an_error_in_the_middle_leaves_nothing(run, kept, end, error):
    with pytest.raises(error):
        cached_features(kept, "weights", wanted(Killed(end), noise()), run)
    assert not list(kept.iterdir())
    run.stop.name = None
    encoder = Encoder()
    assert same(
        cached_features(kept, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run)
    )
    assert encoder.batches == 4
    assert [len(list(folder.iterdir())) for folder in kept.iterdir()] == [5]


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
@pytest.mark.parametrize("change", ["flipped", "zeroed", "cut", "missing"])
def test_damaged_features_are_computed_again(run, kept, caplog, name, change):
    cached_features(kept, "weights", wanted(Encoder(), noise()), run)
    (folder,) = kept.iterdir()
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 4
    changed = {"flipped": content, "zeroed": bytes(len(content)), "cut": content[:-1], "missing": None}[change]
    (folder / name).unlink()
    if changed is not None:
        (folder / name).write_bytes(changed)
    encoder = Encoder()
    again = cached_features(kept, "weights", wanted(encoder, noise()), run)
    assert encoder.batches == 4
    assert same(again, extract(wanted(Encoder(), noise()), run))
    encoder = Encoder()
    cached_features(kept, "weights", wanted(encoder, noise()), run)
    assert encoder.batches == 0, "and the new ones are used"
    assert caplog.text.count("are damaged, or have no checksums: they are computed again") == 1


@pytest.mark.parametrize("moment", ["batch", "merge"])
def test_a_kill_leaves_no_complete_entry(run, kept, moment, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(np, "save", die)  # during the merge, before the labels are written
            cached_features(kept, "weights", wanted(Killed(die) if moment == "batch" else Encoder(), noise()), run)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left_over,) = kept.iterdir()
    assert left_over.name.endswith(".tmp")
    assert list(left_over.iterdir())
    encoder = Encoder()
    assert same(
        cached_features(kept, "weights", wanted(encoder, noise()), run), extract(wanted(Encoder(), noise()), run)
    )
    assert encoder.batches == 4


def test_a_concurrent_run_may_finish_first(run, kept):
    """Two runs compute the same features; the files of the first one stay."""
    images = noise()

    def other_run():
        cached_features(kept, "weights", wanted(Encoder(), images), run)
        moments.append((next(iter(kept.glob("*[!p]"))) / "cls.npy").stat().st_ino)

    moments = []
    found = cached_features(kept, "weights", wanted(Killed(other_run), images), run)
    assert same(found, extract(wanted(Encoder(), images), run))
    (folder,) = kept.iterdir()
    assert moments == [(folder / "cls.npy").stat().st_ino]


def test_unreadable_images_are_missing(run, kept, damaged):
    asked = [5, 4, 3, 2, 1, 0]
    found = cached_features(kept, "weights", wanted(Encoder(), damaged, asked), run)
    assert same(found, extract(wanted(Encoder(), damaged, asked), run))
    assert found.index_M.tolist() == found.labels_M.tolist() == [4, 3, 1, 0]
    assert np.array_equal(found.by_kind["cls"][:, 0].argsort(), [3, 2, 1, 0])  # brighter ones first
    again = Encoder()
    assert same(cached_features(kept, "weights", wanted(again, damaged, asked), run), found)
    assert again.batches == 3  # computed again, since they may be readable now


def test_a_folder_without_files_is_damaged(run, kept):
    cached_features(kept, "weights", wanted(Encoder(), noise()), run)
    (folder,) = kept.iterdir()
    for file in folder.iterdir():
        file.unlink()
    (folder / "SHA256SUMS").touch()
    encoder = Encoder()
    cached_features(kept, "weights", wanted(encoder, noise()), run)
    assert encoder.batches == 4


def test_too_many_unreadable_images_leave_nothing(run, kept, damaged):
    with pytest.raises(UserError, match=r"2 images cannot be read, more than data\.max_unreadable=1"):
        cached_features(kept, "weights", wanted(Encoder(), damaged, range(6), max_unreadable=1), run)
    with pytest.raises(UserError, match=r"no image of the 2 of this evaluation can be read"):
        cached_features(kept, "weights", wanted(Encoder(), damaged, [2, 5]), run)
    assert not list(kept.iterdir())


# Several processes


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_processes_store_what_one_stores(run, tmp_path, tiny_model, monkeypatch, world_size, batch_size):
    """Seven images: the last batch is smaller, except for size 7; then, and with 5 processes, some have no batch."""
    monkeypatch.setattr(feature_cache, "ROWS_PER_COPY", 3)
    encoder, images = Encoder(vit_of(tiny_model(image_size=8)).eval()), noise()
    alone = cached_features(tmp_path / "alone", "weights", wanted(encoder, images, batch_size=batch_size), run)
    assert same(alone, extract(wanted(encoder, images, batch_size=batch_size), run))
    encoder.batches = 0

    def work(processes):
        mine = dataclasses.replace(run, processes=processes)
        return cached_features(tmp_path / "kept", "weights", wanted(encoder, images, batch_size=batch_size), mine)

    assert all(same(found, alone) for found in together(world_size, work))
    assert encoder.batches == -(-7 // batch_size)  # shared, not repeated
    assert contents(tmp_path / "kept") == contents(tmp_path / "alone")
    assert all(same(found, alone) for found in together(world_size, work))
    assert encoder.batches == -(-7 // batch_size)


def test_processes_omit_unreadable_images(run, tmp_path, damaged):
    asked = [0, 1, 2, 5, 3, 4]  # the second process has only the batch of 2 and 5
    alone = cached_features(tmp_path / "alone", "weights", wanted(Encoder(), damaged, asked), run)
    assert alone.index_M.tolist() == [0, 1, 3, 4]

    def work(processes):
        mine = dataclasses.replace(run, processes=processes)
        return cached_features(tmp_path / "kept", "weights", wanted(Encoder(), damaged, asked), mine)

    assert all(same(found, alone) for found in together(2, work))
    assert contents(tmp_path / "kept") == contents(tmp_path / "alone")


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_one_of_several_processes_leaves_no_complete_entry(run, kept, fails):
    def work(processes):
        encoder = Killed(fail) if processes.rank == fails else Encoder()
        mine = dataclasses.replace(run, processes=processes)
        return cached_features(kept, "weights", wanted(encoder, noise(), range(12)), mine)

    with pytest.raises((RuntimeError, CannotWrite)):  # the first process removes the folder that the others use
        together(2, work)
    assert all(folder.name.endswith(".tmp") for folder in kept.iterdir())
    encoder = Encoder()
    assert same(
        cached_features(kept, "weights", wanted(encoder, noise(), range(12)), run),
        extract(wanted(Encoder(), noise(), range(12)), run),
    )
    assert encoder.batches == 6
