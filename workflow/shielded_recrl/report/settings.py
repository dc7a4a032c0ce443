"""Settings of the report stage."""

from pydantic import Field

from shielded_recrl.settings import Settings


class ReportSettings(Settings):
    """Table, figures and their intervals."""

    ndcg_margin: float = Field(
        0.01, gt=0, description="Equivalence margin within which NDCG@10 counts as unchanged."
    )
