"""Files, names and records that somebody else may have made: bounded, never followed, never interpreted."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from attnbench.base import console, escape, files, plain_yaml, secrets
from attnbench.base.errors import ConfigError, StorageError
from attnbench.reports import writing
from attnbench.runs.folder import RunFolder

BOMB = "x0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"x{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 100_000,
        "- " * 4000 + "a",
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: !!python/name:os.system x",
        "x" * 2**21,
    ],
    ids=range(7),
)
def test_hostile_yaml_is_refused_at_once(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="values|deep|depth|tag|longer"):
        plain_yaml.load(text)
    assert time.monotonic() - began < 2


def test_ordinary_yaml_is_read() -> None:
    assert plain_yaml.load("a: &a [1, {b: 2}]\nc: *a\nd: {<<: {e: 3}}") == {
        "a": [1, {"b": 2}],
        "c": [1, {"b": 2}],
        "d": {"e": 3},
    }


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("result.json", ".result.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    files.write_json(tmp_path / "result.json", {"a": 1})
    assert victim.read_text() == "precious"
    assert (
        json.loads((tmp_path / "result.json").read_text()) == {"a": 1} and not (tmp_path / "result.json").is_symlink()
    )


@pytest.mark.parametrize("name", ["train.log", ".lock"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_appended_to_is_a_plain_file(name: str, kind: str, tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "run" / name
    victim.write_text("precious")
    place.parent.mkdir()
    {"link": lambda: place.symlink_to(victim), "pipe": lambda: os.mkfifo(place), "folder": place.mkdir}[kind]()
    folder = RunFolder(place.parent)
    with pytest.raises(StorageError), folder.hold(), folder.logged():
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "deep", "binary"])
def test_json_of_any_kind_is_read_in_bounded_time(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "deep": lambda: path.write_text("[" * 200_000),
        "binary": lambda: path.write_bytes(b"\xff\x00"),
    }
    made[kind]()
    assert files.read_json(path) is None and files.read_object(path) == {}


@pytest.mark.parametrize("wrong", [{"top1": "x"}, {"data": None}, {"seconds": float("nan")}, {"choices": 3}])
def test_a_result_of_wrong_types_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"status": "done", **wrong}))
    with pytest.raises(StorageError, match=rf"damaged: result\.json: {next(iter(wrong))} is "):
        RunFolder(tmp_path).result()


HOSTILE = "a\x1b[2J\x07\r\n\u202e[b]</td>|`x`](http://x)"


def test_control_characters_are_made_visible(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    assert str(ConfigError("x", HOSTILE)).isprintable()
    console.say(HOSTILE.replace("\n", ""))
    table = Table("a", title=HOSTILE)
    table.add_row(HOSTILE)
    console.show(table, HOSTILE)
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\r\u202e") and "[b]" in printed
    cells = [escape.html(HOSTILE), escape.latex(HOSTILE), escape.markdown(HOSTILE), escape.csv(HOSTILE)]
    assert all(cell.isprintable() for cell in cells)
    assert "</td>" not in cells[0] and "<" not in cells[2] and re.search(r"(?<!\\)\[", cells[2]) is None
    (comment,) = writing.latex_comments(["a\n\\input{x}"])
    assert comment.startswith("% a") and comment.isprintable() and "\\input" not in comment
    assert writing.csv_table(["a"], [{"a": "=1+1"}, {"a": "-1.5"}, {"a": 2}]) == "a\n'=1+1\n-1.5\n2\n"


def test_secrets_are_hidden() -> None:
    words = [
        "train.py",
        "dataset.api_key=abc",
        "+x.hub_token='a b'",
        "a.keys=3",
        "dataset.root=https://me:pw@host/x",
        "+x={password: abc, n: 1}",
    ]
    hidden = secrets.redacted_words(words)
    assert hidden == [
        "train.py",
        "dataset.api_key=***",
        "+x.hub_token=***",
        "a.keys=3",
        "dataset.root=https://***@host/x",
        "+x={password: ***, n: 1}",
    ]
    tree = {"dataset": {"token": "abc", "name": "x", "secret": {"a": "b"}, "tokenizer": "y"}, "seed": 0}
    assert secrets.redacted(tree) == {
        "dataset": {"token": "***", "name": "x", "secret": {"a": "***"}, "tokenizer": "y"},
        "seed": 0,
    }
