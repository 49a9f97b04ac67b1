import torch

from smarttrim_mm.ops import host


def test_values_keep_their_shapes():
    assert host.to_host([]) == []
    marks, ends = torch.tensor([[True, False], [False, False]]), torch.tensor([0, 3, 9], dtype=torch.int32)
    assert host.to_host([marks, ends]) == [[[1, 0], [0, 0]], [0, 3, 9]]
    assert host.to_host([torch.tensor(True)]) == [1]


def test_other_devices_are_read_once(monkeypatch):
    """As a GPU would be: all values in one transfer."""
    reads = []

    class Device:
        type = "cuda"

    class Far(torch.Tensor):
        device = Device()

        def cpu(self):
            reads.append(self.numel())
            return self.as_subclass(torch.Tensor)

    far = [torch.tensor([[1, 0], [1, 1]]).as_subclass(Far), torch.tensor([2, 5, 7], dtype=torch.int32).as_subclass(Far)]
    assert host.to_host(far) == [[[1, 0], [1, 1]], [2, 5, 7]]
    assert reads == [7]
