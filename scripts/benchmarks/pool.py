"""A sweep of eight single-threaded members: the pool with two slots against Hydra's basic launcher, by the clock.

Members train ResNet-20 on the digits. Each launcher starts from an empty folder, as a user types it.

    python scripts/benchmarks/pool.py [--repetitions 3] [--epochs 6] [--json]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from claims import Claim, arguments, report

from attnbench.base.benchmark import compare, wall_seconds

ROOT = Path(__file__).parents[2]
MEMBERS = 8
LAUNCHERS = {"pool": ["hydra/launcher=pool", "hydra.launcher.slots=2"], "basic": ["hydra/launcher=basic"]}


def main() -> None:
    """Measure and print."""
    words = arguments(__doc__.splitlines()[0])
    words.set_defaults(repetitions=3)
    words.add_argument("--epochs", type=int, default=6, help="of a member")
    taken = words.parse_args()
    claim = Claim(
        title="A sweep of 8 single-threaded members",
        ours="pool",
        reference="basic",
        at_least=1.6,
        unit="members a second",
        work=MEMBERS,
        setting=f"two slots, ResNet-20 on digits, {taken.epochs} epochs",
    )
    subjects = {name: _sweep(options, taken.epochs) for name, options in LAUNCHERS.items()}
    report(claim, compare(subjects, repetitions=taken.repetitions, clock=wall_seconds, warm_up=0), taken.json)


def _sweep(launcher: list[str], epochs: int) -> Callable[[], None]:
    seeds = ",".join(map(str, range(MEMBERS)))

    def call() -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as outputs:
            words = ["-m", *launcher, f"seed={seeds}", f"schedule.epochs={epochs}", f"paths.outputs={outputs}"]
            command = [sys.executable, "train.py", *words]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            assert len(list(Path(outputs).rglob("result.json"))) == MEMBERS

    return call


if __name__ == "__main__":
    main()
