"""Checkpoints survive kills, full disks and damage: the newest intact one is always found, and nothing is executed."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import random
import subprocess
import time

import pytest
import torch

from semaim.checkpoints import store
from semaim.errors import UserError
from support.saving import is_of, names, state_of
from support.waiting import wait_for

# Round trip


def test_round_trip_is_exact(folder):
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    tensors = {str(kind): torch.randn(5, 3).to(kind) for kind in kinds}
    tensors["strided"] = torch.arange(12, dtype=torch.uint8).view(3, 4).T
    bits = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    plain = {"numbers": [1, 2**62, 1e-300, True, None], "nested": {"text": "schön", "tuple": (1, (2.5, "x")), 5: {}}}
    path = store.save(folder, 120, {"tensors": tensors, "bits": bits, **plain})
    assert path == folder / "step_00000120.pt"
    loaded = store.newest(folder)
    assert torch.equal(loaded.pop("bits").view(torch.int32), bits.view(torch.int32))
    for name, tensor in loaded.pop("tensors").items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    assert loaded == {"format": store.FORMAT, "step": 120, **plain}


def test_no_checkpoint_at_all(folder):
    assert store.newest(folder) is None
    assert store.list_steps(folder) == []
    folder.mkdir()
    (folder / "notes.pt").write_text("not ours")
    (folder / "step_x.pt").write_text("not ours")
    assert store.newest(folder) is None


def test_newest_is_by_number_not_by_name_or_time(folder):
    for step in (100_000_000, 99_999_999, 7):  # as text, nine digits sort before eight
        store.save(folder, step, state_of(step))
    assert [step for step, _ in store.list_steps(folder)] == [7, 99_999_999, 100_000_000]
    assert store.newest(folder)["step"] == 100_000_000


def test_checksum_is_what_sha256sum_expects(three):
    files = sorted(path.name for path in three.glob("*.sha256"))
    done = subprocess.run(["sha256sum", "-c", *files], cwd=three, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"step_0000000{step}.pt: OK" for step in (1, 2, 3)]
    digest = hashlib.sha256((three / "step_00000002.pt").read_bytes()).hexdigest()
    assert (three / "step_00000002.pt.sha256").read_text() == f"{digest}  step_00000002.pt\n"


def test_prune_keeps_the_newest_and_the_milestones(folder):
    for step in range(1, 10):
        store.save(folder, step, state_of(step, 1))
    store.prune(folder, 2, lambda step: step % 3 == 0)
    kept = [f"step_0000000{step}.pt" for step in (3, 6, 8, 9)]
    assert names(folder) == sorted(kept + [f"{name}.sha256" for name in kept])
    assert is_of(store.newest(folder), 9)
    store.prune(folder, 2, lambda _: False)
    assert [step for step, _ in store.list_steps(folder)] == [8, 9]
    store.prune(folder, 2, lambda _: False)  # nothing left to prune
    assert [step for step, _ in store.list_steps(folder)] == [8, 9]


def test_fingerprint_changes_with_the_newest_checkpoint(folder):
    assert store.fingerprint(folder.parent) is None
    first = store.save(folder, 1, state_of(1))
    of_first = store.fingerprint(folder.parent)
    assert of_first == store.fingerprint(first) == hashlib.sha256(first.read_bytes()).hexdigest()
    store.save(folder, 2, state_of(2))
    assert store.fingerprint(folder.parent) not in (None, of_first)
    assert store.fingerprint(folder / "none.pt") is None


# Damage


def rewrite(path, change):
    """Change the bytes of a file; None deletes the file."""
    content = change(bytearray(path.read_bytes()))
    path.unlink() if content is None else path.write_bytes(content)


def flip(content, bit=1, at=None):
    content[len(content) // 2 if at is None else at] ^= bit
    return content


@pytest.mark.parametrize(
    ("which", "change"),
    [
        pytest.param("", lambda content: content[:-1], id="truncated"),
        pytest.param("", flip, id="one bit"),
        pytest.param("", lambda _: b"", id="emptied"),
        pytest.param(".sha256", lambda _: None, id="no checksum"),
        pytest.param(".sha256", lambda _: b"", id="empty checksum"),
        pytest.param(".sha256", lambda content: flip(content, at=0), id="low bit of the checksum"),
        pytest.param(".sha256", lambda content: flip(content, 0x80, at=0), id="high bit of the checksum"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(three, caplog, which, change):
    rewrite(three / f"step_00000003.pt{which}", change)
    assert is_of(store.newest(three), 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{three}/step_00000003.pt is damaged" in record.getMessage()
    rewrite(three / f"step_00000002.pt{which}", change)
    assert is_of(store.newest(three), 1)
    assert (three / "step_00000003.pt").exists()  # kept for inspection


def test_when_all_are_damaged_no_silent_restart(three):
    for step in (1, 2, 3):
        rewrite(three / f"step_0000000{step}.pt", flip)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(step_00000003.*move that folder away"):
        store.newest(three)


# Kills


def save_for_ever(folder, first, done):
    step = first
    while True:
        store.save(folder, step, state_of(step, size=5_000_000))  # 20 MB
        done.value = step
        store.prune(folder, 2, lambda _: False)
        step += 1


def test_kill_in_the_middle_of_saving(folder):
    """A forked process saves continuously and is killed at a random moment, eight times."""
    fork, choice = multiprocessing.get_context("fork"), random.Random(0)
    done, left_over = fork.Value("l", 0, lock=False), 0
    for _ in range(8):
        process = fork.Process(target=save_for_ever, args=(folder, done.value + 1, done))
        process.start()
        before = done.value
        wait_for(lambda before=before: done.value != before, "one more complete checkpoint", every=0.005)
        time.sleep(choice.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9
        state = store.newest(folder)
        # The newest may be one later than reported: killed after its rename, before the report.
        assert state["step"] in (done.value, done.value + 1)
        assert is_of(state, state["step"])
        done.value = state["step"]
        left_over += len(list(folder.glob("*.tmp")))
    assert left_over > 0  # otherwise no kill occurred during a write, and the test is void
    store.save(folder, done.value + 1, state_of(done.value + 1))
    assert list(folder.glob("*.tmp")) == []


def test_files_left_by_killed_processes_are_deleted_at_the_next_save(three):
    for name in ("step_00000004.pt.4711.tmp", "step_00000004.pt.sha256.4711.tmp"):
        (three / name).write_bytes(b"half")
    assert is_of(store.newest(three), 3)  # they have no effect
    store.save(three, 4, state_of(4))
    assert len(names(three)) == 8
    assert list(three.glob("*.tmp")) == []
