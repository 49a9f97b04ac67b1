"""One command for one CPU, one GPU or many processes of either."""

import datetime
import os
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, init_dist, is_distributed, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

T = TypeVar("T")

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def init_processes(launcher: str, env_cfg: Mapping[str, Any]) -> None:
    """Joins the process group of a launcher; without one, or if it is joined already, does nothing.

    On a GPU this is mmengine's ``init_dist`` with the backend of ``env_cfg.dist_cfg`` (NCCL). mmengine cannot start on a CPU,
    where the backend is Gloo.

    Args:
        launcher: ``none``, ``pytorch`` (torchrun), ``slurm`` or ``mpi`` (Open MPI).
        env_cfg: The config's ``env_cfg``.

    Raises:
        ValueError: If the launcher is unknown, or did not start this process.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher is {launcher!r}; expected one of {', '.join(LAUNCHERS)}")
    if launcher == "none" or is_distributed():
        return
    os.environ.update(_process_environment(launcher, os.environ))  # mmengine leaves some of it out for mpi
    set_multi_processing(**env_cfg.get("mp_cfg", {}), distributed=True)
    dist_cfg = dict(env_cfg.get("dist_cfg", {}))
    if get_device() != "cpu":
        init_dist(launcher, **dist_cfg)
        return
    timeout = datetime.timedelta(seconds=dist_cfg.get("timeout", 1800))
    torch.distributed.init_process_group("gloo", timeout=timeout)


def wrap_for_cpu(cfg: Config) -> None:
    """Lets the Runner wrap the model without a device index where the processes share a CPU."""
    if cfg.get("launcher", "none") == "none" or get_device() != "cpu":
        return
    wrapper = cfg.get("model_wrapper_cfg") or {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
    if "find_unused_parameters" in cfg:
        wrapper.setdefault("find_unused_parameters", cfg.find_unused_parameters)
    cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}


def _process_environment(launcher: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What torch needs to know about this process, from the variables that its launcher has set."""
    names = {
        "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    }[launcher]
    missing = [name for name in names if name not in environment]
    if missing:
        start = {"pytorch": "torchrun (tools/dist_train.sh)", "slurm": "srun (tools/slurm_train.sh)", "mpi": "mpirun"}
        raise ValueError(
            f"launcher is {launcher!r}, but {', '.join(missing)} is not set; start the tool with {start[launcher]}, or leave "
            "--launcher out for a single process"
        )
    rank, size, local = (environment[name] for name in names)
    address = environment.get("MASTER_ADDR")
    if address is None:
        if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", size) != size:
            raise ValueError(f"MASTER_ADDR is not set, and not all {size} processes run here; set it to rank 0's host")
        address = _first_host(environment["SLURM_NODELIST"]) if "SLURM_NODELIST" in environment else "127.0.0.1"
    return {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local,
        "MASTER_ADDR": address,
        "MASTER_PORT": environment.get("MASTER_PORT", "29500"),
    }


def _first_host(nodes: str) -> str:
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    return listed.stdout.split()[0]


def call_on_main(function: Callable[[], T]) -> T:
    """Runs something in the main process only; its result, or its error, is that of every process.

    Args:
        function: Returns something that can be pickled; may raise a ValueError or OSError.
    """
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def unwrapped_model(runner: Runner) -> nn.Module:
    """The runner's model without its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
