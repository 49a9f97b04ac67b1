import dataclasses
from pathlib import Path

import numpy as np
import pytest
from mmengine.visualization.vis_backend import TensorboardVisBackend
from PIL import Image

from smarttrim_mm.registry import VISUALIZERS
from smarttrim_mm.visualization import trim_visualizer
from smarttrim_mm.visualization.figures import new_figure, save
from smarttrim_mm.visualization.findings import Findings
from smarttrim_mm.visualization.kept_patches import kept_figure
from smarttrim_mm.visualization.picture_backend import PictureVisBackend
from smarttrim_mm.visualization.survey import Survey

BACKENDS = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}, {"type": "PictureVisBackend"}]


def test_every_backend_gets_every_picture(trace, tmp_path, pixels):
    heads = {"image.0/image.self": np.array([True, False])}
    seen = dataclasses.replace(trace, heads=heads)
    survey = Survey(((0, 0), (1, 0)), np.array([1.0, 3.0]), np.array([4.0, 4.0]), heads)
    configs = [dict(backend) for backend in BACKENDS]
    visualizer = VISUALIZERS.build(
        {"type": "TrimVisualizer", "name": "all", "vis_backends": configs, "save_dir": str(tmp_path)}
    )
    visualizer.add_findings(Findings("SmartTrim", (seen,), survey, ((seen,),), ()), step=7, prefix="val_")
    visualizer.close()
    data = tmp_path / "vis_data"
    names = ["val_compute", "val_head_map", "val_pruned_patches"]
    assert sorted(path.stem for path in (data / "vis_image").iterdir()) == [f"{name}_7" for name in names]
    assert sorted(path.stem for path in data.glob("*.png")) == names
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(data))
    events.Reload()
    assert sorted(events.Tags()["images"]) == names
    event = events.Images("val_head_map")[0]
    picture = pixels(data / "val_head_map.png")
    assert (event.step, event.height, event.width) == (7, *picture.shape[:2])
    assert (picture == pixels(data / "vis_image" / "val_head_map_7.png")).all()


def test_a_later_picture_takes_the_place_of_the_first(tmp_path):
    backend = PictureVisBackend(str(tmp_path / "new"))
    for colour in (10, 200):
        backend.add_image("one", np.full((2, 3, 3), (colour, 0, 5), np.uint8), step=colour)
    assert np.asarray(Image.open(tmp_path / "new" / "one.png")).reshape(-1, 3).tolist() == [[200, 0, 5]] * 6


def test_without_tensorboard_its_backend_is_refused(tmp_path, monkeypatch, trace):
    monkeypatch.setattr(trim_visualizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"vis_backends holds a TensorboardVisBackend.*pip install tensorboard"):
        trim_visualizer.TrimVisualizer("a", vis_backends=[TensorboardVisBackend(str(tmp_path))])
    others = trim_visualizer.TrimVisualizer("b", vis_backends=[PictureVisBackend(str(tmp_path))])
    others.add_figure("kept", kept_figure([trace]))
    assert (tmp_path / "kept.png").is_file()


@pytest.mark.parametrize("writer", ["backend", "save"])
def test_no_picture_is_half_written(tmp_path, monkeypatch, writer):
    """Interrupted while it is written: the one of before stays, and nothing else is left."""
    figure = new_figure(1, 1)

    def write():
        if writer == "save":
            save(figure, tmp_path / "kept.png")
        else:
            PictureVisBackend(str(tmp_path)).add_image("kept", np.zeros((4, 4, 3), np.uint8))

    write()
    before = (tmp_path / "kept.png").read_bytes()

    def interrupted(picture, target, *args, **kwargs):
        if isinstance(target, str | Path):
            Path(target).write_bytes(b"half")
        else:
            target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(
        type(figure) if writer == "save" else Image.Image, "savefig" if writer == "save" else "save", interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]
    assert (tmp_path / "kept.png").read_bytes() == before
