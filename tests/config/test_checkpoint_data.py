"""An evaluation takes data and seed from the run that made its checkpoint, unless the command line says otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from semaim.config.checkpoint_data import all_words, completed
from semaim.config.compose import folder_path
from semaim.config.run_spec import RunSpec, compose_run_spec
from semaim.errors import UserError
from support.in_process import job

PHOTOS = ("data=folder", "data.root=photos", "data.image_size=48", "data.patch_size=8", "data.val_fraction=0.1")
PHOTOS += ("data.source.exif=false", "data.accept_changes=true", "seed=3")
TAKEN = ["data=folder", "data.root=photos", "data.image_size=48", "data.patch_size=8", "data.val_fraction=0.1"]
TAKEN += ["data.source.exif=false", "seed=3"]
OWN = "defaults: [folder, _self_]\nroot: mine\nsource: {exif: false}\n"


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*overrides: str, name: str = "run_name=pre", folders: tuple[str, ...] = (), **start: object) -> RunSpec:
    """The run folder of a command line, as far as evaluations read it."""
    spec = compose_run_spec([*overrides, *[name] * bool(name)], folders)
    folder = Path(spec.cfg.run_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(spec.config)))
    entry = {"folder": str(Path.cwd()), "choices": spec.parts, "config_dirs": [str(folder_path(f)) for f in folders]}
    (folder / "environment.json").write_text(json.dumps({"starts": [entry | start]}))
    return spec


def knn(*words: str) -> RunSpec:
    return job("task=knn", *words)


def test_all_of_the_data_and_the_seed_are_taken() -> None:
    pretraining = made(*PHOTOS)
    spec = knn("checkpoint=runs/pre")
    changed = {"accept_changes": False}  # a decision on one start of that run
    assert spec.config["data"] == pretraining.config["data"] | changed
    assert spec.config["seed"] == 3
    assert (spec.choices["data"], spec.choices["recipe"]) == ("folder", "published")
    assert spec.overrides == ["task=knn", "checkpoint=runs/pre"]
    assert spec.command == "semaim run task=knn checkpoint=runs/pre"
    assert str(spec.inherited) == f"data and seed from runs/pre: {' '.join(TAKEN)}"


@pytest.mark.parametrize(
    "checkpoint",
    [
        "runs/pre/",
        "./runs/pre",
        "{cwd}/runs/pre",
        "runs/pre/checkpoints/step_00000120.pt",
        "runs/pre/best",
    ],
)
def test_any_way_to_name_the_run(checkpoint: str) -> None:
    made(*PHOTOS)
    spec = knn(f"checkpoint={checkpoint.format(cwd=Path.cwd())}")
    assert spec.inherited is not None
    assert spec.inherited.overrides == TAKEN
    inside = {"120": "_step-120", "best": "_best"}
    assert spec.cfg.run_name == "knn_of_pre" + next((end for key, end in inside.items() if key in checkpoint), "")


def test_of_several_checkpoints_the_first_tells_the_data() -> None:
    made(*PHOTOS)
    made("data=shapes", name="run_name=other")
    spec = job("task=visualize", "checkpoint=[runs/pre/,runs/other]")
    assert (spec.choices["data"], list(spec.cfg.checkpoint)) == ("folder", ["runs/pre", "runs/other"])
    assert re.fullmatch(r"visualize_of_pre_and_1_more-[0-9a-f]{8}", spec.cfg.run_name)
    assert spec.cfg.run_name != job("task=visualize", "checkpoint=[runs/pre,random]").cfg.run_name


def test_an_option_replaces_one_and_a_choice_all() -> None:
    made(*PHOTOS)
    one = knn("checkpoint=runs/pre", "data.val_fraction=0.2")
    assert (one.cfg.data.root, one.cfg.data.val_fraction, one.cfg.seed) == ("photos", 0.2, 3)
    assert one.command == "semaim run task=knn checkpoint=runs/pre data.val_fraction=0.2"
    every = knn("checkpoint=runs/pre", "data=shapes")
    assert every.config["data"] == job("data=shapes").config["data"]
    assert str(every.inherited) == "seed from runs/pre: seed=3"
    same = knn("checkpoint=runs/pre", "data=folder", "data.root=photos")
    assert (same.cfg.data.val_fraction, same.cfg.data.image_size) == (None, 224)
    assert knn("checkpoint=runs/pre", "seed=0").cfg.seed == 0
    names = {each.cfg.run_name for each in (one, every, same, knn("checkpoint=runs/pre"))}
    assert len(names) == 4
    assert "knn_of_pre_with_data.val_fraction-0.2" in names


def test_the_full_command_is_the_same_run() -> None:
    made(*PHOTOS)
    short, full = knn("checkpoint=runs/pre"), knn("checkpoint=runs/pre", *TAKEN)
    assert (full.overrides, full.config) == (short.overrides, short.config)
    partly = knn("checkpoint=runs/pre", "data.val_fraction=0.2")
    again = knn("checkpoint=runs/pre", *(each.replace("=0.1", "=0.2") for each in TAKEN))
    assert (again.overrides, again.config) == (partly.overrides, partly.config)


def test_the_words_of_a_command_are_completed_for_hydra() -> None:
    made(*PHOTOS)
    assert all_words(["task=knn", "checkpoint=runs/pre/", "seed=1"]) == [
        *("task=knn", "checkpoint=runs/pre", "seed=1"), *TAKEN[:-1],
    ]  # fmt: skip
    for other in (["-m", "task=knn,linprobe", "checkpoint=runs/pre"], ["checkpoint=runs/pre"], ["--help"]):
        assert all_words(other) == other


def test_an_evaluation_of_an_evaluation() -> None:
    made(*PHOTOS)
    made("task=finetune", "checkpoint=runs/pre", name="")
    spec = knn("checkpoint=runs/finetune_of_pre")
    assert spec.cfg.run_name == "knn_of_finetune_of_pre"
    assert spec.inherited is not None
    assert spec.inherited.overrides == TAKEN


def test_values_that_need_quotes() -> None:
    odd = '/Fotos Föhr/it\'s \\"2024\\" [1], {2}'
    made("data=folder", f"data.root='{odd.replace(chr(39), chr(92) + chr(39))}'", "data.train_transform.scale=[0.5,1]")
    assert knn("checkpoint=runs/pre").config["data"] == compose_of_pre()


def compose_of_pre() -> object:
    return OmegaConf.to_container(OmegaConf.load("runs/pre/config.yaml").data)


def test_images_of_ones_own_and_experiments_replace_the_data() -> None:
    made(*PHOTOS)
    assert job("task=visualize", "checkpoint=runs/pre", "images=photos").choices["data"] == "digits"
    tuned = job("+experiment=finetune_vitb", "checkpoint=runs/pre", "data.root=/data/imagenet")
    assert (tuned.choices["data"], tuned.cfg.data.image_size) == ("imagenet", 224)


def test_pretraining_and_other_checkpoints_take_nothing() -> None:
    made(*PHOTOS)
    assert job("checkpoint=runs/pre").inherited is None
    for other in ("random", "timm:vit_tiny_patch16_224", "weights.pth", "runs/none"):
        spec = knn(f"checkpoint={other}")
        assert (spec.inherited, spec.choices["data"], spec.overrides[1]) == (None, "digits", f"checkpoint={other}")


def test_a_relative_root_is_that_of_the_folder_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(*PHOTOS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"was trained with data.root=photos in the folder \S+, where it is not any "
                       r"more: give data.root=<where it is now>"):  # fmt: skip
        knn("checkpoint=../runs/pre")
    assert knn("checkpoint=../runs/pre", "data.root=/there").cfg.data.root == "/there"
    (tmp_path / "photos").mkdir()
    spec = knn("checkpoint=../runs/pre")
    assert spec.cfg.data.root == str(tmp_path / "photos")
    assert re.fullmatch(r"knn_of_pre-[0-9a-f]{8}", spec.cfg.run_name), "another run may be called pre in runs/"


def test_an_own_choice_of_data_comes_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text(OWN)
    pretraining = made("data=mine", "data.image_size=64", folders=(f"file://{tmp_path}/conf",))
    spec = knn("checkpoint=runs/pre")
    assert spec.config["data"] == pretraining.config["data"]
    assert str(spec.inherited) == f"data from runs/pre: data=mine data.image_size=64 (--config-dir {tmp_path}/conf)"
    assert spec.command == "semaim run task=knn checkpoint=runs/pre"
    assert all_words(["task=knn", "checkpoint=runs/pre"])[-1] == f"hydra.searchpath=[file://{tmp_path}/conf]"
    again = compose_run_spec([*spec.overrides, *spec.inherited.overrides] if spec.inherited else [])
    assert (again.overrides, again.inherited, again.config) == (spec.overrides, spec.inherited, spec.config)
    assert RunSpec.of(spec.stored()).all_folders == spec.all_folders
    (tmp_path / "conf").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"trained on data=mine, .* nor in \S+/conf any more: add --config-dir"):
        knn("checkpoint=runs/pre")
    moved = completed(["task=knn", "checkpoint=runs/pre"], [f"file://{tmp_path}/gone"])
    assert (moved.inherited and moved.inherited.folders) == []


def test_nothing_in_a_run_folder_is_executed(tmp_path: Path) -> None:
    (tmp_path / "runs" / "conf" / "data").mkdir(parents=True)
    (tmp_path / "runs" / "conf" / "data" / "mine.yaml").write_text(OWN)
    made("data=mine", folders=(f"file://{tmp_path}/runs/conf",))
    with pytest.raises(UserError, match="lies beside it and may have come with it"):
        knn("checkpoint=runs/pre")
    made(*PHOTOS, name="run_name=evil")
    file = tmp_path / "runs" / "evil" / "config.yaml"
    text = file.read_text()
    for before, after, message in (
        ("semaim.data.sources.image_folders", "os.system", "data.source._target_=os.system, which is not the one of"),
        ("root: photos", "root: ${oc.env:HOME}", r"give data.root a plain value"),
    ):
        file.write_text(text.replace(before, after))
        with pytest.raises(UserError, match=message):
            knn("checkpoint=runs/evil")
        assert knn("checkpoint=runs/evil", "data=digits").choices["data"] == "digits"


def test_a_run_that_does_not_tell_its_data_is_evaluated_as_before() -> None:
    made("data=shapes", choices={"task": "pretrain"})
    spec = knn("checkpoint=runs/pre")
    assert (spec.choices["data"], spec.inherited) == ("digits", None)
    (Path("runs/pre") / "config.yaml").write_text("[broken")
    with pytest.raises(UserError, match=r"runs/pre/config.yaml is damaged"):
        knn("checkpoint=runs/pre")
