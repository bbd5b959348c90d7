"""Wall-clock time of a sweep of eight single-threaded members: the pool with two slots, and Hydra's basic launcher.

The members train ResNet-20 on the digits. Each sweep is an ordinary command and starts from an empty folder.

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
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(repetitions=3)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a member (default: %(default)s)")
    options = parser.parse_args()
    claim = Claim(
        title="A sweep of 8 single-threaded members",
        ours="pool",
        reference="basic",
        at_least=1.6,
        unit="members a second",
        work=MEMBERS,
        setting=f"two slots, ResNet-20 on digits, {options.epochs} epochs",
    )
    subjects = {name: _sweep(launcher, options.epochs) for name, launcher in LAUNCHERS.items()}
    report(claim, compare(subjects, repetitions=options.repetitions, clock=wall_seconds, warm_up=0), options.json)


def _sweep(launcher: list[str], epochs: int) -> Callable[[], None]:
    seeds = ",".join(map(str, range(MEMBERS)))

    def call() -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as outputs:
            overrides = [*launcher, f"seed={seeds}", f"schedule.epochs={epochs}", f"paths.outputs={outputs}"]
            command = [sys.executable, "train.py", "-m", *overrides]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            assert len(list(Path(outputs).rglob("result.json"))) == MEMBERS

    return call


if __name__ == "__main__":
    main()
