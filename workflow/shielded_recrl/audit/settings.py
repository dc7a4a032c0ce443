"""Settings of the audit stage."""

from pydantic import Field

from shielded_recrl.settings import Settings


class AuditSettings(Settings):
    """Toxicity, popularity and privacy audits of one run."""

    overlap_words: int = Field(
        8, ge=3, description="Length, in words, of an n-gram that counts as copied training text."
    )
