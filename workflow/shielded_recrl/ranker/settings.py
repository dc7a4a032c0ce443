"""Settings of the ranker stage."""

from pydantic import Field, model_validator

from shielded_recrl.settings import Settings


class RankerSettings(Settings):
    """SASRec (Kang and McAuley 2018) trained with full-catalogue cross-entropy."""

    dim: int = Field(64, ge=2, description="Width of item embeddings and user states.")
    blocks: int = Field(1, ge=1, description="Transformer blocks.")
    heads: int = Field(1, ge=1, description="Attention heads of a block; divides dim.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of embeddings and blocks.")
    max_length: int = Field(50, ge=2, description="Most recent interactions the ranker reads.")
    batch_size: int = Field(64, ge=1, description="Users in a batch.")
    learning_rate: float = Field(4e-3, gt=0, description="Adam learning rate.")
    max_epochs: int = Field(60, ge=1, description="Epochs at the most.")
    patience: int = Field(
        3, ge=1, description="Evaluations without a better NDCG@10 before stopping."
    )
    evaluate_every: int = Field(2, ge=1, description="Epochs between two validations.")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "RankerSettings":
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim; got heads {self.heads} and dim {self.dim}")
        return self
