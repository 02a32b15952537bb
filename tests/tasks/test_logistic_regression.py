"""The logistic regression of few-shot, compared with a fit written out here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.evaluation.features import Features
from semaim.tasks.fewshot import logistic_regression


def fitted_by_hand(x_MD: Tensor, labels_M: Tensor, penalty: float, classes: int) -> Callable[[Tensor], Tensor]:
    """Logits of the minimum of penalty * |W|^2 / 2 + sum of the cross-entropies; standardised features, float64."""
    x_MD = x_MD.double()
    mean_D, std_D = x_MD.mean(0), x_MD.std(0, correction=0)
    weight_CD = torch.zeros(classes, x_MD.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight_CD, bias_C], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        logits_MC = (x_MD - mean_D) / std_D @ weight_CD.T + bias_C
        value = penalty / 2 * weight_CD.square().sum() + F.cross_entropy(logits_MC, labels_M, reduction="sum")
        value.backward()
        return value

    solver.step(loss)
    return lambda query_QD: ((query_QD.double() - mean_D) / std_D @ weight_CD.T + bias_C).detach()


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_logistic_regression_is_the_minimum(strength: float) -> None:
    """Classes of different sizes that overlap, and dimensions of different scales: prior and scale matter."""
    generator = torch.Generator().manual_seed(0)
    labels_M = torch.tensor([0] * 20 + [2] * 10 + [3] * 4)  # class 1 has no image
    scales_D = torch.tensor([1.0, 30.0, 0.01, 1.0, 5.0])
    x_MD = (torch.randn(34, 5, generator=generator) + 0.7 * F.one_hot(labels_M, 5)) * scales_D + 4
    queries_QD = torch.randn(5000, 5, generator=generator) * 2 * scales_D + 4
    bank = Features({"mean": x_MD.numpy()}, labels_M, torch.arange(34))
    queries = Features({"mean": queries_QD.numpy()}, torch.zeros(5000, dtype=torch.long), torch.arange(5000))
    found = logistic_regression(bank, queries, strength, ["a", "b", "c", "d"])
    assert list(found) == ["linprobe_mean"]
    predicted_Q = found["linprobe_mean"].predicted_M
    compact_M = torch.tensor([0, -1, 1, 2])[labels_M]
    logits_QC = fitted_by_hand(x_MD, compact_M, 1 / strength, 3)(queries_QD)
    expected_Q = torch.tensor([0, 2, 3])[logits_QC.argmax(1)]
    best_Q = logits_QC.topk(2).values
    clear_Q = best_Q[:, 0] - best_Q[:, 1] > 1e-3
    assert clear_Q.double().mean() > 0.99
    assert torch.equal(predicted_Q[clear_Q], expected_Q[clear_Q])
    assert (predicted_Q == expected_Q).double().mean() >= 0.999
    assert set(predicted_Q.tolist()) == {0, 2, 3}


def test_dimensions_without_variance_do_not_matter() -> None:
    values_MD = np.array([[0.0, 7.0, 1.0], [1.0, 7.0, 1.0], [4.0, 7.0, 1.0], [5.0, 7.0, 1.0]], dtype=np.float32)
    labels_M = torch.tensor([0, 0, 1, 1])
    bank = Features({"cls": values_MD}, labels_M, torch.arange(4))
    found = logistic_regression(bank, bank, 1.0, ["a", "b"])["linprobe_cls"]
    assert found.predicted_M.tolist() == [0, 0, 1, 1]
    assert found.accuracy == 100
