"""What the tests of figures share: figures drawn in memory, what runs would have left, and what a picture says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure as Picture

from attnbench.base import files
from attnbench.config import composition
from attnbench.reports.composer import Composer
from attnbench.reports.figures import drawing, paper_figures
from attnbench.reports.rows import seeded
from attnbench.runs import results

Draw = Callable[..., tuple[Picture, str]]
Leave = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """A figure of the runs in the test's own folder."""

    def drawn(
        name: str | paper_figures.Figure,
        *overrides: str,
        seeds: list[int] | None = None,
        runs: list[Path] | None = None,
        **options: Any,
    ) -> tuple[Picture, str]:
        composer = Composer([*overrides, f"paths.outputs={tmp_path}/outputs"])
        given = None if runs is None else results.find(map(str, runs))
        figure = paper_figures.load(name) if isinstance(name, str) else name
        return drawing.draw(figure, given, composer, seeds, drawing.FigureOptions(**options))

    return drawn


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Leaves what a run of some overrides would have left."""

    def done(overrides: list[str], seed: int, top1: float | None = None, **result: Any) -> Path:
        composed = composition.compose([*overrides, f"paths.outputs={tmp_path}/outputs"])
        folder = seeded(composed, seed).run_folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(seeded(composed, seed).record()))
        files.write_json(folder / "env.json", {"commit": "c0ffee", "device": "a card"})
        if top1 is None:
            files.write_json(folder / "status.json", {"status": "failed", "error": "the loss became nan"})
        else:
            left = {"status": "done", "top1": top1, "best_top1": top1, "epochs": 2, "seed": seed}
            files.write_json(folder / "result.json", left | {"data": {"source": "made up"}} | result)
        return folder

    return done


def shown_text(picture: Picture) -> str:
    """Title and notes, without the line breaks."""
    return " ".join(f"{picture.get_suptitle()} {picture.get_supxlabel()}".split())


def legend(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.legends[0].get_texts()]
