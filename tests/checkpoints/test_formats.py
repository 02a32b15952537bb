"""Files that are not semaim checkpoints are refused with one message, and nothing in them is executed."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile

import pytest
import torch

from semaim.checkpoints import store
from semaim.errors import UserError


class Payload:
    """A malicious payload: loading it would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_file_is_refused_and_does_nothing(tmp_path, how):
    path, target = tmp_path / "evil.pth", tmp_path / "it_ran"
    content = {"args": Payload(target), "state_dict": {"weight": torch.zeros(2)}}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"evil\.pth was not loaded: .*would run code \(posix\.system\)"):
        store.load(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert target.exists()  # the payload works


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("photo.txt", "hello")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"This is a text file.\n", id="text"),
        pytest.param(b"hello", id="short text"),
        pytest.param(b"", id="empty"),
        pytest.param(bytes(1000), id="zeros"),
        pytest.param(random.Random(0).randbytes(1000), id="noise"),
        pytest.param(zipped(), id="zip"),
        pytest.param(pickle.dumps({"a": 1}, protocol=2), id="plain pickle"),
        pytest.param(b"J", id="struct.error 1"),
        pytest.param(b"Go\n", id="struct.error 2"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path}/x\.pt is not a checkpoint, or is damaged"):
        store.load(tmp_path / "x.pt")


@pytest.mark.parametrize(("held", "kind"), [([1, 2], "list"), (torch.zeros(3), "Tensor")])
def test_content_other_than_a_checkpoint_is_named(tmp_path, held, kind):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x\.pt holds a {kind}, not a checkpoint"):
        store.load(tmp_path / "x.pt")


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):  # a folder is not a file either
        with pytest.raises(UserError, match=f"checkpoint={path} does not exist"):
            store.load(path)


@pytest.mark.parametrize("other", [1, 3, None])
def test_our_checkpoints_of_another_format_are_refused(tmp_path, other):
    torch.save({"format": other, "architecture": {}, "step": 1}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x\.pt has format {other}; this semaim reads 2"):
        store.load(tmp_path / "x.pt")
