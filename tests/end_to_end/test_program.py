"""The program `semaim`: its verbs, their help pages, its completion, and the commands that it prints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semaim.cli import VERBS
from support.commands import ENVIRONMENT, PIPED, PROGRAM, SMALL, run, start, succeed
from support.holding import holding
from support.waiting import PATIENCE

GONE = ("check", "status", "cancel", "retry", "sync", "report", "features", "export")
# The console script is in the interpreter's folder.
ON_PATH = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Result of a command pasted into a shell."""
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, **PIPED | {"env": ON_PATH}, timeout=PATIENCE, check=False
    )


def test_the_help_page_lists_every_verb(tmp_path: Path) -> None:
    said = succeed(tmp_path, "--help", launcher=PROGRAM)
    listed = re.findall(r"^  (\w+) +\S", said, re.MULTILINE)
    assert listed == list(VERBS)
    assert set(listed) == {"run", "again", "shard", "ls", "rm", "completion", *GONE}
    assert shell("semaim", tmp_path).stdout == said  # the console script, without a verb


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "run"])
def test_every_verb_explains_itself(verb: str, tmp_path: Path) -> None:
    said = succeed(tmp_path, verb, "--help", launcher=PROGRAM)
    assert said.startswith(f"usage: semaim {verb} ")
    assert len(said.splitlines()) > 5
    assert max(map(len, said.splitlines())) <= 120


def test_run_is_the_runner(tmp_path: Path) -> None:
    options = ("--cfg", "job", "model=aim_base", "seed=3")
    assert succeed(tmp_path, "run", *options, launcher=PROGRAM) == succeed(tmp_path, *options)
    assert succeed(tmp_path, "run", "--help", launcher=PROGRAM) == succeed(tmp_path, "--help")


@pytest.mark.parametrize("verb", GONE)
def test_the_former_modules_are_removed(verb: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", f"semaim.{verb}", "--help"], cwd=tmp_path, **PIPED, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("statuss", "runs"), "error: there is no verb statuss"),
        (("status",), "the following arguments are required: folder"),
        (("status", "nowhere"), "error: nowhere is neither the folder of a sweep nor of a run"),
        (("cancel", "nowhere"), "error: nowhere is neither the folder of a sweep nor of a run"),
        (("retry", "nowhere"), "the following arguments are required: --failed"),
        (("retry", "--failed", "nowhere", "mem_gb"), "error: mem_gb: give launcher options as option=value"),
        (("sync", "nowhere"), "error: nowhere is not a run folder"),
        (("export", "nowhere"), "error: checkpoint=nowhere does not exist"),
        (("export", "nowhere", "--format", "onnx"), "error: --format onnx is unknown: choose timm or huggingface"),
        (("report", "--tag", "x"), "error: --tag=x must be key=value"),
        (("ls", "nowhere"), "error: nowhere is not a folder"),
        (("ls", "--state", "done"), "invalid choice: 'done'"),
        (("rm", "nowhere"), "error: nowhere is neither the folder of a sweep nor of a run"),
        (("check", "--tflops", "-1"), "error: --tflops -1 must be positive"),
        (("check", "--config-dir", "nowhere"), "error: --config-dir nowhere is not a folder"),
        (("run", "modle=aim_tiny"), "error:"),
        (("completion", "fish"), "invalid choice: 'fish'"),
    ],
)
def test_mistakes_end_with_a_message_and_exit_code_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words, launcher=PROGRAM)
    assert (done.returncode, "Traceback" in done.stdout) == (2, False), done.stdout
    assert message in done.stdout
    assert not list(tmp_path.iterdir())


def test_another_state_is_refused_with_the_states_that_folders_tell(tmp_path: Path) -> None:
    done = run(tmp_path, "ls", "--state", "killed", launcher=PROGRAM)
    assert done.returncode == 2
    (choices,) = re.findall(r"invalid choice: 'killed' \(choose from (.+)\)", done.stdout)
    assert re.findall(r"\w+", choices) == [
        "new", "running", "requeued", "finished", "failed", "interrupted", "vanished",
        "damaged", "unknown",
    ]  # fmt: skip


def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    done = shell("semaim completion bash | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stdout in ("0\n", "141\n")  # 0 if all was written before the reader ended


def test_watching_ends_with_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
    with holding(tmp_path / "run"):
        watch = start([*PROGRAM, "status", "--watch", "run"], tmp_path)
        assert watch.stdout is not None
        first = [watch.stdout.readline() for _ in range(4)]
        watch.send_signal(signal.SIGINT)
        rest = watch.stdout.read()
        watch.wait(30)
    assert "running" in first[-1]
    assert (watch.returncode, rest) == (130, "interrupted\n")


def test_help_and_completion_load_no_torch() -> None:
    code = """
import sys
from semaim.cli import main
assert [main(words) for words in ([], ["--version"], ["completion", "bash"])] == [0, 0, 0]
assert not {"torch", "mlflow", "submitit"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("semaim st", ["status"]),
        ("semaim status --w", ["--watch"]),
        ("semaim status a", ["a folder"]),
        ("semaim export --num", ["--num-heads"]),
        ("semaim run semantic_map=", ["cls", "gap", "self"]),
        ("semaim check hydra/launcher=slurm_", ["slurm_4x8", "slurm_cpu"]),
        ("semaim run seed=0 trainer.max", ["trainer.max_steps="]),
        ("semaim run +experiment=semaim_vitl", ["semaim_vitl_400ep", "semaim_vitl_800ep"]),
    ],
)
def test_bash_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    ask = f"""
eval "$(semaim completion bash)"
COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
_semaim
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = shell(ask, tmp_path)
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, expected)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_loads_its_completion(tmp_path: Path) -> None:
    ask = 'autoload -Uz compinit && compinit -u -d ./dump; eval "$(semaim completion zsh)"; echo $_comps[semaim]'
    done = subprocess.run(["zsh", "-fc", ask], cwd=tmp_path, **PIPED | {"env": ON_PATH}, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "_bash_complete -o filenames -F _semaim\n")


def test_printed_commands_can_be_pasted(tmp_path: Path) -> None:
    """Also with spaces in the paths of the configuration folder and run folders."""
    (tmp_path / "my conf" / "permutation").mkdir(parents=True)
    (tmp_path / "my conf" / "permutation" / "mine.yaml").write_text("_target_: semaim.permutations.Raster\n")
    options = [option for option in SMALL if not option.startswith("task.")]
    said = succeed(
        tmp_path, "--config-dir", "my conf", "permutation=mine", "runs_dir=my runs", "trainer.max_steps=2",
        "trainer.epochs=1", "evaluators=[]", *options,
    )  # fmt: skip
    evaluate = re.search(r"evaluate: +(semaim run .*)", said)
    larger = re.search(r"larger model: +(semaim run .*)", said)
    assert evaluate is not None
    assert larger is not None
    assert f"--config-dir '{tmp_path}/my conf'" in larger[1]
    done = shell(f"{evaluate[1]} tracking=none 'runs_dir=my runs'", tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"knn_10_mean +\d+\.\d+", done.stdout)
    composed = shell(f"{larger[1]} --cfg job", tmp_path)
    assert composed.returncode == 0, composed.stdout
    assert "_target_: semaim.permutations.Raster" in composed.stdout
