"""Several processes that train as one, and the signals that stop them.

Without torchrun all of this does nothing: one process, rank 0.
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous


def join_processes(device: torch.device) -> torch.device:
    """Under torchrun: join the other processes. Returns this process's device."""
    if "WORLD_SIZE" not in os.environ:
        return device
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise ValueError(f"{torch.cuda.device_count()} GPUs: --nproc-per-node asks for more")
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
        dist.all_reduce(tensor, operation)
    return tensor


def broadcast(value):
    """The value of the first process, in all of them."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def say(text: str) -> None:
    """Print once, not once a process."""
    if rank() == 0:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `train.py | head`: nobody listens, and training goes on
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class StopSignals:
    """SIGINT and SIGTERM: while it trains, the first lets the step finish; a second stops at once.

    At other times there is nothing to save, and the first one ends the program. torchrun passes on
    what its workers have just received themselves: that is not a second one.
    """

    def __enter__(self) -> "StopSignals":
        self.received, self.training, self.hint = 0, False, "nothing is saved yet"
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self.receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        if self.received and "WORLD_SIZE" in os.environ and time.monotonic() < self.at + 1:
            return
        if self.received or not self.training:
            if rank() == 0:  # print() is not made for signal handlers
                os.write(2, f"train.py: stopped at once; {self.hint}\n".encode(errors="replace"))
            raise SystemExit(128 + number)
        self.received, self.at = number, time.monotonic()

    def agreed(self) -> int:
        """The signal that any process received: all stop after the same step."""
        if not dist.is_initialized():
            return self.received
        return int(reduce(torch.tensor(self.received), dist.ReduceOp.MAX))
