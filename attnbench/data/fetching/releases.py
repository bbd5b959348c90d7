"""The published data sets: their archives, addresses and hashes, read from ``addresses.yaml`` or a file like it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from attnbench.base.errors import ConfigError

OURS = Path(__file__).with_name("addresses.yaml")


def _inside(path: str) -> str:
    """A path that stays inside a folder."""
    parts = path.split("/")
    if not all(re.fullmatch(r"\w[\w.+-]*", part) for part in parts):
        raise ValueError("must be a path inside the data set's folder")
    return path


def _address(url: str) -> str:
    if not re.match(r"https?://[^/\s]+", url):
        raise ValueError("must be an http or https address")
    return url


Inside = Annotated[str, AfterValidator(_inside)]
Address = Annotated[str, AfterValidator(_address)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Strict):
    """A file to transfer.

    Attributes:
        urls: its addresses, in the order in which they are tried; empty for a file that only the user has.
        bytes: its size, if it is known.
        sha256: its hash in hex, if it is known.
        md5: its hash in hex, if no other is known.
    """

    name: Inside
    urls: tuple[Address, ...] = ()
    bytes: Annotated[int, Field(ge=0)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class Part(_Strict):
    """Archives that are unpacked together.

    Attributes:
        makes: what they put into the data set's folder.
        strip: the folder in the archives that is left out of paths.
        unpack: whether they are unpacked, or kept as they are.
        layout: what is done with ImageNet's archives.
    """

    archives: Annotated[tuple[Archive, ...], Field(min_length=1)]
    makes: Annotated[tuple[Inside, ...], Field(min_length=1)]
    strip: Inside | None = None
    unpack: bool = True
    layout: Literal["as packed", "imagenet_train", "imagenet_val"] = "as packed"


class Release(_Strict):
    """A published data set.

    Attributes:
        page: where it is described.
        use: the options with which a run uses it, besides ``dataset.root``.
        folder: its folder in that of all data sets; None for its own name.
    """

    title: str
    page: str
    use: str
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    folder: Inside | None = None


def releases(path: Path = OURS) -> dict[str, Release]:
    """The data sets in a file of addresses, by name.

    Raises:
        ConfigError: the file is missing or has another form.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no names of data sets")
        return {str(name): Release.model_validate(about) for name, about in content.items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"this is no file of addresses: {where}: {first['msg']}", path, f"see {OURS.name}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"this file of addresses cannot be read: {reason}", path, f"see {OURS.name}") from error
