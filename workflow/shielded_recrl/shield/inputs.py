"""The flags of every command that runs a base LM on the prompts of a dataset.

In: flags. Out: the dataset as it is served, and the digest that the parts of shards are known by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import sha256
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import fingerprint
from shielded_recrl.settings import Settings
from shielded_recrl.shield.serving import Serving
from shielded_recrl.shield.settings import RoleSettings

# What is read of folders that hold more.
READ = {
    "data": [f"{name}.parquet" for name in ("train", "valid", "test", "items", "users")],
    "run": ["adapter", "snapshots.safetensors"],
    "templates": ["prefix.txt", "request.txt"],
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a part and its whole are made from.

    Each command that makes parts has a subclass in its module, and the one that joins them takes it,
    too.

    Attributes:
        data: folder of the prepared dataset.
        base: folder of the base LM.
        templates: folder of the prompt templates.
        prompt: prompt lengths.
        precision: precision the base is served in.
        seed: seed of all draws.
    """

    data: Path
    base: Path
    templates: Path
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")]
    precision: Precision = "fp32"
    seed: int = 42

    def serving(self, roles: RoleSettings, seed: int) -> Serving:
        """The dataset as the served system sees it; see `Serving.load`."""
        return Serving.load(self.data, self.base, self.templates, self.prompt, roles, seed)

    def digest(self, settings: Settings) -> str:
        """Digest of what a whole depends on: the same for all of its parts, on every machine.

        That is every field, by the content of its files, and the code of the subclass's module.

        Args:
            settings: of the command that makes the parts.
        """
        given = {name: _content(name, value) for name, value in vars(self).items()}
        code = code_digest(type(self).__module__)
        return fingerprint({"code": code, "settings": settings.model_dump(), **given})


def _content(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        return [sha256(value / part) for part in READ.get(name, ["."])]
    return value.model_dump() if isinstance(value, Settings) else value
