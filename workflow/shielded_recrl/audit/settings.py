"""Settings of the audit stage."""

from pydantic import Field

from shielded_recrl.settings import Settings


class AuditSettings(Settings):
    """Toxicity, popularity and privacy audits of one run."""

    toxicity_threshold: float = Field(
        0.5, gt=0, le=1, description="Score from which a text counts as toxic."
    )
    head_share: float = Field(
        0.2, gt=0, lt=1, description="Share of the catalogue that is its popular head."
    )
    overlap_words: int = Field(
        8, ge=3, description="Length, in words, of an n-gram that counts as copied training text."
    )
    bootstrap: int = Field(1000, ge=10, description="Resamples of the user-clustered bootstrap.")
