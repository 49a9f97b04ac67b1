"""LAVIS's runner where its own needs CUDA or several processes."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.lavis.model import TrimmedModel
from smarttrim_mm.lavis.rebound import rebound

registry: Any = import_lavis("lavis").registry
RunnerBase: Any = import_lavis("lavis.runners.runner_base").RunnerBase
import_lavis("lavis.common.optims")  # registers the learning rate schedules, which LAVIS leaves to its train.py


@registry.register_runner("smarttrim_runner")
class Runner(RunnerBase):
    """LAVIS's ``RunnerBase`` on a CPU too, and without ``torchrun``; the evaluations' log says what predictions took.

    ``RunnerBase`` prefetches to a CUDA stream, moves evaluation batches to CUDA, has no model on a CPU, waits for other
    processes where there are none, and runs once in a process. All else is its own. Several processes need CUDA, as
    LAVIS's log does.

    Args:
        cfg: LAVIS's ``Config``.
        task: LAVIS's task.
        model: The model.
        datasets: By name and split.
        job_id: Name of the run's folder.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str) -> None:
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self._model: Any = model
        self._wrapped_model: Any = None
        task.evaluation = partial(task.evaluation, cuda_enabled=self.cuda_enabled)

    @property
    def model(self) -> Any:
        """The model on its device, wrapped if there are several processes."""
        if self._wrapped_model is None:
            model = self._model.to(self.device)
            if self.use_distributed:
                model = DistributedDataParallel(model, device_ids=[self.config.run_cfg.gpu])
            self._wrapped_model = model
        return self._wrapped_model

    def setup_output_dir(self) -> None:
        """LAVIS's own, which a process can call once, for every run of a process."""
        for name in ("result_dir", "output_dir"):
            registry.mapping["paths"].pop(name, None)
        super().setup_output_dir()

    def create_loaders(self, *args: Any, **kwargs: Any) -> Any:
        """LAVIS's own; without CUDA nothing is prefetched or pinned."""
        if self.cuda_enabled:
            return super().create_loaders(*args, **kwargs)

        def unpinned(dataset: Any, **settings: Any) -> DataLoader:
            return DataLoader(dataset, **{**settings, "pin_memory": False})

        create = rebound(RunnerBase.create_loaders, PrefetchLoader=lambda loader: loader, DataLoader=unpinned)
        return create(self, *args, **kwargs)

    def train(self) -> None:
        """LAVIS's own; a single process waits for nobody."""

        def wait() -> None:
            if dist.is_initialized():
                dist.barrier()

        rebound(RunnerBase.train, dist=SimpleNamespace(barrier=wait))(self)

    def eval_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """LAVIS's own; the metrics of a trimmed model also say what its predictions took."""
        metrics = super().eval_epoch(*args, **kwargs)
        model = self.unwrap_dist_model(self.model)
        if isinstance(metrics, dict) and isinstance(model, TrimmedModel):
            metrics |= model.compute_report()
        return metrics
