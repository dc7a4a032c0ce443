"""From the shield settings of a variant to the object that acts on its training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import RankingHead, Serving
from shielded_recrl.shield.settings import ShieldSettings


def load_shield(
    settings: ShieldSettings,
    model: nn.Module,
    serving: Serving,
    head: RankingHead | None,
    bases: Path | None,
    seed: int,
) -> RankingShield | None:
    """The shield of a variant; None where nothing acts on the optimizer.

    Args:
        settings: of the shield.
        model: the PEFT model it will be attached to.
        serving: whose protected users' prefixes the penalty matches.
        head: the served ranking, read by the kind ranker and by a penalty.
        bases: bases.safetensors, read by the kinds nullspace and random.
        seed: of random bases and of the penalty's order.

    Raises:
        UserError: a file that the shield needs is not given, or is damaged.
    """
    constrained = settings.kind in ("nullspace", "random")
    if constrained and bases is None:
        raise UserError(
            f"--bases: the shield {settings.kind} needs them; collect them with `shield bases`"
        )
    if (settings.kind == "ranker" or settings.penalty > 0) and head is None:
        raise UserError(
            "--readout: the shield ranker and a penalty read it; fit it with `shield readout`"
        )
    prompts = [serving.prefix(user) for user in serving.roles.protected]
    options = {"penalty": settings.penalty, "seed": seed, "scope": settings.scope}
    if settings.kind == "ranker":
        return RankingShield.fit(
            model,
            prompts,
            head,
            kind="ranker",
            energy=settings.energy,
            rank=settings.rank,
            **options,
        )
    if constrained:
        found = Bases.load(bases)
        if settings.kind == "random":
            found = found.randomised(seed)
        return RankingShield(found, prompts, head, kind=settings.kind, **options)
    if settings.penalty > 0:
        return RankingShield(None, prompts, head, kind=settings.kind, **options)
    return None
