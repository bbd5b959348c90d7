"""VOC's annotations: XML as the tools of many people write it, in any encoding, and never more than data."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

from attnbench.base.errors import DataError
from attnbench.data.detection.annotated import flag
from attnbench.data.detection.scenes import NoArea, checked_box

LARGEST = 1 << 20  # maximum bytes of an annotation; VOC's have a few thousand
DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"']")
NATIVE = ("utf-8", "utf-16", "iso8859-1", "ascii")  # Python's names of the encodings that the parser knows
WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}  # what writes gb2312 often means its supersets


def parse(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        DataError: the file cannot be read, is too large or damaged, or has a DOCTYPE, which could include other files
            or expand without limit.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"this annotation cannot be read: {error.strerror}", path, "restore it") from error
    if len(content) > LARGEST:
        raise DataError(f"this annotation has more than {LARGEST} bytes", path, "restore it")
    text = _decoded(content, path)
    parser = ElementTree.XMLParser(target=_Builder(path), encoding="utf-8" if isinstance(text, str) else None)
    try:
        parser.feed(text)
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"this annotation is not XML: {error}", path, "restore it") from error
    return root


def _decoded(content: bytes, path: Path) -> str | bytes:
    """The text of an XML file in an encoding that the parser does not know; else the bytes."""
    declared = DECLARED.match(content.lstrip())
    if not declared:
        return content
    given = declared[1].decode()
    try:
        name = codecs.lookup(given).name
        return content if name in NATIVE else content.decode(WIDER.get(name, name))
    except LookupError as error:
        raise DataError(f"this annotation has an unknown encoding: {given}", path, "save it as UTF-8") from error
    except UnicodeDecodeError as error:
        what = f"this annotation is not in the encoding that it declares, {given}: byte {error.start}"
        raise DataError(what, path, "save it as UTF-8") from error


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree and refuses a DOCTYPE; the parser reports one in any encoding."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise DataError("this annotation has a DOCTYPE", self.path, "remove the declaration")


def box(item: ElementTree.Element, n: int, width: int, height: int, path: Path) -> tuple[float, ...]:
    """An object's box. VOC counts pixels from 1, and its last pixel is inclusive: from 1 to 1 is one pixel wide."""
    where = f"{path}: object {n}"
    left, top, right, bottom = (number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    if right <= left or bottom <= top:  # one pixel would have an area, but VOC has no such objects
        raise NoArea(f"a box without area: {left:g}, {top:g} to {right:g}, {bottom:g}", where, "repair or remove it")
    return checked_box((left - 1, top - 1, right, bottom), width, height, where)


def class_name(item: ElementTree.Element, n: int, path: Path) -> str:
    """The name of an object's class."""
    if name := item.findtext("name", "").strip():
        return name
    raise DataError("this object has no class name", f"{path}: object {n}", "write it into <name>")


def difficult(item: ElementTree.Element, n: int, path: Path) -> bool:
    """Whether an object is marked as difficult."""
    return flag(item.findtext("difficult", "0").strip() or 0, "difficult", f"{path}: object {n}")


def number(item: ElementTree.Element, name: str, where: object) -> float:
    """The number in a child element.

    Raises:
        DataError: it is missing or not a number.
    """
    text = item.findtext(name)
    try:
        return float(text or "")
    except ValueError:
        problem = "is missing" if text is None else f"is {text!r}, not a number"
        raise DataError(f"{name} {problem}", where, "repair the annotation") from None
