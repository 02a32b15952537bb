"""`method=` and `size=`: the composition of each method of the literature as one choice."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from semaim.config.compose import choices
from semaim.config.method import method_name
from semaim.config.run_spec import compose_run_spec

# Name, and choices of model, order and target.
METHODS = {
    "semaim": ("SemAIM", "aim", "attention_center", "pixels"),
    "saim": ("SAIM", "aim", "stochastic", "pixels"),
    "igpt": ("ViT-iGPT", "aim", "raster", "pixels"),
    "randsac": ("RandSAC-11", "aim", "random_blobs", "pixels"),
    "mae": ("MAE", "mae", "stochastic", "pixels_sharp"),
    "simmim": ("SimMIM", "simmim", "stochastic", "pixels_raw"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", ["tiny", "base", "huge"])
def test_a_method_is_a_model_of_the_size_an_order_and_a_target(method: str, size: str) -> None:
    name, model, order, target = METHODS[method]
    spec = compose_run_spec([f"method={method}", f"size={size}"])
    assert method_name(spec.config, spec.choices) == name
    found = [spec.choices[group] for group in ("model", "permutation", "target")]
    assert found == [f"{model}_{size}", order, target]
    typed = compose_run_spec([*(f"{group}={spec.choices[group]}" for group in ("model", "permutation", "target")),
                              *(["model.segments=11"] if method == "randsac" else [])])  # fmt: skip
    differ = {"run_name", "run_dir"}
    assert {key: value for key, value in spec.config.items() if key not in differ} == {
        key: value for key, value in typed.config.items() if key not in differ
    }


def test_every_choice_is_one_of_them() -> None:
    assert set(choices("method")) == METHODS.keys()
    assert set(choices("size")) == {"tiny", "small", "base", "large", "huge"}


def test_what_is_typed_comes_first() -> None:
    spec = compose_run_spec(["method=mae", "model=aim_small", "permutation=raster", "target=ema"])
    assert [spec.choices[group] for group in ("model", "permutation", "target")] == ["aim_small", "raster", "ema"]
    assert "size" not in spec.config
    assert "method" not in spec.config


def test_the_targets_are_those_of_the_papers() -> None:
    sharp, raw = (
        instantiate(compose_run_spec([f"target={name}"]).cfg.target) for name in ("pixels_sharp", "pixels_raw")
    )
    assert (sharp.blur_kernel_size, sharp.norm_pix, sharp.loss_kind) == (0, True, "l2")
    assert (raw.blur_kernel_size, raw.norm_pix, raw.loss_kind) == (0, False, "l1")


def test_the_default_has_no_method() -> None:
    spec = compose_run_spec([])
    assert spec.choices["model"] == "aim_tiny"
    assert not {"size", "method"} & set(OmegaConf.to_container(spec.cfg))  # type: ignore[arg-type]
