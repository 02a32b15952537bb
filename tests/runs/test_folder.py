"""Run folders: a stable name, one process at a time, and detection of configuration changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from semaim.config.naming import MAY_DIFFER, CheckpointName, differences, flatten, run_name
from semaim.errors import CannotWrite, UserError
from semaim.runs.folder import RunFolder

CHOICES = {"task": "pretrain", "data": "digits", "model": "aim_tiny", "permutation": "raster", "trainer": "small"}
NAMED_AFTER = ["task", "data", "model", "permutation"]
FRONT = "pretrain_digits_aim_tiny_raster"

# Locks the folder and forks a child that outlives it, like a loader's worker; unlocks on request.
HOLDER = """
import os, sys, time
from pathlib import Path
from semaim.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(os.getpid(), child, flush=True)
sys.stdin.readline()
folder.unlock()
print("unlocked", flush=True)
sys.stdin.readline()
"""


def name(*overrides, choices=CHOICES):
    return run_name(choices, NAMED_AFTER, overrides)


def test_name_of_a_run_is_readable_and_stable():
    assert name() == FRONT
    assert name("trainer.epochs=20", "seed=1") == f"{FRONT}_seed-1_trainer.epochs-20"
    assert name("seed=1", "trainer.epochs=20") == name("trainer.epochs=20", "seed=1")
    assert name("trainer.epochs=21", "seed=1") != name("trainer.epochs=20", "seed=1")
    # A group at the front of the name is not repeated; another one is.
    assert name("model=aim_base", choices={**CHOICES, "model": "aim_base"}) == "pretrain_digits_aim_base_raster"
    assert name("trainer=imagenet") == f"{FRONT}_trainer-imagenet"


def test_name_without_the_plus_of_an_experiment():
    assert name("+experiment=semaim_vitb_800ep") == f"{FRONT}_experiment-semaim_vitb_800ep"
    assert name("++seed=3") == name("seed=3")


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_name_ignores_what_changes_no_result(key):
    if key == "data.root":  # may move during a run, but initially distinguishes data sets
        assert name("data.root=photos", "seed=1") == f"{FRONT}_data.root-photos_seed-1"
        return
    assert name(f"{key}=1", "seed=1") == f"{FRONT}_seed-1"
    assert name(f"{key}.deeper=1") == FRONT
    assert name(f"+{key}=1") == FRONT


def test_name_includes_options_with_a_common_prefix():
    assert name("device_map=1") == f"{FRONT}_device_map-1"
    assert name("trainer.compile_all=1") == f"{FRONT}_trainer.compile_all-1"
    assert name("trainer.batch_size=64") == f"{FRONT}_trainer.batch_size-64"


def test_a_repeated_option_counts_once():
    assert name("seed=1", "seed=1") == name("seed=1")
    assert name("seed=0", "trainer.epochs=3", "+seed=1") == name("trainer.epochs=3", "seed=1")


def test_a_value_that_looks_like_an_option_makes_no_other_name():
    names = [name("data.root=a_seed-1"), name("data.root=a", "seed=1"), name("data.root=a_trainer.epochs-1")]
    assert names[1] == f"{FRONT}_data.root-a_seed-1"
    assert len(set(names)) == 3


def test_letters_with_accents_are_readable():
    assert name("data.root='/Fotos Föhr'").startswith(f"{FRONT}_data.root--Fotos-Fohr-")
    assert name("data.root='/Fotos Föhr'") != name("data.root='/Fotos Fohr'")


def test_evaluations_are_named_after_their_checkpoint():
    choices = {"task": "knn", "data": "digits"}

    def evaluation(text, tells_data, *overrides):
        of = CheckpointName(text, tells_data)
        return run_name(choices, ["task", "data"], ["task=knn", "checkpoint=x", *overrides], of)

    assert evaluation("digits_aim_tiny", True) == "knn_digits_aim_tiny"
    assert evaluation("digits_aim_tiny", True, "data=cifar10") == "knn_digits_aim_tiny_with_data-cifar10"
    assert evaluation("digits_aim_tiny_seed-1", True) != evaluation("digits_aim_tiny", True, "seed=1")
    assert evaluation("random", False, "data=digits") == "knn_digits_random"
    long = [evaluation("x" * 110, True, f"data.val_fraction=0.{n}") for n in (1, 2)]
    assert all(re.fullmatch(r"knn_x+_with_val_fraction-0\.[12]-[0-9a-f]{8}", one) and len(one) <= 120 for one in long)
    assert len(set(long)) == 2, "what differs is not cut off"


def test_strange_characters_are_replaced_and_the_name_made_unique():
    names = [name("checkpoint=/data/a b/x"), name("checkpoint=/data/a/b x"), name("data.image_size=[32,48]")]
    for one in names:
        assert re.fullmatch(r"[A-Za-z0-9_.+-]+-[0-9a-f]{8}", one), one
    assert names[0].startswith(f"{FRONT}_checkpoint--data-a-b-x-")
    assert names[0][:-9] == names[1][:-9]  # equal except for the hash
    assert len(set(names)) == 3
    assert name("checkpoint=/data/a b/x") == names[0]


@pytest.mark.parametrize(
    "asked", ["seed=1", "optimizer.min_lr=-1e-6", "data.image_size=[32,48]", "a='b=c d'", "~x", "k="]
)
def test_names_are_valid_option_values(asked):
    (override,) = OverridesParser.create().parse_overrides([f"checkpoint=runs/{name(asked)}"])
    assert override.value() == f"runs/{name(asked)}"


def test_long_names_are_cut_and_made_unique():
    long = [name(*(f"trainer.option_{n}={n}" for n in range(20)), f"seed={seed}zz") for seed in (1, 2)]
    twins = [name("a=" + "x" * 150 + end) for end in "ab"]
    assert all(len(one) <= 120 for one in long + twins)
    assert twins[0][:-8] == twins[1][:-8]
    assert len({*long, *twins}) == 4
    exactly = "a=" + "x" * (120 - len(FRONT) - 3)
    assert name(exactly) == f"{FRONT}_{exactly.replace('=', '-')}"  # 120 characters are not cut
    assert len(name(exactly + "y")) == 119


def test_flatten():
    nested = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}, "g": None, 5: "x"}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}, "g": None, "5": "x"}


def test_differences_name_the_relevant_options():
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": None, "same": "x", "device": "cpu", "tracking": {"uri": 1}}
    new = {"a": {"b": 2, "c": [1, 3]}, "come": {"x": 0.5}, "same": "x", "device": "cuda", "tracking": {"other": 2}}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "a.c: [1, 2] -> [1, 3]",
        "come.x: (absent) -> 0.5",
        "gone: None -> (absent)",
    ]
    assert differences(old, old) == []


CONFIG = {
    "recipe": "short",
    "seed": 0,
    "extend": None,
    "device": "auto",
    "optimizer": {"base_lr": 2e-3, "min_lr": 1.0e-05, "betas": [0.9, 0.95], "huge": 1e300, "sum": 0.1 + 0.2},
    "data": {"root": None, "image_size": [32, [48, [1.5, None]]], "num_workers": 4, "empty": {}, "none": []},
    "text": {"float": "1e-3", "null": "null", "true": "true", "nothing": "", "zeros": "0123", "colon": "a: b # c"},
    "trainer": {"compile": False, "max_steps": None, "epochs": 10},
}


def changed(key, value):
    group, option = key.split(".")
    return {**CONFIG, group: {**CONFIG[group], option: value}}


def test_configuration_survives_the_file(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.path.mkdir(parents=True)
    folder.store_or_check_config(CONFIG)
    stored = (folder.path / "config.yaml").read_text()
    for _ in range(2):
        RunFolder(tmp_path / "runs" / "a").store_or_check_config(CONFIG)
    assert (folder.path / "config.yaml").read_text() == stored
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml"]  # no temporary file remains


def test_what_may_differ_may_differ(tmp_path):
    folder = RunFolder(tmp_path)
    folder.store_or_check_config(CONFIG)
    folder.store_or_check_config(
        {**CONFIG, "device": "cuda", "tracking": {"uri": "http://x"}, "runs_dir": "/elsewhere"}
    )
    for key, value in [
        ("trainer.compile", True),
        ("trainer.max_steps", 7),
        ("data.num_workers", 0),
        ("data.root", "/"),
    ]:
        folder.store_or_check_config(changed(key, value))
    assert "device: auto" in (folder.path / "config.yaml").read_text()  # the first one is kept


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.base_lr", 2.1e-3, r"optimizer\.base_lr: 0\.002 -> 0\.0021"),
        ("optimizer.min_lr", 0, r"optimizer\.min_lr: 1e-05 -> 0"),
        ("optimizer.betas", [0.9, 0.999], r"optimizer\.betas: \[0\.9, 0\.95\] -> \[0\.9, 0\.999\]"),
        ("trainer.epochs", 20, r"trainer\.epochs: 10 -> 20"),
        ("trainer.new", 1, r"trainer\.new: \(absent\) -> 1"),
        ("text.null", None, r"text\.null: null -> None"),
    ],
)
def test_another_configuration_is_refused(tmp_path, key, value, message):
    folder = RunFolder(tmp_path)
    folder.store_or_check_config(CONFIG)
    with pytest.raises(UserError, match=message) as error:
        folder.store_or_check_config(changed(key, value))
    assert "run_name=" in str(error.value)
    folder.store_or_check_config(CONFIG)  # the stored one is unchanged


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/x cannot be made .*set runs_dir"):
        RunFolder(tmp_path / "runs" / "x").lock()


def test_status(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.status() == {}
    folder.set_status("running", step=3)
    folder.set_status("finished", metric="knn", result={"knn": 81.5})
    status = folder.status()
    assert (status["state"], status["result"], status["pid"]) == ("finished", {"knn": 81.5}, os.getpid())
    assert "step" not in status


@pytest.fixture
def holder(tmp_path):
    """A process that locks tmp_path, its pid, and its child's pid."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)  # fmt: skip
    pid, child = map(int, process.stdout.readline().split())
    try:
        yield process, pid, child
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


def test_a_second_process_is_refused_until_the_first_unlocks(tmp_path, holder):
    process, pid, _ = holder
    folder = RunFolder(tmp_path)
    assert folder.is_locked()
    with pytest.raises(UserError, match=rf"in use by process {pid} on .*run_name="):
        folder.lock()
    with pytest.raises(UserError, match=f"process {pid} "):  # the refusal changed nothing
        folder.lock()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "unlocked\n"
    assert not folder.is_locked()
    folder.lock()
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    folder.unlock()
    folder.unlock()  # a second call has no effect


def test_the_lock_ends_with_its_process_even_if_a_child_is_alive(tmp_path, holder):
    process, pid, child = holder
    folder = RunFolder(tmp_path)
    os.kill(pid, signal.SIGKILL)
    process.wait()
    os.kill(child, 0)  # raises unless the child is alive
    assert not folder.is_locked()
    folder.lock()
    folder.unlock()


def test_a_folder_never_locked_is_not_locked(tmp_path):
    assert not RunFolder(tmp_path).is_locked()
    assert not RunFolder(tmp_path / "none").is_locked()
    assert list(tmp_path.iterdir()) == []  # the query creates no file


def test_checking_a_lock_does_not_release_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.lock()
    assert not folder.is_locked(), "not by another process"
    code = (
        f"from semaim.runs.folder import RunFolder; from pathlib import Path; RunFolder(Path({str(tmp_path)!r})).lock()"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use by process" in second.stderr
    folder.unlock()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_notices_that_its_folder_was_deleted_or_renamed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    folder.set_status("running", step=1)
    folder.path.rename(tmp_path / "other")
    with pytest.raises(CannotWrite, match=r"was deleted or renamed during the run\): restore it, then type"):
        folder.set_status("running", step=2)
    assert not folder.path.exists()
    second = RunFolder(tmp_path / "run")
    second.lock()
    with pytest.raises(CannotWrite):
        folder.set_status("running", step=2)
    assert not second.status()
    folder.unlock(), second.unlock()
