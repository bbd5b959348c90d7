"""Transfers a file: resumed after a break, from one address or the next, and kept only if its hash is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from attnbench.base import files
from attnbench.base.errors import DataError
from attnbench.data.fetching.releases import Archive

PIECE = 2**18  # bytes
TIMEOUT = 30.0  # seconds without a byte
LONG = 2**30  # bytes that take seconds to read again
ATTEMPTS = 5  # at one address, without a new byte, before the next one is tried
WAIT = 1.0  # seconds before the second attempt; doubled each time
LONGEST = 30.0  # seconds between attempts
WRONG = 3  # times that an address may send a wrong file as a whole
MIXED = 10  # times that a file may be wrong that arrived in several pieces
TODO = "run the same command again; it continues"
SPACE = "make space, or choose another folder"

Advance = Callable[[int], object]


class _Broken(Exception):
    """A transfer ended early, or the server refused it."""


class _Useless(_Broken):
    """This address does not have the file."""


def transfer(archive: Archive, target: Path, advance: Advance, say: Callable[[str], object] | None = None) -> None:
    """Transfer a file. What has arrived is kept in ``.NAME.part`` beside it, until its hash is right.

    Args:
        advance: called with the number of new bytes, or of lost ones as a negative number.
        say: called with a line about each transfer that fails; by default, it is printed on stderr.

    Raises:
        DataError: no address gives the file.
        StorageError: the file cannot be written.
    """
    _Transfer(archive, target, advance, say or _print).run()


class _Transfer:
    def __init__(self, archive: Archive, target: Path, advance: Advance, say: Callable[[str], object]) -> None:
        self.archive, self.target, self.advance, self.say = archive, target, advance, say
        self.part = part_of(target)
        self.reason = "there is no address"

    @property
    def have(self) -> int:
        """The bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """See ``transfer``."""
        self.advance(self.have)
        if not any(self._arrives_from(url) for url in self.archive.urls):
            what = f"{self.archive.name} cannot be transferred: {self.reason}"
            raise DataError(what, self.target.parent.parent, TODO)

    def _arrives_from(self, url: str) -> bool:
        """Transfer from one address, until the file is here or nothing more comes."""
        failures = wrong = mixed = 0
        while failures < ATTEMPTS and wrong < WRONG and mixed < MIXED:
            before = self.have
            try:
                self._attempt(url, before)
                return True
            except _Broken as error:
                failures = 0 if self.have > before else failures + 1
                self._tell(url, f"{error}; {self.have:,} bytes so far")
                if isinstance(error, _Useless):
                    break
                time.sleep(min(LONGEST, WAIT * 2 ** (failures - 1)) if failures else 0)
            except _Wrong as error:
                self.advance(-self.have)
                forget(self.target)
                wrong, mixed = wrong + (before == 0), mixed + (before > 0)
                self._tell(url, f"{error}; starting anew")
        return False

    def _attempt(self, url: str, have: int) -> None:
        _continue(self.archive, url, self.part, have, self.advance)
        if self.have > LONG:
            self.say(f"{self.archive.name}: checking its hash")
        if different := difference(self.archive, self.part):
            raise _Wrong(different)
        with files.changing(self.target, SPACE):
            with open(self.part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self.part, self.target)

    def _tell(self, url: str, what: str) -> None:
        self.reason = f"{urlsplit(url).netloc}: {what}"
        self.say(f"{self.archive.name}: {self.reason}")


def part_of(target: Path) -> Path:
    """The file that holds what has arrived of ``target``."""
    return target.with_name(f".{target.name}.part")


class _Wrong(Exception):
    """The whole file arrived, but it is another one."""


def _print(line: str) -> None:
    print(line, file=sys.stderr)


def _continue(archive: Archive, url: str, part: Path, have: int, advance: Advance) -> None:
    """Append what is missing."""
    if archive.bytes is not None and have == archive.bytes:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "attnbench", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # it follows redirections to the web only
            start, total = _place(response, have)
            _refuse_other(archive, total)
            advance(start - have)
            _append(archive, response, part, start, total, advance)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # all is here already, or the file here is longer than the one there
            if re.fullmatch(rf"bytes \*/{have}", error.headers.get("Content-Range", "")):
                return
            raise _Wrong("the file is shorter there") from None
        kind = _Broken if error.code in (408, 425, 429) or error.code >= 500 else _Useless
        raise kind(f"{error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(" ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__) from error


def _place(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """The position at which an answer begins, and the size of the whole file if the server tells."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, int(length) if length else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != have:
        raise _Useless("it answers with another range than it was asked for")
    return have, None if found[2] == "*" else int(found[2])


def _refuse_other(archive: Archive, total: int | None) -> None:
    if archive.bytes is not None and total is not None and total != archive.bytes:
        raise _Useless(f"another file: {total:,} bytes instead of {archive.bytes:,}")


def _append(
    archive: Archive, response: http.client.HTTPResponse, part: Path, start: int, total: int | None, advance: Advance
) -> None:
    """Write an answer's bytes into the file from ``start`` on."""
    at, most = start, archive.bytes if archive.bytes is not None else total
    with files.changing(part, SPACE):
        file = open(part, "r+b" if part.exists() else "wb")  # noqa: SIM115 - closed below
    try:
        with files.changing(part, SPACE):
            file.truncate(start)
            file.seek(start)
        while piece := response.read1(PIECE):
            at += len(piece)
            if most is not None and at > most:
                raise _Wrong(f"it sends more than {most:,} bytes")
            with files.changing(part, SPACE):
                file.write(piece)
            advance(len(piece))
    finally:
        with files.changing(part, SPACE):
            file.close()
    if most is not None and at < most:
        raise _Broken("the transfer broke off")


def difference(archive: Archive, path: Path, advance: Advance | None = None) -> str:
    """How a file differs from the published one, by size and hash; empty if it is the same as far as is known.

    Args:
        advance: called with the number of bytes that were read.

    Raises:
        DataError: the file cannot be read.
    """
    known = archive.sha256 or archive.md5
    digest = hashlib.sha256() if archive.sha256 else hashlib.md5(usedforsecurity=False)
    try:
        size = path.stat().st_size
        if archive.bytes is not None and size != archive.bytes:
            return f"{size:,} bytes instead of {archive.bytes:,}"
        if known is None:
            return ""
        with open(path, "rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
                if advance:
                    advance(len(piece))
    except OSError as error:
        raise DataError(f"this file cannot be read: {error.strerror}", path, "check the disk") from error
    name = "SHA-256" if archive.sha256 else "MD5"
    found = digest.hexdigest()
    return "" if found == known else f"its {name} begins with {found[:12]}, not with {known[:12]}"


def forget(target: Path) -> None:
    """Remove what has arrived of a file."""
    with files.changing(part_of(target), SPACE):
        part_of(target).unlink(missing_ok=True)
