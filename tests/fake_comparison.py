"""A root folder with tools that write what the real ones write, in no time, for the tests of comparisons."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smarttrim_mm.engine import compare

REPOSITORY = Path(__file__).parents[1]
FAKE_TOOL = """
import hashlib, json, pathlib, re, sys, time

here = pathlib.Path(__file__).parent
name, arguments = pathlib.Path(__file__).stem, sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(" ".join([name, *arguments]) + "\\n")

def option(flag):
    path = pathlib.Path(arguments[arguments.index(flag) + 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

given = dict(word.split("=", 1) for word in arguments if "=" in word)
text = pathlib.Path(arguments[0]).read_text()
row = pathlib.Path(arguments[0]).parent.name.rpartition("-")[0]
policy = re.search(r"policy=dict\\(.*?type='(\\w+)'", text, re.DOTALL)[1]
for crash in (f"crash_{name}_{row}", f"hang_{name}_{row}"):
    if (here / crash).exists():
        if crash.startswith("hang"):
            (here / "hanging").touch()
            time.sleep(600)
        sys.exit((here / crash).read_text())

if name == "train":
    folder = option("--work-dir")
    folder.mkdir(parents=True, exist_ok=True)
    seed = int(given["randomness.seed"])
    (folder / "iter_4.pth").write_text(json.dumps([row, seed, given.get("model.budget.speedup")]))
    (folder / "last_checkpoint").write_text("somewhere/iter_4.pth")
elif name == "calibrate":
    speedup = float(arguments[arguments.index("--speedup") + 1])
    weights = pathlib.Path(arguments[1]).read_text()
    option("--out").write_text(json.dumps([json.loads(weights)[:2], speedup]))
    folder = option("--work-dir")
    folder.mkdir(exist_ok=True)
    (folder / "calibration.json").write_text(json.dumps({"knob": "threshold", "after": {"knob": 0.5, "speedup": speedup}}))
elif name == "slice":
    (row, seed, speedup) = json.loads(pathlib.Path(arguments[1]).read_text())
    option("--out").write_text(json.dumps([[row, seed], float(speedup), "sliced"]))
elif name == "test":
    held = json.loads(pathlib.Path(arguments[1]).read_text())
    (_, seed), speedup = (held[0], held[1]) if isinstance(held[0], list) else (held[:2], 1.0)
    right = {"dense": 95, "random": 60}.get(row, 90) + seed
    spread = [1.0] if policy != "SmartTrim" else [0.5, 1.0, 1.5]
    predictions = [
        {
            "question_id": i, "image_id": i // 2, "question": "is it?", "answer": "yes" if i % 2 else "no",
            "predicted_answer": ("yes" if i % 2 else "no") if i < right else "blue", "difficulty": i % 3,
            "multiply_adds": 20e6 / speedup * spread[i % len(spread)],
        }
        for i in range(100)
    ]
    cost = {f"multiply_adds{suffix}": 20 / speedup for suffix in ("", "_p05", "_p95")}
    compute = {**cost, "dense_multiply_adds": 20.0, "executed_multiply_adds": 12.0, "speedup": speedup}
    if "sliced" in held:  # whose reports are about itself
        compute |= {"dense_multiply_adds": 20 / speedup, "speedup": 1.0}
    option("--out").write_text(json.dumps({"metrics": {"vqa/accuracy": right / 100}, "predictions": predictions}))
    option("--speedup-report").write_text(json.dumps(compute))
elif name == "benchmark":
    def contender(faster):
        spread = {"median": faster, "q1": faster - 0.1, "q3": faster + 0.1}
        return {"speedup": spread, "speedup_over_sdpa": spread, "ms_per_batch": {"median": 10 / faster}}
    contenders = {"host dense, SDPA": contender(1.0), policy: contender(1.5)}
    if "sliced" in json.loads(pathlib.Path(arguments[1]).read_text()):  # half as long, beside its own host, which is sliced too
        policy, host = "Dense", contender(1.0)
        contenders = {"host dense, SDPA": {**host, "ms_per_batch": {"median": 5.0}}, "packed dense": contender(0.9)}
    result = {"sdpa_baseline": "host dense, SDPA", "rounds": 60, "contenders": contenders, "batch_size": 32, "threads": 1}
    content = {"policy": policy, "results": [result], "load_average": {"before": [0], "after": [0]}}
    option("--out").write_text(json.dumps(content))
"""
CONFIGS = "configs/meter"


class FakeRoot:
    """A root folder with fake tools and the repository's configs.

    Attributes:
        plan: Of the next run; its settings are changed by tests.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools = root / "tools"
        self.tools.mkdir()
        for name in ("train", "calibrate", "slice", "test", "benchmark"):
            (self.tools / f"{name}.py").write_text(FAKE_TOOL)
        (root / "configs").symlink_to(REPOSITORY / "configs")
        self.work_dir = root / "work_dirs" / "compare"
        self.plan: dict[str, Any] = {
            "dense": f"{CONFIGS}/quickstart_dense.py",
            "recipe": f"{CONFIGS}/quickstart_smarttrim.py",
            "budgets": [2.0],
            "seeds": [0],
            "rows": [
                {"name": "SmartTrim", "config": f"{CONFIGS}/quickstart_smarttrim.py"},
                {"name": "random", "config": f"{CONFIGS}/quickstart_random.py"},
            ],
        }

    def write_plan(self, name: str = "plan", **changes: Any) -> str:
        path = self.root / f"{name}.py"
        path.write_text("\n".join(f"{key} = {value!r}" for key, value in {**self.plan, **changes}.items()))
        return str(path)

    def run(self, *arguments: str, **changes: Any) -> int:
        plan = [] if "--rows" in arguments else [self.write_plan(**changes)]
        return compare.main([*plan, *arguments], tools=self.tools, root=self.root)

    def crash(self, tool: str, row: str, words: str = "power cut") -> Path:
        path = self.tools / f"crash_{tool}_{row}"
        path.write_text(words)
        return path

    @property
    def calls(self) -> list[str]:
        path = self.tools / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def short_calls(self) -> list[str]:
        """Tool, row, budget and seed of each call."""
        return [short(call) for call in self.calls]

    def content(self, plan: str = "plan") -> dict[str, Any]:
        return json.loads((self.work_dir / plan / "results.json").read_text())

    def results(self, plan: str = "plan") -> dict[tuple[str, float | None, int], Mapping[str, Any]]:
        return {(run["name"], run["budget"], run["seed"]): run for run in self.content(plan)["runs"]}

    def markdown(self, plan: str = "plan") -> str:
        return (self.work_dir / plan / "results.md").read_text()


def short(call: str) -> str:
    """Tool and row of a call, with its budget and seed."""
    tool, config, *others = call.split()
    row = Path(config).parent.name.rpartition("-")[0]
    place = next(word for word in others if "/seed-" in word and f"/{Path(config).parent.name}/" in word)
    return " ".join([tool, row, *Path(place.partition(Path(config).parent.name + "/")[2]).parts[:2]])
