"""What shards leave as JSON documents: a label, what the shard found, and a digest of both.

In: a part. Out: a document; of all documents of one whole their parts in order, or one line that says
what is wrong with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_json, write_text
from shielded_recrl.settings import Strict, one_line
from shielded_recrl.shards import Label, in_order


class JsonPart(Strict):
    """What one shard found; subclasses say what that is."""

    label: Label
    device: str  # cpu or cuda: they round otherwise


P = TypeVar("P", bound=JsonPart)


def write_part(path: Path, part: JsonPart) -> None:
    """Write a part atomically."""
    content = part.model_dump(mode="json")
    document = {"part": content, "sha256": _digest(content)}
    write_text(path, json.dumps(document, sort_keys=True, allow_nan=False) + "\n")


def read_parts(paths: Sequence[Path], kind: type[P], made_from: str) -> list[P]:
    """All parts of one whole, in the order of their shards.

    Args:
        paths: their documents, in any order.
        kind: what they hold.
        made_from: digest of what the whole is to be made from.

    Raises:
        UserError: a document is damaged or no such part, or they do not make this whole.
    """
    parts = {path: read_part(path, kind) for path in paths}
    order = in_order({path: part.label for path, part in parts.items()}, made_from)
    for path in order[1:]:
        if parts[path].device != parts[order[0]].device:
            raise UserError(
                f"{path}: made on another kind of machine than {order[0]}; delete one of them and "
                "run its job again where the other ran"
            )
    return [parts[path] for path in order]


def read_part(path: Path, kind: type[P]) -> P:
    """One part.

    Raises:
        UserError: the document is missing, damaged or no such part.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the job of this shard")
    document = read_json(path)
    try:
        part = kind.model_validate(document["part"])
        if document["sha256"] == _digest(document["part"]):
            return part
        reason = "its content is not what its job wrote"
    except ValidationError as error:
        reason = one_line(error)
    except (KeyError, TypeError):
        reason = "expected the keys part and sha256"
    raise UserError(f"{path}: no part of a shard ({reason}); delete it and run its job again")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
