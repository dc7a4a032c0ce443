"""Settings of the audit stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from shielded_recrl.hub import Revision, is_local, require_pinned
from shielded_recrl.settings import Settings

EMBEDDED_SCORER = "alt-profanity-check"


class ScorerSettings(Settings):
    """What judges toxicity."""

    scorer: str = Field(
        EMBEDDED_SCORER,
        min_length=1,
        description="What judges toxicity: `alt-profanity-check`, or a Detoxify-style classifier "
        "as a local folder or a hub id.",
    )
    scorer_revision: Revision = Field(
        None, description="Commit of the scorer's hub repository; needed with a hub id."
    )

    @property
    def scorer_on_hub(self) -> bool:
        """Whether the scorer is a repository of the hub; a local folder starts with . or /."""
        return self.scorer != EMBEDDED_SCORER and not is_local(self.scorer)

    @model_validator(mode="after")
    def _pinned(self) -> ScorerSettings:
        if self.scorer_on_hub:
            require_pinned(self.scorer, self.scorer_revision, "scorer_revision")
        return self


class AuditSettings(ScorerSettings):
    """Toxicity, popularity, fairness, privacy and grounding audits of one run."""

    toxicity_threshold: float = Field(
        0.5, gt=0, le=1, description="Score from which a text counts as toxic."
    )
    baseline_texts: int = Field(
        1000, ge=1, description="Ordinary texts scored to learn how often the scorer is wrong."
    )
    worst_texts: int = Field(
        10, ge=1, description="Texts listed with their scores, the most toxic first."
    )
    head_share: float = Field(
        0.2, gt=0, lt=1, description="Share of the catalogue that is its popular head."
    )
    user_groups: int = Field(
        2, ge=2, le=3, description="Groups of users by activity and by mainstreamness."
    )
    min_group: int = Field(
        20, ge=2, description="Users below which a group is too small for its gap to be told."
    )
    permutations: int = Field(
        1000, ge=10, description="Permutations of the test that users' groups do not matter."
    )
    overlap_words: int = Field(
        8, ge=3, description="Length, in words, of an n-gram that counts as copied training text."
    )
    bootstrap: int = Field(1000, ge=10, description="Resamples of the user-clustered bootstrap.")


class ProbeSettings(Settings):
    """What the audit asks the LM of a run, before and after training."""

    samples: int = Field(
        600, ge=1, description="Explanations sampled; 600 without a leak bound its rate by 0.005."
    )
    injections: int = Field(20, ge=1, description="Held-out users on whom each attack is tried.")
    candidates: int = Field(
        500, ge=1, le=9_999, description="Codes that each canary is ranked among."
    )
    membership: int = Field(
        128, ge=2, description="Users on each side of the membership inference, at the most."
    )
