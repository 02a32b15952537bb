"""What training says about images that it does not use."""

from __future__ import annotations

import logging

import pytest

from semaim.data.loading import StepPlan
from semaim.training.progress import report_unused


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            StepPlan(63, 32, 0),
            "31 images of 63 are not used in each epoch (others each time), since steps have trainer.batch_size=32: "
            "1 step per epoch. trainer.batch_size=21 would leave out 0",
        ),
        (StepPlan(63, 32, 0, world_size=4), "trainer.batch_size=20 would leave out 3"),
        (StepPlan(1437, 32, 0), ""),  # 29 images, 2 %
        (StepPlan(64, 32, 0), ""),
    ],
)
def test_many_unused_images_are_said(plan: StepPlan, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="semaim"):
        report_unused(plan)
    assert (said in caplog.text) if said else (caplog.text == "")
