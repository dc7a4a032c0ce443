"""Settings of the shield stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shielded_recrl.settings import Settings

Kind = Literal["none", "separate", "activated", "nullspace", "ranker", "random"]
Scope = Literal["all", "last_block"]
Weight = Literal["plain", "score"]


class RoleSettings(Settings):
    """Who is protected, who is held out; everybody else trains."""

    protected_users: int = Field(256, ge=1, description="Users whose prefixes span the bases.")
    heldout_users: int = Field(
        128, ge=1, description="Users kept out of bases, read-out and rollouts."
    )


class EmbedSettings(RoleSettings):
    """Whose prefixes the LM embeds for the read-out, beside those of held-out users."""

    examples: int = Field(
        10_000, ge=1, description="Next-item examples of the read-out fit, at the most."
    )
    validation_users: int = Field(
        10_000, ge=1, description="Users of the validation that chooses gamma, at the most."
    )


class RankingSettings(EmbedSettings):
    """The served ranking: SASRec plus a read-out of the LM."""

    gamma: float | None = Field(
        None, ge=0, description="Weight of the read-out; null chooses it on the validation split."
    )
    gammas: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0),
        min_length=1,
        description="Values whose validation NDCG@10 is reported; the largest bounds the choice.",
    )
    weight_decay: float = Field(
        10.0,
        ge=0,
        description="L2 penalty of the read-out on standardised states, beside the sum of losses.",
    )
    epochs: int = Field(15, ge=1, description="Epochs of the read-out fit.")


class BasisSettings(Settings):
    """Which inputs of the protected prefixes a basis spans."""

    energy: float = Field(
        0.9999, gt=0, le=1, description="Share of protected input energy the bases capture."
    )
    rank: int | None = Field(
        None, ge=1, description="Directions of each basis; null takes as many as `energy` asks for."
    )
    weight: Weight = Field(
        "plain", description="Energy of an input, plain or weighted by what it does to the scores."
    )

    @property
    def moments(self) -> MomentSettings:
        """The second moments that such bases are made of; bases that differ may share them."""
        return MomentSettings(weight=self.weight, complete=self.rank is None and self.energy >= 1)


class MomentSettings(Settings):
    """Which second moments of the protected prefixes."""

    weight: Weight = Field("plain", description="Energy of an input; see `BasisSettings`.")
    complete: bool = Field(False, description="Precise enough for the complete span.")


class ShieldSettings(BasisSettings):
    """What keeps explanation training from moving the ranking."""

    kind: Kind = Field(
        "nullspace",
        description="none: nothing; separate: ranking with the adapter off; activated: the adapter "
        "acts after the prefix only; nullspace: lora_A orthogonal to the protected inputs; "
        "ranker: lora_B orthogonal to what the ranking reads; random: nullspace with random bases.",
    )
    scope: Scope = Field(
        "last_block", description="Decoder blocks that are adapted: all, or the last."
    )
    penalty: float = Field(
        3000.0, ge=0, description="Weight of the score-matching penalty on protected prefixes."
    )
