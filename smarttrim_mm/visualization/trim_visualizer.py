"""mmengine's Visualizer with the pictures of this package."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend, TensorboardVisBackend

from smarttrim_mm.registry import VISUALIZERS
from smarttrim_mm.visualization.figures import render
from smarttrim_mm.visualization.findings import Findings, figures_of


@VISUALIZERS.register_module()
class TrimVisualizer(Visualizer):
    """Draws what a model pruned; every backend gets each picture as an RGB array.

    Args:
        name: Of the instance, as mmengine keeps it.
        vis_backends: Configs of ``VISBACKENDS``, or built ones: ``LocalVisBackend`` (files), ``TensorboardVisBackend``,
            ``PictureVisBackend``.
        save_dir: Folder of the backends, which write into its ``vis_data``.
        **kwargs: Further arguments of mmengine's ``Visualizer``.

    Raises:
        ModuleNotFoundError: If a backend is TensorBoard's, and the package ``tensorboard`` is not installed.
    """

    def __init__(
        self,
        name: str = "visualizer",
        vis_backends: Sequence[dict[str, Any] | BaseVisBackend] | None = None,
        save_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, vis_backends=vis_backends, save_dir=save_dir, **kwargs)
        if any(isinstance(backend, TensorboardVisBackend) for backend in self._vis_backends.values()):
            _require_tensorboard()

    @master_only
    def add_figure(self, name: str, figure: Figure, step: int = 0) -> None:
        """Gives a figure to every backend.

        Args:
            name: Of the picture; a file's name, or a tag of TensorBoard.
            figure: The figure.
            step: Iteration of the training.
        """
        self.add_image(name, render(figure), step)

    @master_only
    def add_findings(self, findings: Findings, step: int = 0, prefix: str = "") -> None:
        """Draws everything that there is to see, see :func:`~smarttrim_mm.visualization.findings.figures_of`.

        Args:
            findings: What was gathered.
            step: Iteration of the training.
            prefix: Begins the names of the pictures.
        """
        for name, figure in figures_of(findings).items():
            self.add_figure(f"{prefix}{name}", figure, step)


def _require_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "vis_backends holds a TensorboardVisBackend, and the package 'tensorboard' is not installed: run "
            "pip install tensorboard (requirements/dev.txt has the version that is tested), or take the backend out"
        )
