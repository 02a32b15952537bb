"""DDP and FSDP in one process, which is a process group of its own: precision, reductions, memory, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from semaim.core.distributed import Processes
from semaim.models.aim import AIM
from semaim.models.mae import MAE
from semaim.models.predictor import Prediction, Predictor
from semaim.models.simmim import SimMIM
from semaim.training.ddp import compile_blocks
from semaim.training.memory import activations, training_memory
from semaim.training.strategies import STRATEGIES, DataParallel, FullySharded, Strategy, strategy_of, total_norm
from support.checking import one

CPU = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def batch(images: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Four images and orders."""
    return images(4), torch.rand(4, 64, generator=torch.Generator().manual_seed(1)).argsort(1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each.clone() for name, each in found.items()}


def loss_of(forward: Callable[..., Prediction], batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        prediction = forward(*batch)
        return prediction.mean(prediction.predictions_BLP.float().square().mean(2)).mean()


def test_a_process_alone_has_nothing_to_share() -> None:
    for name in ("ddp", "fsdp"):
        assert type(strategy_of(name, CPU, torch.bfloat16)) is Strategy
        assert type(strategy_of(name, Processes(0, 2, CPU.device), torch.float32)) is STRATEGIES[name]


SIZES: dict[str, Any] = {
    "out_channels": 48,
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
}
# Without skip connections, whose gradients FSDP adds in another order: 3e-7 relative.
KINDS: dict[str, Callable[[], Predictor]] = {
    "aim": lambda: AIM(**SIZES, query_depth=2, drop_path=0.5),
    "segments": lambda: AIM(**SIZES, query_depth=2, drop_path=0.5, segments=5),
    "mae": lambda: MAE(**SIZES, decoder_dim=24, decoder_depth=2, decoder_num_heads=2, drop_path=0.5),
    "simmim": lambda: SimMIM(**SIZES, mask_unit=8, drop_path=0.5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "checkpointing"), [(torch.float32, True), (torch.bfloat16, False)])
def test_fsdp_computes_the_loss_and_gradient_of_autocast(
    kind: str, batch: tuple[Tensor, Tensor], dtype: torch.dtype, checkpointing: bool
) -> None:
    """With weights that are rounded when they are gathered, and stored as float32."""
    if dtype != torch.float32 and not hasattr(torch.distributed.fsdp.MixedPrecisionPolicy(), "param_dtype_override_fn"):
        pytest.skip("this torch also rounds the weights of norms")
    results = []
    for strategy in (Strategy(), FullySharded(CPU, dtype)):
        torch.manual_seed(1)
        model = KINDS[kind]().train()
        model.set_grad_checkpointing(checkpointing)
        forward = strategy.distribute(model, None)
        torch.manual_seed(0)  # of drop path
        loss = loss_of(forward, batch, dtype)
        loss.backward()
        results.append((loss.detach(), gradients(model), total_norm(list(model.parameters()))))
    (loss, expected, norm), (sharded_loss, found, sharded_norm) = results
    assert torch.equal(loss, sharded_loss)
    assert found.keys() == expected.keys()
    assert [name for name, each in expected.items() if not torch.equal(found[name], each)] == []
    torch.testing.assert_close(sharded_norm, norm)
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in model.parameters())


def test_encoder_passes_of_a_sharded_model(tiny_model: Callable[..., AIM], batch: tuple[Tensor, Tensor]) -> None:
    """They are called beside `forward`; the model is sharded again after them."""
    images_BCHW, _ = batch
    expected, model, average = (tiny_model().eval() for _ in range(3))
    strategy = FullySharded(CPU, torch.float32)
    strategy.distribute(model, average.requires_grad_(False))
    with torch.no_grad():
        for network in (model, average, strategy.whole(model)):
            assert torch.equal(network.encode(images_BCHW), expected.encode(images_BCHW))
            for ours, theirs in zip(
                network.encode_with_attention(images_BCHW), expected.encode_with_attention(images_BCHW), strict=True
            ):
                assert torch.equal(ours, theirs)
    assert not any(isinstance(p, DTensor) for p in strategy.whole(average).parameters())
    assert type(strategy.whole(model)) is AIM
    assert all(isinstance(p, DTensor) for block in model.blocks for p in block.parameters())


def test_fsdp_reduces_gradients_after_the_last_micro_batch_alone(
    tiny_model: Callable[..., AIM], batch: tuple[Tensor, Tensor]
) -> None:
    """Before, no process has its part of the gradient."""
    alone, model = tiny_model().train(), tiny_model().train()
    strategy = FullySharded(CPU, torch.float32)
    forward = strategy.distribute(model, None)
    for micro in range(3):
        assert gradients(model) == {}
        with strategy.no_sync() if micro < 2 else nullcontext():
            (loss_of(forward, batch, torch.float32) / 3).backward()
        (loss_of(alone, batch, torch.float32) / 3).backward()
    found = gradients(model)
    for name, expected in gradients(alone).items():
        torch.testing.assert_close(found[name], expected, msg=name)


def test_ddp_reduces_gradients_after_the_last_micro_batch_alone_and_keeps_them_in_its_buckets(
    tiny_model: Callable[..., AIM], batch: tuple[Tensor, Tensor]
) -> None:
    """So gradients take no memory beside the buckets."""
    alone, model = tiny_model().train(), tiny_model().train()
    strategy = DataParallel(Processes(0, 2, CPU.device), torch.float32)
    forward: Any = strategy.distribute(model, None)
    loss_of(forward, batch, torch.float32).backward()  # its warm-up makes the buckets
    model.zero_grad(set_to_none=True)
    buckets: list[Tensor] = []

    def reduce(_, bucket):  # type: ignore[no-untyped-def]  # DDP does not take annotations in texts
        buckets.append(bucket.buffer())
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    forward.register_comm_hook(None, reduce)
    for micro in range(3):
        assert len(buckets) == 0
        with strategy.no_sync() if micro < 2 else nullcontext():
            (loss_of(forward, batch, torch.float32) / 3).backward()
        (loss_of(alone, batch, torch.float32) / 3).backward()
    in_buckets = {bucket.untyped_storage().data_ptr() for bucket in buckets}
    assert {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None} == in_buckets
    assert len(in_buckets) < 5
    found = gradients(model)
    for name, expected in gradients(alone).items():
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.slow
def test_compiled_blocks_can_be_sharded(tiny_model: Callable[..., AIM], batch: tuple[Tensor, Tensor]) -> None:
    model, expected = tiny_model().train(), tiny_model().train()
    compile_blocks(model)
    forward = FullySharded(CPU, torch.float32).distribute(model, None)
    for network in (forward, expected):
        loss_of(network, batch, torch.float32).backward()
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(model)[name], gradient, msg=name)


# Memory, as `semaim check` estimates it


def test_memory_of_a_sharded_model() -> None:
    with torch.device("meta"):
        model = AIM(768, 224, 16, embed_dim=1280, depth=32, num_heads=16, query_depth=16)
    parameters = sum(p.numel() for p in model.parameters())
    block = max(sum(p.numel() for p in each.parameters()) for each in (*model.blocks, *model.query_blocks))
    whole, shared = (training_memory(model, 32, 2, 2, True, shards) for shards in (1, 8))
    assert whole is not None
    assert shared is not None
    passing = 32 * activations(model, 2)
    assert whole - passing == parameters * (4 * 5 + 2)
    outside = parameters - sum(p.numel() for each in (model.blocks, model.query_blocks) for p in each.parameters())
    assert shared - passing == parameters * 4 * 5 // 8 + (outside + 2 * block) * 2 + 2 * block * 6
    assert shared - passing < (whole - passing) / 6
    assert training_memory(model, 32, 2, 2, True, 8, accumulates=True) == shared + 4 * parameters
    # With few images, evaluations need the most: the weights and their average, whole.
    assert training_memory(model, 1, 2, 2, True, 8) == parameters * 4 * 5 // 8 + 2 * 4 * parameters


def test_the_check_knows_strategy_and_activation_checkpointing() -> None:
    def memory(*options: str) -> int:
        (row,) = one("model=aim_small", *options, launcher={"tasks_per_node": 4}).rows
        assert row.cost is not None
        assert row.cost.memory is not None
        return row.cost.memory

    plain, model = memory(), AIM(48, 32, 4, embed_dim=384, depth=12, num_heads=6, query_depth=12)
    assert plain - memory("trainer.activation_checkpointing=true") == 8 * (
        activations(model, 4) - activations(model, 4, checkpointing=True)
    )
    assert plain - memory("trainer.strategy=fsdp") == training_memory(model, 8, 4, 2, False) - training_memory(
        model, 8, 4, 2, False, shards=4
    )
