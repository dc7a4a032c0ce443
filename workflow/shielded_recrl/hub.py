"""How a config names a model: `embedded`, a local folder, or a repository of the hub at a commit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

EMBEDDED = "embedded"
MODELS = "resources/models"
Revision = Annotated[str | None, Field(pattern="^[0-9a-f]{40}$")]


def is_local(model: str) -> bool:
    """Whether a model's name is that of a folder."""
    return model.startswith((".", "/"))


def on_hub(model: str) -> bool:
    """Whether it is that of a repository of the hub."""
    return model != EMBEDDED and not is_local(model)


def model_folder(model: str) -> str:
    """Folder of a model that is not embedded: the user's own, or where it is fetched to.

    >>> model_folder("./my-lm"), model_folder("org/lm")
    ('./my-lm', 'resources/models/org--lm')
    """
    return model if is_local(model) else f"{MODELS}/{fetched_name(model)}"


def fetched_name(repository: str) -> str:
    """Name of the folder that a repository of the hub is fetched to."""
    return repository.replace("/", "--")


def require_pinned(model: str, revision: str | None, key: str) -> None:
    """Let no repository of the hub pass without its commit.

    Args:
        model: its name.
        revision: the commit.
        key: that of the commit in the config.

    Raises:
        ValueError: there is none.
    """
    if on_hub(model) and revision is None:
        raise ValueError(
            f"{key}: hub id {model!r} needs the 40-digit commit it is pinned to "
            "(a local folder starts with ./, ../ or /)"
        )
