"""Processes that work as one, and the device that each of them has.

Without torchrun there is one process, of rank 0.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from common import signals
from common.program import UserError, print_lines
from common.room import memory


class LostProcess(UserError):
    """Another process of this run is dead, or can't be reached."""

    exit_code = 1


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or a GPU where there is one. Raises UserError if it can't be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).add_(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has in all; without end where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory()


def join_processes(device: torch.device) -> torch.device:
    """Under torchrun: join the other processes. Returns this process's device."""
    if "WORLD_SIZE" not in os.environ:
        return device
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise UserError(f"{torch.cuda.device_count()} GPUs: --nproc-per-node asks for more")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # A store of its own for each restart: in a shared one gloo finds the addresses of the dead.
    store, this_rank, count = next(rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=this_rank, world_size=count)
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def reduce(tensor: Tensor, operation=dist.ReduceOp.SUM) -> Tensor:
    """Sum (or another operation) over all processes, in place."""
    if dist.is_initialized():
        with losing_others():
            dist.all_reduce(tensor, operation)
    return tensor


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    reduce(torch.zeros(()))


@contextmanager
def first_process_first() -> Iterator[None]:
    """For what the first process makes and the others find made: they wait until it has."""
    if rank() > 0:
        wait_for_all()
    try:
        yield
    finally:
        if rank() == 0:
            wait_for_all()


@contextmanager
def losing_others() -> Iterator[None]:
    """For what sends to other processes: where that fails, one of them is dead."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not (dist.is_initialized() and raised_by_torch(error)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LostProcess(f"process {rank()} of {processes()} lost another: {reason}") from error


def raised_by_torch(error: Exception) -> bool:
    """Whether the innermost line is PyTorch's: in a backward of our own, it is a bug of ours."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").startswith("torch.")


def broadcast(value):
    """The value of the first process, in all of them."""
    values = [value]
    if dist.is_initialized():
        with losing_others():
            dist.broadcast_object_list(values)
    return values[0]


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def say(*lines: str) -> None:
    """Print once, not once a process."""
    if rank() == 0:
        try:
            print_lines(*lines)
        except BrokenPipeError:  # `train.py | head`: nobody listens, and training goes on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def agreed_signal() -> int:
    """The signal that any process received, 0 for none: all stop after the same step."""
    if not dist.is_initialized():
        return signals.received()
    return int(reduce(torch.tensor(signals.received()), dist.ReduceOp.MAX))
