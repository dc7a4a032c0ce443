"""Fake keys to plant into the environment of a run, and the search for them in what it left."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

NAMES = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "SNAKEMAKE_STORAGE_S3_ACCESS_KEY",
    "SNAKEMAKE_STORAGE_S3_SECRET_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "RECRL_JUDGE_KEY",
)
# Each as long as W&B wants its own.
SECRETS = {name: f"planted-{name.lower().replace('_', '-')}".ljust(40, "x") for name in NAMES}


def told(folder: Path) -> list[str]:
    """Where below a folder a planted key stands, as `path: name`."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            texts = [str(path.relative_to(folder)).encode(), data, *_unpacked(data)]
            found += [f"{path}: {name}" for text in texts for name in names_in(text)]
    return found


def names_in(data: bytes) -> list[str]:
    """Names of the keys that stand in bytes, as they are or in base64."""
    return [name for name, value in SECRETS.items() if any(form in data for form in _forms(value))]


def _forms(value: str) -> Iterator[bytes]:
    yield value.encode()
    # At whatever place of a longer text in base64 it stands; letters that others share are cut off.
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + value.encode())
        yield coded[4 if before else 0 : -4]


def _unpacked(data: bytes) -> Iterator[bytes]:
    try:
        if data.startswith(b"\x1f\x8b"):
            yield gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        # Whatever it is, no text was packed into it.
        return
