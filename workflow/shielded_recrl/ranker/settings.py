"""Settings of the ranker stage."""

from typing import Literal

from pydantic import Field, model_validator

from shielded_recrl.settings import Settings


class RankerSettings(Settings):
    """SASRec (Kang and McAuley 2018), its loss and its training."""

    dim: int = Field(64, ge=2, description="Width of item embeddings and user states.")
    blocks: int = Field(1, ge=1, description="Transformer blocks.")
    heads: int = Field(1, ge=1, description="Attention heads of a block; divides dim.")
    feedforward: int = Field(
        4, ge=1, description="Width of a block's position-wise network, in multiples of dim."
    )
    dropout: float = Field(0.5, ge=0, le=0.99, description="Dropout of embeddings and blocks.")
    max_length: int = Field(50, ge=2, description="Most recent interactions the ranker reads.")
    loss: Literal["ce", "sampled_softmax", "gbce", "bce"] = Field(
        "ce",
        description="Full softmax, sampled softmax with logQ correction, gSASRec's gBCE, or BCE.",
    )
    negatives: int = Field(
        256, ge=1, description="Negatives that a batch shares (sampled_softmax, gbce)."
    )
    calibration: float = Field(0.75, ge=0, le=1, description="Calibration t of gbce.")
    batch_size: int = Field(64, ge=1, description="Sequences in a batch.")
    learning_rate: float = Field(4e-3, gt=0, description="Adam learning rate.")
    average_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay of the average of the weights; 0 keeps the last."
    )
    max_epochs: int = Field(60, ge=1, description="Epochs at the most.")
    patience: int = Field(
        3, ge=1, description="Evaluations without a better NDCG@10 before stopping."
    )
    evaluate_every: int = Field(2, ge=1, description="Epochs between two validations.")
    validation_users: int = Field(
        10_000, ge=1, description="Users of the validation that stops training, at the most."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision of training; bf16 is autocast, weights stay fp32."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile (for GPUs).")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "RankerSettings":
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim; got heads {self.heads} and dim {self.dim}")
        return self
