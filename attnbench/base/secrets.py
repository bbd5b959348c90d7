"""Keeps passwords and keys that somebody writes on a command line out of the files that a run leaves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"

# Names of keys whose values are secrets, as whole words between dots and underscores: api_key, hub_token, password.
SECRET = re.compile(
    r"(?:^|[._\-])(?:tokens?|passw(?:or)?d|passphrase|secrets?|credentials?|auth|bearer|"
    r"(?:api|access|private|secret)[_\-]?keys?)(?:$|[._\-])",
    re.I,
)
PAIR = re.compile(r"([\w.\-@/]+)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,{}\[\]'\"]+)")
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")  # name:password@ in an address


def is_secret(key: str) -> bool:
    """Whether the values of a key are secrets, by its name."""
    return bool(SECRET.search(key))


def redacted_text(text: str) -> str:
    """A text, such as an override, with the values of secret keys and the logins of addresses hidden."""
    shown = PAIR.sub(lambda found: f"{found[1]}{found[2]}{HIDDEN}" if is_secret(found[1]) else found[0], text)
    return LOGIN.sub(f"{HIDDEN}@", shown)


def redacted_words(words: Iterable[str]) -> list[str]:
    """A command line, with the values of secret keys hidden."""
    made = []
    for word in words:
        key, equals, _ = word.partition("=")
        made.append(f"{key}={HIDDEN}" if equals and is_secret(key) else redacted_text(word))
    return made


def redacted(tree: Any, secret: bool = False) -> Any:
    """Nested values, with those of secret keys hidden."""
    if isinstance(tree, Mapping):
        return {key: redacted(value, secret or is_secret(str(key))) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redacted(one, secret) for one in tree]
    if secret and tree is not None and not isinstance(tree, bool):
        return HIDDEN
    return LOGIN.sub(f"{HIDDEN}@", tree) if isinstance(tree, str) else tree
