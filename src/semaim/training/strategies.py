"""How the processes of a run share a model: each has a copy (DDP), or a part of every weight (FSDP2)."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from semaim.core.distributed import Processes
from semaim.training.ddp import transformer_blocks, wrap

log = logging.getLogger(__name__)
FORWARD_METHODS = ("encode", "encode_with_attention", "forward_with_attention")  # called besides `forward`


class Strategy:
    """A model on a single process: nothing is shared. Base class of the strategies."""

    def distribute(self, model: nn.Module, average: nn.Module | None) -> Callable[..., Any]:
        """Distribute a model, and the moving average of its weights if there is one, before its optimizer is built.

        All processes have built the same model on their devices. Returns the forward pass of training.
        """
        return model

    def no_sync(self) -> AbstractContextManager[None]:
        """Context of all micro-batches of a step but the last: gradients are summed on each process alone."""
        return nullcontext()

    def whole(self, module: nn.Module) -> nn.Module:
        """A network as an ordinary module, to evaluate it, also by one process alone; collective.

        Args:
            module: that was distributed.
        """
        return module

    def gathered(self, state: Any) -> Any:
        """A state of distributed networks or their optimizer, in nested dictionaries and lists, as one process has it.

        Collective; only the first process needs the result, others have None in place of what is not theirs.
        """
        return state

    def part(self, value: Any, like: Any) -> Any:
        """What this process has of a tensor of a whole state: inverse of `gathered`.

        Args:
            value: the tensor.
            like: the weight that it is, or belongs to.
        """
        return value


class DataParallel(Strategy):
    """A copy of the model on each process, whose gradients are averaged (DDP).

    Args:
        processes: that share the model.
        dtype: of matrix products.
    """

    def __init__(self, processes: Processes, dtype: torch.dtype) -> None:
        self.processes = processes

    def distribute(self, model: nn.Module, average: nn.Module | None) -> Callable[..., Any]:
        """See `Strategy`."""
        self.forward = wrap(model, self.processes)
        return self.forward

    def no_sync(self) -> AbstractContextManager[None]:
        """See `Strategy`."""
        assert isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync()


class FullySharded(Strategy):
    """A part of every weight, gradient and optimizer state on each process (FSDP2).

    Before a block computes, its weights are gathered from all processes, those of matrix products in their precision.
    All else is float32: the parts of the weights, gradients when they are averaged, and the optimizer. So a step
    computes what it does with DDP and autocast.

    Args:
        processes: that share the model.
        dtype: of matrix products.
    """

    def __init__(self, processes: Processes, dtype: torch.dtype) -> None:
        self.processes = processes
        self.dtype = dtype
        self._plain: dict[nn.Module, nn.Module] = {}  # the ordinary module of each distributed one, without weights

    def distribute(self, model: nn.Module, average: nn.Module | None) -> Callable[..., Any]:
        """See `Strategy`."""
        mesh = init_device_mesh(self.processes.device.type, (self.processes.world_size,))
        for module in filter(None, (model, average)):
            self._plain[module] = without_weights(module)
            self.processes.share([*(p.detach() for p in module.parameters()), *module.buffers()])
            policy = precision_policy(module, self.dtype)
            for block in transformer_blocks(module):  # each is gathered at a time
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(module, mesh=mesh, mp_policy=policy)
            for part in module.modules():
                for name in FORWARD_METHODS:
                    if isinstance(part, FSDPModule) and hasattr(part, name):
                        register_fsdp_forward_method(part, name)
        self.model: Any = model
        return model

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """See `Strategy`."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def whole(self, module: nn.Module) -> nn.Module:
        """See `Strategy`."""
        plain = copy.deepcopy(self._plain[module])
        plain.load_state_dict(gathered(module.state_dict(), self.processes.device), assign=True)
        return plain

    def gathered(self, state: Any) -> Any:
        """See `Strategy`."""
        return gathered(state, torch.device("cpu") if self.processes.is_main else None)

    def part(self, value: Any, like: Any) -> Any:
        """See `Strategy`."""
        if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
            return value  # not of a weight, or of another model, which is refused when it is loaded
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


STRATEGIES: dict[str, type[DataParallel | FullySharded]] = {"ddp": DataParallel, "fsdp": FullySharded}


def strategy_of(name: str, processes: Processes, dtype: torch.dtype) -> Strategy:
    """The strategy of a name; a single process has nothing to share.

    Args:
        name: `trainer.strategy`.
        processes: that share the model.
        dtype: of matrix products.
    """
    if processes.world_size > 1:
        return STRATEGIES[name](processes, dtype)
    if name == "fsdp":
        log.info("trainer.strategy=fsdp: one process has all weights, as there is no other to share them with")
    return Strategy()


def precision_policy(module: nn.Module, dtype: torch.dtype) -> MixedPrecisionPolicy:
    """In which precision FSDP gathers weights, so that a forward pass under autocast computes what it does with DDP."""
    if dtype == torch.float32:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if not hasattr(policy, "param_dtype_override_fn"):  # torch before 2.15 rounds the other weights, too
        return policy
    products = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    rounded = {id(p) for part in products for p in part.parameters()}  # the weights that autocast rounds
    return dataclasses.replace(policy, param_dtype_override_fn=lambda p: None if id(p) in rounded else torch.float32)


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters have no values; its buffers have."""
    shapes = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shapes)


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Norm of all gradients of a model, over all parts of the weights; collective if they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def local_state(module: nn.Module) -> list[Tensor]:
    """Weights and buffers of a module, as views of what this process has of them."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in module.state_dict().values()]


def gathered(value: Any, device: torch.device | None) -> Any:
    """A state, in nested dictionaries and lists, with sharded tensors made whole; others stay as they are. Collective.

    Args:
        value: the state.
        device: for the whole tensors; None if this process does not need them and gets None in their place.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return None if device is None else whole.to(device)
    if isinstance(value, dict):
        return {key: gathered(each, device) for key, each in value.items()}
    if isinstance(value, list):
        return [gathered(each, device) for each in value]
    return value
