"""On a CUDA device: orders, losses and neighbours equal those of the CPU, and bf16 is the default.

Skipped without a CUDA device.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from semaim.core.distributed import Processes
from semaim.evaluation.knn import nearest_neighbours
from semaim.models.aim import AIM
from semaim.models.token_cache import TokenCache
from semaim.permutations import AttentionCenter
from semaim.semantics import SemanticMap
from semaim.targets import Pixels
from semaim.training.settings import TrainerSettings
from semaim.training.strategies import FullySharded, Strategy, total_norm
from semaim.training.update import update_weights
from support.oracle import masked_predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def loss_and_gradients(model: AIM, images: torch.Tensor, noise: torch.Tensor, masked: bool = False) -> tuple:
    maps = SemanticMap("cls")(TokenCache({"online": model}, images), "online")
    order = AttentionCenter().order(model.grid, noise, maps)
    prediction = masked_predict(model, images, order) if masked else model.predict(images, order)
    target = Pixels(model.patch_size)
    loss = target.loss(prediction, target(images)).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return order.cpu(), loss.item(), [gradient.float().cpu() for gradient in gradients]


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.rand(4, 8 * 8 + 1, generator=torch.Generator().manual_seed(0))


def test_float32_on_the_gpu_equals_the_cpu(tiny_model, images, noise: torch.Tensor) -> None:
    model, batch = tiny_model(), images(4)
    order, loss, gradients = loss_and_gradients(model, batch, noise)
    on_gpu = loss_and_gradients(model.cuda(), batch.cuda(), noise.cuda())
    assert torch.equal(order, on_gpu[0])
    assert loss == pytest.approx(on_gpu[1], rel=1e-4)
    for expected, found in zip(gradients, on_gpu[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)


def test_bf16_with_flash_attention_is_near_the_masked_float32_form(tiny_model, images, noise: torch.Tensor) -> None:
    model, batch = tiny_model().cuda(), images(4).cuda()
    expected = loss_and_gradients(model, batch, noise.cuda(), masked=True)
    kernels = [torch.nn.attention.SDPBackend.FLASH_ATTENTION]
    with torch.autocast("cuda", torch.bfloat16), torch.nn.attention.sdpa_kernel(kernels):
        found = loss_and_gradients(model, batch, noise.cuda())
    assert found[1] == pytest.approx(expected[1], rel=2e-2)


def test_automatic_precision_is_bf16_where_the_device_has_it() -> None:
    settings = TrainerSettings(
        1, None, 0, 1, 1, None, "auto", "ddp", False, False, False, (0.9, 0.9), 0, None, 1, 1, None, 1, None, None
    )
    expected = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float32
    assert settings.dtype(torch.device("cuda")) == expected


def test_nearest_neighbours_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    common = 100 * torch.randn(1, 32, generator=generator)  # too similar for float32 to distinguish
    bank, queries = ((common + torch.randn(n, 32, generator=generator)).numpy() for n in (500, 300))
    labels = torch.randint(7, (500,), generator=generator)
    on_cpu, on_gpu = (
        nearest_neighbours(bank, labels, queries, [1, 5, 20], 7, Processes(0, 1, torch.device(device)))
        for device in ("cpu", "cuda")
    )
    for k, predicted in on_cpu.items():
        assert torch.equal(predicted, on_gpu[k])


def test_fsdp_in_bf16_computes_the_step_of_autocast(tiny_model, images, noise: torch.Tensor) -> None:
    """On one GPU, which is a process group of its own; the weights stay float32."""
    device = torch.device("cuda", torch.cuda.current_device())
    batch, order = images(4).to(device), noise[:, :64].argsort(1).to(device)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        found = []
        for strategy in (Strategy(), FullySharded(Processes(0, 1, device), torch.bfloat16)):
            model = tiny_model().to(device).train()
            model.set_grad_checkpointing(True)
            forward = strategy.distribute(model, None)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
            losses = []
            for _ in range(3):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = forward(batch, order).predictions_BLP.float().square().mean()
                loss.backward()
                total_norm(list(model.parameters()))
                update_weights(optimizer, skip=torch.zeros((), dtype=torch.bool, device=device))
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
            found.append(losses)
            assert all(p.dtype == torch.float32 for p in model.parameters())
            assert next(strategy.whole(model).parameters()).device == device
        assert found[0][0] > found[0][-1]
        assert found[1] == pytest.approx(found[0], rel=1e-3)
    finally:
        dist.destroy_process_group()
