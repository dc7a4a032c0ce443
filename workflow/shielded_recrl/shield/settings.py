"""Settings of the shield stage."""

from typing import Literal

from pydantic import Field

from shielded_recrl.settings import Settings


class RoleSettings(Settings):
    """Who is protected, who is held out; everybody else trains."""

    protected_users: int = Field(128, ge=1, description="Users whose prefixes span the bases.")
    heldout_users: int = Field(
        128, ge=1, description="Users kept out of bases, read-out and rollouts."
    )


class RankingSettings(RoleSettings):
    """The served ranking: SASRec plus a read-out of the LM."""

    gamma: float | None = Field(
        None, ge=0, description="Weight of the read-out; null chooses it on the validation split."
    )
    gammas: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.5, 1.0, 2.0), description="Grid searched when gamma is null."
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of the read-out fit.")
    epochs: int = Field(40, ge=1, description="Epochs of the read-out fit.")


class ShieldSettings(Settings):
    """What keeps explanation training from moving the ranking."""

    kind: Literal["none", "separate", "nullspace"] = Field(
        "nullspace",
        description="none: nothing; separate: ranking with the adapter off; "
        "nullspace: lora_A orthogonal to the protected inputs.",
    )
    energy: float = Field(
        0.999, gt=0, le=1, description="Share of protected input energy the bases capture."
    )
