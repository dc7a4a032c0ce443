"""Settings of the report stage."""

from pydantic import Field

from shielded_recrl.settings import Settings


class TableSettings(Settings):
    """Table and figures."""

    ndcg_margin: float = Field(
        0.01, gt=0, description="Equivalence margin within which NDCG@10 counts as unchanged."
    )


class ReportSettings(TableSettings):
    """Table, figures and success criteria."""

    claim_margin: float = Field(
        0.05, gt=0, description="Fall of claim precision below which texts count as no less true."
    )
