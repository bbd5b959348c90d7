"""Writes shards as release 0.1.0 wrote them."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from attnbench.data.image_folders.folder import Side, read_sides
from attnbench.data.image_folders.sharding import runs_of


def write_earlier(folder: Path, target: Path, shard_bytes: int = 6_000, changed: str = "", last: bool = True) -> Path:
    """Shards of an image folder; without ``last``, they are unfinished."""
    target.mkdir()
    classes, *sides = read_sides(folder, ("val",), "all")
    listed: dict[str, list[dict[str, str]]] = {}
    for side in sides:
        for number, images in enumerate(runs_of(side.bytes, shard_bytes)):
            name = f"{side.name}-{number:05}.shard"
            (target / name).write_bytes(_shard(side, images, f"made of {name}"))
            listed.setdefault(side.name, []).append({"file": name, "made_of": f"made of {name}"})
    index = {"format": "attnbench shards 1", "changed": changed, "classes": classes, "sides": listed}
    if last:
        (target / "shards.json").write_text(json.dumps(index))
    return target


def _shard(side: Side, images: range, made_of: str) -> bytes:
    data = [side.path(k).read_bytes() for k in images]
    ends = np.cumsum([len(one) for one in data]).astype("<u8")
    sums = np.array([zlib.crc32(one) for one in data], "<u4")
    about = {"made_of": made_of, "side": side.name, "records": len(data)}
    names = b"\0".join(os.fsencode(side.files[k]) for k in images)
    index = json.dumps(about, sort_keys=True).encode() + b"\n" + ends.tobytes() + sums.tobytes() + names
    footer = struct.pack("<QII16s", int(ends[-1]), len(index), zlib.crc32(index), b"attnbench-shard1")
    return b"".join(data) + index + footer
