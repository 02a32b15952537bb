"""Every option of every group with values of every kind: refused with one line that names the option, or usable.

Nothing is written: each configuration is judged as the command line judges it, and the task of an accepted one is built
and checked.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from semaim.config.compose import CONF, composition, options, quoted_home
from semaim.config.kinds import LARGEST, Kind
from semaim.config.messages import explain
from semaim.config.naming import flatten
from semaim.config.run_spec import compose_run_spec
from semaim.config.schema import COMPONENTS, TOP
from semaim.config.validate import check_overrides, check_values, shown
from semaim.core.distributed import Processes
from semaim.errors import UserError
from semaim.preflight.command_line import check_command_line

NAN, INF = math.nan, math.inf
VALUES: list[Any] = [
    None, "", "abc", "../x", "12", "a\nb", -1, 0, 1, 0.3, -0.5, LARGEST + 1, NAN, INF, True, [], [1], [-1, -1, -1],
    ["a"], {"a": 1},
]  # fmt: skip
SHAPES = ["data=shapes", "data.source.train=64", "data.source.val=16"]
TASKS = ("knn", "linprobe", "finetune", "fewshot", "features")
COMMANDS = {
    "pretrain": ["evaluators=[knn,linear,pictures]", *SHAPES],
    "ema": ["target=ema", *SHAPES],
    "teacher": ["target=dino", "target.pretrained=false", "target.model=vit_tiny_patch16_224", *SHAPES],
    "none": ["tracking=none", "permutation=raster", "data=cifar10", "data.source.download=false"],
    "folder": ["data=folder", "data.root=nowhere"],
    "shards": ["data=shards", "data.root=nowhere"],
    **{
        task: [f"task={task}", "checkpoint=random", *SHAPES]
        for task in ("knn", "linprobe", "finetune", "fewshot", "features")
    },
    "visualize": ["task=visualize", "checkpoint=runs/x"],
    "digits": [],
}
NOT_BUILT = ("none", "folder", "shards", "visualize")  # need files


def leaves(config: DictConfig) -> list[str]:
    """The options that the command line sets, but for references to others."""
    plain = flatten(OmegaConf.to_container(config))
    typed = [name for name, value in plain.items() if "${" not in f"{value}" or name in ("run_name", "run_dir")]
    return [name for name in typed if "._" not in name and name.split(".")[0] not in ("named_after", "recipe")]


SEEN: set[str] = set()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["semaim"])
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_no_value_is_guessed(name: str, elsewhere: Path) -> None:
    command = COMMANDS[name]
    config, choices = composition(command), compose_run_spec(command).choices
    check_overrides(command, config, choices)
    defaults = flatten(OmegaConf.to_container(config))
    outcomes: Counter[str] = Counter()
    new = [leaf for leaf in leaves(config) if leaf not in SEEN]
    SEEN.update(new)
    for option in new:
        default = defaults[option]
        for value in VALUES:
            typed = f"{option}={value!r}"
            changed = config.copy()
            OmegaConf.set_struct(changed, False)
            OmegaConf.update(changed, option, value, merge=False)
            try:
                check_overrides(command, changed, choices)
                assert not isinstance(default, int | float) or type(value) in (int, float, bool, list, type(None)), (
                    typed
                )
                if name not in NOT_BUILT:
                    task = instantiate(changed.task, _convert_="all")
                    task.check(changed.seed, Processes(0, 1, torch.device("cpu")))
                outcomes["accepted"] += 1
            except Exception as error:
                message = explain(error)
                assert message is not None, f"{typed}: {error!r}"  # noqa: PT017
                group = option.split(".")[0]  # a check of several options names one of them
                assert option in message or f"{group}." in message, f"{typed}: {message}"
                assert "\n" not in message.replace(f"{value}", ""), message
                outcomes["refused"] += 1
    assert outcomes["refused"] >= 3 * outcomes["accepted"]
    assert sum(outcomes.values()) == len(new) * len(VALUES)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_kind(name: str) -> None:
    """Options that refer to a group, such as task.data, have none: the group's options have their own."""

    def compare(node: Any, kinds: Any, where: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                below = (
                    kinds.get(key) if isinstance(kinds.get(key), dict) else COMPONENTS.get(value.get("_target_"), {})
                )
                compare(value, below, f"{where}.{key}")
            elif not str(key).startswith("_") and not (isinstance(value, str) and value.startswith("${")):
                assert isinstance(kinds.get(key), Kind), f"{where}.{key}"

    plain: Any = OmegaConf.to_container(composition(COMMANDS[name]))
    compare({key: plain[key] for key in plain if key not in ("named_after", "recipe")}, TOP, "")


MODELS = ", ".join(
    f"{family}_{size}" for family in ("aim", "mae", "simmim") for size in ("base", "huge", "large", "small", "tiny")
)


def test_every_kind_is_of_an_option() -> None:
    used: set[str] = set()
    for group in CONF.rglob("*.yaml"):
        used |= {line.split(":")[1].strip() for line in group.read_text().splitlines() if "_target_:" in line}
    assert set(COMPONENTS) == {name for name in used if not name.startswith("hydra_plugins")}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("seed=-1", "seed=-1: seed must be a whole number, not negative, such as 0"),
        ("seed='12'", "seed='12': seed must be a whole number, not negative, such as 0"),
        ("device=gpu", "device=gpu: device must be auto, cpu or cuda; did you mean cpu?"),
        ("optimizer.base_lr=nan", "optimizer.base_lr=nan: optimizer.base_lr must be a number above 0, such as 0.016"),
        ("trainer.ema_decay=[2,2]",
         "trainer.ema_decay=[2,2]: trainer.ema_decay must be two numbers from 0 to 1, as a list, such as "
         "[0.999,0.9999]"),
        ("data.train_transform.std=[-1,-1,-1]",
         "data.train_transform.std=[-1,-1,-1]: data.train_transform.std must be a list of three numbers above "
         "0, such as "
         "[0.36,0.36,0.36]"),
        ("data.train_transform.flip=-1",
         "data.train_transform.flip=-1: data.train_transform.flip must be a number from 0 to 1, such as 0.0"),
        ("trainer.save_every_steps=0.3",
         "trainer.save_every_steps=0.3: trainer.save_every_steps must be a whole number from 1 to 1000000000, or null"),
        ("target.blur_sigma=inf", "target.blur_sigma=inf: target.blur_sigma must be a number above 0, such as 1.0"),
        ("sweep.restarts=-5",
         "sweep.restarts=-5: sweep.restarts must be a whole number from 0 to 1000000000, such as 3"),
        ("trainer.precision=bf61",
         "trainer.precision=bf61: trainer.precision must be auto, bf16, fp16 or float32; did you mean bf16?"),
        ("task.evaluators.knn.every_epochs=0",
         "task.evaluators.knn.every_epochs=0: task.evaluators.knn.every_epochs must be a whole number from 1 to "
         "1000000000, or null"),
        ("data.train_transform=3",
         "data.train_transform=3: data.train_transform is a group of options, set these: "
         "data.train_transform.image_size, data.train_transform.scale, data.train_transform.flip, "
         "data.train_transform.mean, data.train_transform.std"),
        ("checkpoint=", "checkpoint='': checkpoint must be a path, or a list of paths, or null"),
        ("checkpoint=[a]", "checkpoint=[a]: checkpoint must be a path, or null"),
        ("runs_dir=", "runs_dir='': runs_dir must be a path, such as runs"),
        ("run_name=..", "run_name=..: run_name must be the name of one folder, without /"),
        ("run_name=../../x", "run_name=../../x: run_name must be the name of one folder, without /"),
        ("sweep.name=../x", "sweep.name=../x: sweep.name must be the name of one folder, without /, or null"),
        ("parent_run=/nope", "parent_run=/nope is not the folder of a run or a sweep"),
        ("data.root=/photos", "data.root=/photos is not read by data=digits, whose images need no folder: add "
                              "data=folder (or another choice of data) for images of your own"),
        ("seed=${oc.env:SEMAIM_NOT_SET}",
         "seed=${oc.env:SEMAIM_NOT_SET}: KeyError raised while resolving interpolation: \"Environment variable "
         "'SEMAIM_NOT_SET' not found\""),
        ("trainer._target_=3", "trainer._target_=3: trainer._target_ must be the Python path of a class or function, "
                               "such as semaim.training.settings.TrainerSettings"),
        ("model=null", f"model=null: model must be one of {MODELS}"),
        ("model=[aim_tiny,aim_base]", f"model=[aim_tiny,aim_base]: model must be one of {MODELS}"),
        ("model=aim_tinny", "there is no aim_tinny in model (model=aim_tinny): did you mean aim_tiny? choose from "
                            f"{MODELS}"),
        ("data.train_transform={flop:1}", "there is no option data.train_transform.flop. did you mean "
                                          "data.train_transform.flip or data.train_transform.scale or "
                                          "data.train_transform.std?; data.train_transform has: flip, "
                                          "image_size, mean, "
                                          "scale, std"),
        ("data.root=/a(b", "data.root=/a(b: Hydra cannot read this value. A text with ~, brackets, braces, quotes or "
                           "commas is quoted for Hydra and for the shell: 'data.root=\"/a(b\"'"),
        ("permutation=raster,zigzag", "permutation=raster,zigzag: several values are a sweep, which -m starts; a value "
                                      "with a comma is typed 'permutation=\"raster,zigzag\"'"),
        ("trainer", "trainer: an option is typed option=value"),
        ("trainer..epochs=3", "trainer..epochs=3: 'trainer..epochs' is not the name of an option"),
        ("++optimizer.lr=3", "there is no option optimizer.lr. did you mean optimizer.min_lr or optimizer.base_lr or "
                             "optimizer.groups?; optimizer has: base_lr, groups, min_lr, optimizer, schedule, "
                             "weight_decay"),
        ("experiment=semaim_vitb_400ep", "there is no option experiment. An experiment is added: +experiment=..."),
        ("task=[knn,linprobe]", "task=[knn,linprobe]: task must be one of features, fewshot, finetune, knn, linprobe, "
                                "pretrain, visualize"),
        ("+model=aim_base", "+model=aim_base: model has a choice, which is replaced without +: model=aim_base"),
        ("++model=aim_base", "++model=aim_base: model has a choice, which is replaced without +: model=aim_base"),
        ("task.permutation=raster", "task.permutation=raster: task.permutation follows permutation, set that"),
        ("data.train_transform.image_size=64", "data.train_transform.image_size=64: data.train_transform.image_size "
                                               "follows data.image_size, set that"),
        ("seed=${nope}", "seed=${nope}: Interpolation key 'nope' not found"),
        ("runs_dir=s3://bucket/x", "runs_dir=s3://bucket/x: runs_dir must be a path, such as runs"),
        ("runs_dir='~nobody_here/x'", "runs_dir=~nobody_here/x: there is no home folder of this user"),
        ("tracking.uri=mlruns", "tracking.uri=mlruns is no MLflow store: give sqlite:///<file> or "
                                "http://<server>:<port>"),
        ("data.train_transform.scale=[0.5,0.1]",
         "data.train_transform.scale=[0.5,0.1]: data.train_transform.scale must be two ascending numbers above 0 and "
         "up to 1, as a list, such as [0.4,1.0]"),
        ("hydra/job_logging=nope", "there is no nope in hydra/job_logging (hydra/job_logging=nope)"),
    ],
)  # fmt: skip
def test_message(typed: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["semaim", typed])
    with pytest.raises(Exception) as caught:
        compose_run_spec([typed])
    assert explain(caught.value) == message


def test_suggestions_are_of_the_task_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["task=finetune", "checkpoint=random", "task.mixpu=0.1"]
    monkeypatch.setattr("sys.argv", ["semaim", *words])
    with pytest.raises(Exception) as caught:
        compose_run_spec(words)
    assert str(explain(caught.value)).startswith("there is no option task.mixpu. did you mean task.mixup")


def test_a_value_from_elsewhere_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composition([])
    config.seed = "${oc.decode:${oc.env:SEMAIM_SEED}}"
    monkeypatch.setenv("SEMAIM_SEED", "7")
    check_values(config, options())
    monkeypatch.setenv("SEMAIM_SEED", "-7")
    with pytest.raises(UserError, match=r"^seed=-7: seed must be a whole number, not negative"):
        check_values(config, options())


def test_home_folder_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves data.root=~/photos as it is, and Hydra cannot read it."""
    monkeypatch.setenv("HOME", "/home/ada")
    typed = [
        "data=folder",
        "data.root=~/my photos",
        "runs_dir=~",
        "~x",
        "seed=1",
        "images=[~/a]",
        "run_name=é",
        "a='é'",
    ]
    words = quoted_home(typed)
    assert words[:3] == ["data=folder", "data.root='~/my photos'", "runs_dir='~'"]
    assert words[3:] == ["~x", "seed=1", "images=[~/a]", "run_name='é'", "a='é'"]
    config = compose_run_spec([*words[:3], "target=dino", "target.weights='~/w.pt'"]).config
    assert config["data"]["root"] == "/home/ada/my photos"
    assert config["run_dir"].startswith("/home/ada/pretrain_folder_")
    assert config["target"]["weights"] == "/home/ada/w.pt"


def test_values_are_shown_as_typed() -> None:
    values = [None, True, 0.5, "abc", "a b", "true", "1", "", [1, "x"], {"a": False}]
    assert [shown(value) for value in values] == [
        "null", "true", "0.5", "abc", "'a b'", "'true'", "'1'", "''", "[1,x]", "{a:false}",
    ]  # fmt: skip


def test_values_are_judged_before_torch_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from semaim.config.run_spec import compose_run_spec\n"
        "try: compose_run_spec(['trainer.epochs=0'])\n"
        "except ValueError as error: print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("trainer.epochs=0: trainer.epochs must be a whole number from 1 to")
    assert done.stdout.endswith(" False\n")
    assert options().trainer.epochs == 20


@pytest.mark.parametrize(("typed", "words"), [
    ("gpus_per_node=-1", "a whole number from 0 to 1024, or null"),
    ("timeout_min=0", "a whole number from 1 to 10000000"),
    ("mem_gb=-2", "a number above 0, or null"),
])  # fmt: skip
def test_options_of_the_launcher(typed: str, words: str, elsewhere: Path) -> None:
    key, _, value = typed.partition("=")
    with pytest.raises(UserError) as caught:
        check_command_line(["hydra/launcher=slurm", f"hydra.launcher.{typed}", "seed=0,1"], multirun=True)
    assert str(caught.value) == f"hydra.launcher.{key}={value}: hydra.launcher.{key} must be {words}"
    assert list(elsewhere.iterdir()) == []
