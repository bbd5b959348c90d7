"""scripts/checks/mutations.py: its list fits the code and the tests. Nothing of it is run here."""

from __future__ import annotations

import ast
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "checks" / "mutations.py"), run_name="mutations")
MUTATIONS: list[Any] = SCRIPT["MUTATIONS"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_the_right_code_is_there_once_and_the_wrong_one_is_code_too(mutation: Any) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, mutation.old
    wrong = SCRIPT["mutated"](text, mutation)
    assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(text))


def test_the_tests_that_should_notice_are_there() -> None:
    for test in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, name = test.partition("::")
        assert f"\ndef {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_names_are_distinct_and_chosen_by_how_they_begin() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert SCRIPT["chosen"](["voc-crowd"]) == [m for m in MUTATIONS if m.name.startswith("voc-crowd")]
    with pytest.raises(SystemExit, match="no mutation nonsense"):
        SCRIPT["chosen"](["nonsense"])


@pytest.mark.parametrize("text", ["nothing of the kind", "a = 1\na = 1\n"])
def test_code_that_is_not_there_once_is_refused(text: str) -> None:
    mutation = SCRIPT["Mutation"]("name", "a.py", "a = 1", "a = 2", [])
    with pytest.raises(SystemExit, match=r"error: name: a\.py has \d times, not once: 'a = 1'"):
        SCRIPT["mutated"](text, mutation)


def test_a_mistake_is_made_and_taken_back(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = 1\n")
    with SCRIPT["applied"](SCRIPT["Mutation"]("name", "a.py", "a = 1", "a = 2", []), tmp_path):
        assert (tmp_path / "a.py").read_text() == "a = 2\n"
    assert (tmp_path / "a.py").read_text() == "a = 1\n"


def test_only_tests_that_ran_and_failed_have_noticed() -> None:
    """Pytest's 2 to 5: interrupted or not collected, an internal error, wrong words, no test found; None: no end."""
    assert [SCRIPT["verdict"](code) for code in (0, 1, 2, 3, 4, 5, None)] == ["SURVIVED", "caught"] + ["error"] * 5
