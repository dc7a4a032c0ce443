"""The flags of every command that runs a response LM on the prompts of dialogues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from shielded_recrl.dialogue.corpus.dialogues import SCHEMAS
from shielded_recrl.dialogue.response.prompts import ResponsePrompts
from shielded_recrl.dialogue.settings import ResponsePromptSettings
from shielded_recrl.explainer.settings import Precision


@dataclass(frozen=True, kw_only=True)
class ResponseInputs:
    """What responses are written from.

    Attributes:
        data: folder of the prepared dialogues.
        emotion: turns.parquet of `annotate`.
        recommendations: recommendations.parquet of `recommend`.
        base: folder of the base LM.
        prompt: lengths of the prompt.
        precision: precision the base is held in.
        response_tokens: longest response, in tokens.
        seed: seed of all draws.
    """

    data: Path
    emotion: Path
    recommendations: Path
    base: Path
    prompt: Annotated[ResponsePromptSettings, tyro.conf.arg(name="")]
    precision: Precision = "fp32"
    response_tokens: int = 32
    seed: int = 42

    def prompts(self) -> ResponsePrompts:
        """The dialogues, and what asks for responses in them; see `ResponsePrompts.load`."""
        return ResponsePrompts.load(
            self.data, self.emotion, self.recommendations, self.base, self.prompt
        )

    def form(self) -> dict[str, Any]:
        """How responses are asked for and written, whatever they are written from."""
        return {
            **self.prompt.model_dump(),
            **{"precision": self.precision, "response_tokens": self.response_tokens},
        }

    def files(self) -> dict[str, Path]:
        """Every file and folder that is read, by name."""
        return {
            **{name: self.data / f"{name}.parquet" for name in SCHEMAS},
            **{"emotion": self.emotion, "recommendations": self.recommendations},
            "base": self.base,
        }
