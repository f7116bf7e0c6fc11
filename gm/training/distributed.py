"""Several processes that train together, through MindSpore's own communication; `msrun` starts them."""

import os
from typing import NamedTuple, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gm.errors import UserError

FLAG = "--environment."
MSRUN_WORKERS, MSRUN_ROLE = "MS_WORKER_NUM", "MS_ROLE"  # set by msrun for the processes that it starts
# How long a process on the CPU waits for the others' part of a sum, in seconds: while rank 0 writes a checkpoint or
# validation videos. MindSpore's 30 would end the run then.
CPU_TIMEOUT = {"MS_NODE_TIMEOUT": "3600"}
# The same of CANN's HCCL, whose 120 s until all are connected and 1836 s for a sum end where one process still encodes
# its share of a latent cache: 2 hours, the most, and a day, in its unit of 68 s.
ASCEND_TIMEOUTS = {"HCCL_CONNECT_TIMEOUT": "7200", "HCCL_EXEC_TIMEOUT": "86360"}
FUSED_MEGABYTES = 64  # of gradients that cards add up in one go
START = "msrun --worker_num=N --local_worker_num=N train.py … --environment.distributed=True"


class Communicator(NamedTuple):
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of every process's values (fp32), the same in all; all have to call it."""
        if self.world_size == 1:
            return values
        return ops.AllReduce()(Tensor(np.asarray(values, np.float32))).asnumpy().astype(values.dtype)

    def wait(self) -> None:
        """Returns when every process has called it."""
        self.sum(np.zeros(1, np.float32))

    def reducer(self, parameters: Sequence[Parameter]) -> Optional[nn.Cell]:
        """Averages gradients over the processes; None where there is one."""
        if self.world_size == 1:
            return None
        return nn.DistributedGradReducer(parameters, mean=True, degree=self.world_size)


def connect(distributed: bool, shard_optimizer: bool, device: str) -> Communicator:
    """Joins the processes that `msrun` started.

    Args:
        distributed: whether several train together.
        shard_optimizer: each device holds a share of the optimizer's state (MindSpore's optimizer parallelism).
        device: "CPU" or "Ascend".

    Raises:
        UserError: sharding where MindSpore has none, or a start that does not fit `distributed`.
    """
    started = int(os.environ.get(MSRUN_WORKERS, "1"))
    if started > 1 and not distributed:
        raise UserError(f"{FLAG}distributed=False: msrun started {started} processes; set it to True")
    if distributed and MSRUN_WORKERS not in os.environ:
        raise UserError(f"{FLAG}distributed=True: this process was not started by msrun; start it with {START}")
    if shard_optimizer and (device != "Ascend" or not distributed):
        raise UserError(
            f"{FLAG}shard_optimizer=True: MindSpore shards the optimizer's state over several Ascend cards only; "
            "leave it False here"
        )
    if not distributed:
        return Communicator()
    if os.environ.get(MSRUN_ROLE, "MS_WORKER") == "MS_WORKER":  # the scheduler keeps watch as it does
        for name, seconds in (CPU_TIMEOUT if device == "CPU" else ASCEND_TIMEOUTS).items():
            os.environ.setdefault(name, seconds)
    from mindspore import communication

    communication.init()
    rank, world_size = communication.get_rank(), communication.get_group_size()
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL,
        device_num=world_size,
        gradients_mean=True,
        parameter_broadcast=False,
        enable_parallel_optimizer=shard_optimizer,
        **({} if device == "CPU" else {"comm_fusion": {"allreduce": {"mode": "size", "config": FUSED_MEGABYTES}}}),
    )
    communicator = Communicator(rank, world_size)
    communicator.wait()  # connects them now, not hours later
    return communicator
