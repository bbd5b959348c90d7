"""All runs of the papers' tables as finished run folders with invented numbers: test data, and no results.

``python -m tests.full_tables FOLDER [sb/ eca/4 ...]`` writes them below a folder, to look at reports of full size.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from attnbench.base import files
from attnbench.config import hydra_state
from attnbench.reports import paper_tables
from attnbench.reports.composer import Composer
from attnbench.reports.rows import RowRun, choose, in_order

INVENTED = "invented test data"
DETECTION = ("AP", "AP50", "AP75", "mAP")


def leave(outputs: Path, tables: Sequence[str] = ("",)) -> list[Path]:
    """Write the runs of the tables whose ids begin with one of ``tables``; returns the folders, each once."""
    composer = Composer(outputs=str(outputs))
    runs: list[RowRun] = []
    with hydra_state.prepared():
        for name in paper_tables.ids():
            if name.startswith(tuple(tables)):
                table = paper_tables.load(name)
                runs += choose(table, table.rows, None, composer).runs()
    every = [run for group in in_order(runs) for run in group]
    for run in every:
        finish(run)
    return [run.path for run in every]


def finish(run: RowRun) -> None:
    """Write what a finished run leaves, with numbers that depend on its name alone."""
    folder, config = run.path, run.config
    invented = random.Random(f"{config.dataset_name} {config.choices['backbone']} {folder.parent.name} {config.seed}")
    per_setting = random.Random(folder.parent.name)
    percent = 60 + 25 * per_setting.random() + invented.gauss(0, 0.3)
    metrics = DETECTION if config.choices.get("task") == "detection" else ("top1", "top5")
    result: dict[str, Any] = {name: percent - 3 * i for i, name in enumerate(metrics)}
    result |= {f"best_{name}": value + 0.2 for name, value in result.items()}
    result |= {
        "status": "done", "seed": config.seed, "epochs": config.tree["schedule"]["epochs"], "best_epoch": 1,
        "params": 10**5 + per_setting.randrange(10**7), "macs": 10**7 + per_setting.randrange(10**9),
        "images_per_s": 1000 * invented.uniform(0.9, 1.1), "seconds": 60.0,
        "data": {"source": f"{config.dataset_name}: {INVENTED}", "fingerprint": f"{hash_of(config.dataset_name):016x}"},
    }  # fmt: skip
    files.make_folder(folder)
    (folder / "config.yaml").write_text(yaml.dump(config.record(), Dumper=yaml.CSafeDumper))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "env.json").write_text(json.dumps({"commit": "0000000 (invented)", "device": "none (invented)"}))


def hash_of(name: str) -> int:
    """A number of 64 bits for a name, the same in every process."""
    return random.Random(name).getrandbits(64)


if __name__ == "__main__":
    written = leave(Path(sys.argv[1]), sys.argv[2:] or ("",))
    print(f"{len(written)} runs with invented numbers below {sys.argv[1]}")
