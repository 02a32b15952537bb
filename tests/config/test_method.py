"""Names of methods, as runs and reports show them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from semaim.config.method import method_name
from semaim.config.run_spec import compose_run_spec


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("permutation=attention_center", "SemAIM"),
        ("permutation=attention_center target=clip model=aim_large", "SemAIM"),
        ("permutation=stochastic", "SAIM"),
        ("permutation=raster", "ViT-iGPT"),
        ("permutation=attention", "AIM, attention"),
        ("permutation=stochastic model.segments=11", "RandSAC-11"),
        ("permutation=random_squares model.segments=16", "RandSAC-16"),
        ("permutation=random_blobs model.segments=5", "RandSAC-5"),
        ("permutation=attention_center model.segments=5", "AIM, attention_center, 5 segments"),
        ("permutation=random_blobs", "AIM, random_blobs"),
        ("model=mae_small permutation=stochastic", "MAE"),
        ("model=mae_small permutation=attention_center", "MAE, attention_center"),
        ("model=simmim_tiny permutation=stochastic", "SimMIM"),
        ("model=simmim_tiny permutation=raster", "SimMIM, raster"),
    ],
)
def test_names(overrides: str, name: str) -> None:
    spec = compose_run_spec(overrides.split())
    config = OmegaConf.to_container(spec.cfg, resolve=True)
    assert isinstance(config, dict)
    assert method_name(config, spec.choices) == name


def test_what_has_no_order_has_no_name():
    assert method_name({"model": {"_target_": "semaim.models.aim.AIM"}}, {}) is None
    assert method_name({"permutation": {"_target_": "semaim.permutations.Raster"}}, {}) is None
