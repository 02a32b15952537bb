"""The code of a submission: a copy that jobs import, and what has changed since."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.runs import provenance
from semaim.runs.provenance import PACKAGE
from support.commands import PROGRAM
from support.fake_slurm import FakeQueue
from support.in_process import run_here
from support.submitting import SWEEP, sweep


def test_jobs_import_a_copy_of_the_code(tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the modules of one's own import; `images` is a folder that an import by chance names."""
    imports = "import my_package.helper\nfrom semaim.permutations import Raster\n"
    (tmp_path / "my_orders.py").write_text(f"{imports}\n\nclass Mine(Raster): ...\n")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "helper.py").write_text("try:\n    import images\nexcept ImportError:\n    pass\n")
    (tmp_path / "my_package" / "gone.py").symlink_to("nowhere")
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "conf" / "permutation").mkdir(parents=True)
    (tmp_path / "conf" / "permutation" / "mine.yaml").write_text("_target_: my_orders.Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_here(tmp_path, "-m", "--config-dir", "conf", *SWEEP[1:], "permutation=mine", "sweep.name=s") == 0
    copied = Path(str(sweep(tmp_path, "s").copied))
    assert copied.parent == tmp_path / "runs" / "s" / "code"
    modules = ["code_version.json", "hydra_plugins", "my_orders.py", "my_package", "semaim"]
    assert sorted(path.name for path in copied.iterdir()) == modules
    assert [path.name for path in (copied / "my_package").iterdir()] == ["helper.py"]
    for name in ("training/loop.py", "conf/config.yaml", "report/published.csv"):
        assert (copied / "semaim" / name).read_bytes() == (PACKAGE / name).read_bytes()
    (script,) = slurm.scripts()
    setup = "\n".join(line for line in script.splitlines() if line.startswith("export PYTHON"))
    say = "import os, sys, json, my_orders, semaim.runs.provenance as p; print(json.dumps([my_orders.__file__, "
    say += "p.__file__, p.code_version()]))"
    (tmp_path / "semaim").mkdir()  # of the working directory, which must not come first
    (tmp_path / "semaim" / "__init__.py").write_text("raise ImportError")
    code = f"{setup}\n\"$0\" -c '{say}'"
    told = subprocess.run(["bash", "-c", code, PROGRAM[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    mine, provenance, version = json.loads(told.stdout)
    assert [mine, provenance] == [str(copied / "my_orders.py"), str(copied / "semaim" / "runs" / "provenance.py")]
    assert version == json.loads((copied / "code_version.json").read_text())


def test_a_copy_that_would_be_large_is_refused(
    tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("semaim.sweeps.code_copy.MAX_BYTES", 10_000)
    assert run_here(tmp_path, *SWEEP, "sweep.name=s") == 2
    assert re.search(r"error: \S+/semaim has \S+ [kM]B, too much to be copied for the jobs: keep its data elsewhere, "
                     r"or set sweep.snapshot=false\n", capsys.readouterr().err)  # fmt: skip
    assert run_here(tmp_path, *SWEEP, "sweep.name=s", "sweep.snapshot=false") == 0
    assert sweep(tmp_path, "s").copied is None
    assert "PYTHONPATH" not in slurm.scripts()[0]


def test_changed_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a copy, also a second change of files that are not committed."""
    from semaim.sweeps.code_copy import checksums_file, fix_code

    package = tmp_path / "checkout" / "semaim"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    (package / "cli.py").write_text("changed once")
    version, _ = fix_code(tmp_path, [], copy=False)
    assert provenance.code_changes(version, provenance.code_version(), checksums_file(tmp_path, version)) is None
    (package / "cli.py").write_text("changed twice")
    (package / "run.py").unlink()
    (package / "own.py").touch()
    assert provenance.code_changes(version, provenance.code_version(), checksums_file(tmp_path, version)) == (
        "commit unknown then, commit unknown now; cli.py, own.py, run.py"
    )


def test_a_retry_names_the_code_that_has_changed(
    tmp_path: Path, slurm: FakeQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the jobs of the first submission have a copy."""
    assert run_here(tmp_path, *SWEEP, "seed=0,1", "sweep.name=s") == 0
    slurm.set_state("1_0", "FAILED")
    edited = provenance.checksums() | {"cli.py": "another"}
    monkeypatch.setattr(provenance, "checksums", lambda: edited)
    capsys.readouterr()
    assert main(["retry", "--failed", str(tmp_path / "runs" / "s")]) == 0
    assert re.search(r"changed since the last submission: .+ now; cli.py\n", capsys.readouterr().err)
    assert len(slurm.scripts()) == 2
