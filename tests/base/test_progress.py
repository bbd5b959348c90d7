"""Progress displays: a drawing on a terminal, lines without one."""

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

ERASED = "\x1b[2K"  # the escape sequence that clears a line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Connect = Callable[[], Terminal]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Replaces stderr with a terminal of 80 columns; called in the test, since pytest replaces stderr before it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    def connected() -> Terminal:
        monkeypatch.setattr(sys, "stderr", made := Terminal())
        return made

    return connected


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the monotonic clock, which the test sets."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def never(*anything: object) -> Any:
    raise AssertionError("this must not be called")


def shown(terminal: Terminal) -> str:
    """The text that a terminal received, without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_without_a_terminal_a_line_is_printed_every_fifteen_seconds(now: list[float]) -> None:
    lines: list[str] = []
    display = console.Display(print_line=lines.append)
    for second in range(100, 150):
        now[0] = second
        display.update(never, lambda: f"at {now[0]}")
        if second == 120:
            display.print("an epoch ended")
    display.update(never)
    display.close()
    assert lines == ["at 115", "an epoch ended", "at 135"]


def test_on_a_terminal_a_drawing_replaces_the_last_one_and_is_removed_at_the_end(
    connect: Connect, now: list[float]
) -> None:
    terminal = connect()
    display = console.Display(redraw_seconds=1.0, print_line=never)
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


def test_a_count_is_shown_with_the_time_left(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("", "evaluating"):
        now[0] = 100.0
        with console.counting(1200, "images", what) as advance:
            for now[0] in (110.0, 120.0):
                advance(300)
    line = "600 of 1,200 images, 20 s left\n"
    assert capsys.readouterr().err == f"{line}evaluating: {line}"


def test_a_count_is_a_bar_on_a_terminal(connect: Connect) -> None:
    terminal = connect()
    with console.counting(1200, "images") as advance:
        advance(300)
    assert re.search(r"━ +25 % 300 of 1,200 images", shown(terminal))


Record = Callable[[], FolderRecorder]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Makes the recorder of a run before its second epoch; it has 3 epochs of 4 steps of 50 images."""
    monkeypatch.setattr("attnbench.training.recorder._writer", lambda *options: _Nothing())
    where: dict[str, Any] = {"name": "", "epoch": 1, "step": 0, "steps": 4, "samples": 200, "every": 1}
    return lambda: FolderRecorder(tmp_path, **where, hparams={}, texts={}, gauges=dict, pictures=dict)


class _Nothing:
    """An event file that discards everything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


class _State:
    step, lr = 0, 0.1

    def mean_loss(self) -> float:
        return 0.5


def train(recorder: FolderRecorder, now: list[float]) -> None:
    """Record the second epoch; its first three steps take ten seconds each."""
    state = _State()
    recorder.begin(1, 3, 0, 4)
    for state.step in (1, 2, 3):
        now[0] += 10
        recorder.step(state)
    recorder.epoch(1, {"train_loss": 0.25, "top1": 90.0})
    recorder.close()


def test_a_run_logs_its_speed_and_time_left(
    record: Record, now: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("attnbench"), "propagate", True)
    with caplog.at_level(logging.INFO, "attnbench"):
        train(record(), now)
    assert caplog.messages == [
        "epoch 2/3 step 2/4 loss 0.500 5 images/s 0:01:00 left",
        "epoch 2/3 loss 0.250  top-1 90.00 %",
    ]


def test_a_run_shows_its_speed_and_time_left_in_a_bar(record: Record, now: list[float], connect: Connect) -> None:
    terminal = connect()
    train(record(), now)
    assert re.search(r"epoch 2/3 ━+[╸╺]?━* +58 % loss 0\.500  5 images/s 0:00:50", shown(terminal))
    assert "\nepoch 2/3 loss 0.250  top-1 90.00 %\n" in shown(terminal).replace(f"\r{ERASED}", "\n")


def test_a_terminal_that_becomes_narrower_keeps_no_row_of_the_drawing(
    connect: Connect, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of 50 columns is wrapped into three rows of 20: two of them are erased from below."""
    terminal = connect()
    display = console.Display()
    display.update(lambda: "x" * 50)
    monkeypatch.setenv("COLUMNS", "20")
    assert display.live
    display.live.console.width = 20
    before, now[0] = len(terminal.getvalue()), now[0] + 1
    display.update(lambda: "short")
    display.close()
    up = f"{ERASED}\x1b[1A"
    assert terminal.getvalue()[before:].startswith(f"{up}{up}\r{ERASED}short")
    assert console.wrapped_rows([50, 20, 0], 20) == 5
