"""The base of every typed settings model, and the way from a model to command-line flags."""

from __future__ import annotations

import shlex
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """What is read from a file: immutable, unknown keys refused, no number but finite ones."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class Settings(Strict):
    """A section of the config, which also travels as flags: every field described."""


Part = TypeVar("Part", bound=Settings)


def flags(settings: BaseModel, prefix: str = "") -> str:
    """Render settings as command-line flags, in field order.

    The flags are the exact values a job depends on, so a rule that puts them in `params` reruns
    when one of them changes and at no other time.

    >>> class Toy(Settings):
    ...     learning_rate: float = 0.1
    ...     verbose: bool = False
    >>> flags(Toy())
    '--learning-rate 0.1 --verbose False'
    """
    words = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        flag = prefix + name.replace("_", "-")
        if isinstance(value, BaseModel):
            words.append(flags(value, prefix=f"{flag}."))
        elif isinstance(value, (list, tuple)):
            words.append(" ".join([f"--{flag}", *(shlex.quote(str(v)) for v in value)]))
        else:
            words.append(f"--{flag} {shlex.quote(str(value))}")
    return " ".join(words)


def section(settings: Settings, part: type[Part]) -> Part:
    """The fields of `settings` that belong to one of its base classes.

    A rule names only what its command reads, so that nothing else can rerun it.
    """
    return part(**{name: getattr(settings, name) for name in part.model_fields})


def one_line(error: ValidationError, prefix: str = "") -> str:
    """The first problem of a validation error: key, what is wrong, what was given."""
    first = error.errors()[0]
    key = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; see docs/configuration.md for the known ones"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}; got {first['input']!r}"
