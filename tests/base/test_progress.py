"""What is shown while something long goes on: a drawing on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.base import console
from attnbench.training.recorder import FolderRecorder

ERASED = "\x1b[2K"  # what a terminal is sent to clear a line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Connect = Callable[[], Terminal]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Puts a terminal of 80 columns in the place of stderr; pytest has its own there until a test begins."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def connected() -> Terminal:
        monkeypatch.setattr(sys, "stderr", made := Terminal())
        return made

    return connected


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by the monotonic clock, to be set by the test."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def never(*anything: object) -> Any:
    raise AssertionError("nobody shall ask for this")


def shown(terminal: Terminal) -> str:
    """What was sent to a terminal, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_elsewhere_a_line_comes_every_fifteen_seconds_and_no_drawing(now: list[float]) -> None:
    said: list[str] = []
    display = console.Display(say=said.append)
    for second in range(100, 150):
        now[0] = second
        display.update(never, lambda: f"at {now[0]}")
        if second == 120:
            display.print("an epoch ended")
    display.update(never)
    display.close()
    assert said == ["at 115", "an epoch ended", "at 135"]


def test_on_a_terminal_a_drawing_takes_the_place_of_the_last_and_is_gone_in_the_end(
    connect: Connect, now: list[float]
) -> None:
    terminal = connect()
    display = console.Display(redraw_seconds=1.0, say=never)
    for now[0], text in ((100.0, "first"), (100.5, "too soon"), (101.5, "second")):
        display.update(lambda text=text: text, never)  # type: ignore[misc]
    display.print("a line [b]that[/b] stays")
    display.close()
    before, after = shown(terminal).split("a line [b]that[/b] stays\n")
    assert "too soon" not in before and before.index("first") < before.index(ERASED) < before.index("second")
    assert after.endswith(ERASED)


@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_bar_fits_the_terminal_and_its_texts_are_whole(
    columns: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = connect()
    monkeypatch.setenv("COLUMNS", columns)
    console.plain_console(stderr=True).print(console.bar("epoch 1/6", 30, 120, "loss 0.312  1234 images/s", 62))
    (line,) = shown(terminal).splitlines()
    assert re.fullmatch(r"epoch 1/6 [━╸╺]{5,40} +25 % loss 0\.312  1234 images/s 0:01:02 *", line)


def test_what_is_counted_has_its_number_and_time_left(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("", "evaluating"):
        now[0] = 100.0
        with console.counting(1200, "images", what) as advance:
            for now[0] in (110.0, 120.0):
                advance(300)
    said = "600 of 1,200 images, 20 s left\n"
    assert capsys.readouterr().err == f"{said}evaluating: {said}"


def test_what_is_counted_is_a_bar_on_a_terminal(connect: Connect) -> None:
    terminal = connect()
    with console.counting(1200, "images") as advance:
        advance(300)
    assert re.search(r"━ +25 % 300 of 1,200 images", shown(terminal))


Record = Callable[[], FolderRecorder]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Makes the recorder of a run of 3 epochs of 4 steps of 50 images, before its second epoch."""
    monkeypatch.setattr("attnbench.training.recorder._writer", lambda *options: _Nothing())
    where: dict[str, Any] = {"name": "", "epoch": 1, "step": 0, "steps": 4, "samples": 200, "every": 1}
    return lambda: FolderRecorder(tmp_path, **where, hparams={}, texts={}, gauges=dict, pictures=dict)


class _Nothing:
    """An event file that nobody looks at."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words, **options: None


class _State:
    step, lr = 0, 0.1

    def mean_loss(self) -> float:
        return 0.5


def train(recorder: FolderRecorder, now: list[float]) -> None:
    """The second epoch: its first three steps take ten seconds each."""
    state = _State()
    recorder.begin(1, 3, 0, 4)
    for state.step in (1, 2, 3):
        now[0] += 10
        recorder.step(state)
    recorder.epoch(1, {"train_loss": 0.25, "top1": 90.0})
    recorder.close()


def test_a_run_says_its_speed_and_time_left_in_lines(
    record: Record, now: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("attnbench"), "propagate", True)
    with caplog.at_level(logging.INFO, "attnbench"):
        train(record(), now)
    assert caplog.messages == [
        "epoch 2/3 step 2/4 loss 0.500 5 images/s 0:01:00 left",
        "epoch 2/3 loss 0.250  top-1 90.00 %",
    ]


def test_a_run_says_its_speed_and_time_left_in_a_bar(record: Record, now: list[float], connect: Connect) -> None:
    terminal = connect()
    train(record(), now)
    assert re.search(r"epoch 2/3 ━+[╸╺]?━* +58 % loss 0\.500  5 images/s 0:00:50", shown(terminal))
    assert "\nepoch 2/3 loss 0.250  top-1 90.00 %\n" in shown(terminal).replace(f"\r{ERASED}", "\n")
