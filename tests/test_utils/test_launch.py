import pytest
from mmengine.config import Config

from smarttrim_mm.utils import launch


@pytest.mark.parametrize(
    "launcher, environment",
    [
        ("pytorch", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}),
        ("slurm", {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}),
        (
            "mpi",
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "MASTER_ADDR": "h",
                "MASTER_PORT": "1",
            },
        ),
    ],
)
def test_every_launcher_says_the_same(launcher, environment):
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert launch._process_environment(launcher, environment) == expected


def test_slurm_asks_for_the_first_host(monkeypatch):
    class Answer:
        stdout = "node7\nnode8\n"

    monkeypatch.setattr(launch.subprocess, "run", lambda command, **_: Answer if command[-1] == "node[7-8]" else None)
    environment = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODELIST": "node[7-8]"}
    assert launch._process_environment("slurm", environment)["MASTER_ADDR"] == "node7"


def test_mpi_on_several_hosts_needs_an_address():
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "0201", strict=True)}
    with pytest.raises(ValueError, match="MASTER_ADDR is not set, and not all 2 processes run here"):
        launch._process_environment("mpi", environment)
    environment["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2"
    assert launch._process_environment("mpi", environment)["MASTER_ADDR"] == "127.0.0.1"


def test_launchers_are_checked(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="launcher is 'torch'; expected one of none, pytorch"):
        launch.init_processes("torch", {})
    with pytest.raises(ValueError, match=r"launcher is 'pytorch', but RANK.*dist_train\.sh"):
        launch.init_processes("pytorch", {})
    launch.init_processes("none", {})


def test_wrapper_without_a_device(monkeypatch):
    monkeypatch.setattr(launch, "get_device", lambda: "cpu")
    cfg = Config({"launcher": "pytorch", "find_unused_parameters": True})
    launch.wrap_for_cpu(cfg)
    assert cfg.model_wrapper_cfg == {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": True,
        "device_ids": None,
    }
    single = Config({"launcher": "none"})
    launch.wrap_for_cpu(single)
    assert "model_wrapper_cfg" not in single


def test_main_process_speaks_for_all():
    assert launch.call_on_main(lambda: 3) == 3
    with pytest.raises(ValueError, match="said once"):
        launch.call_on_main(lambda: (_ for _ in ()).throw(ValueError("said once")))
