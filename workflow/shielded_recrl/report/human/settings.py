"""Settings of the human study."""

from typing import Literal

from pydantic import Field

from shielded_recrl.settings import Settings

Compare = Literal["variants", "steps"]


class SheetSettings(Settings):
    """Which pairs go on the sheet."""

    compare: Compare = Field(
        "variants",
        description="variants: texts after training of every two variants of a dataset; "
        "steps: texts before and after training of one variant.",
    )
    pairs: int = Field(100, ge=1, description="Most pairs to show, without repeats and checks.")
    repeats: float = Field(
        0.1, ge=0, le=1, description="Share of the pairs shown again with their sides swapped."
    )
    checks: float = Field(
        0.05, ge=0, le=1, description="Attention checks, as a share of the pairs; rounded up."
    )
    question: str = Field(
        "Which explanation would help you more to decide whether to try the recommended item?",
        min_length=1,
        description="What the rater is asked about each pair.",
    )


class ScoreSettings(Settings):
    """How filled sheets are judged."""

    attention_threshold: float = Field(
        0.8, ge=0, le=1, description="Share of attention checks a rater must pass to be counted."
    )
    missing: Literal["refuse", "skip"] = Field(
        "refuse",
        description="refuse: a row without an answer stops the command; skip: it is left out "
        "and named in the scores.",
    )
    bootstrap: int = Field(1000, ge=10, description="Resamples of the user-clustered bootstrap.")
