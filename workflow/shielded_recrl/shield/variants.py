"""From the shield settings of a variant to the object that acts on its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.digests import prompts_sha256
from shielded_recrl.shield.ranking_shield import RankingShield, ranker_bases
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
        head: the served ranking, read by the kind ranker and by a penalty. Where its gamma is 0 the
            ranking does not read the LM, and there is nothing for a penalty to match.
        bases: bases.safetensors, read by the kinds nullspace and random.
        seed: of random bases and of the penalty's order.

    Raises:
        UserError: a file that the shield needs is not given or is damaged, or the bases were
            collected from other prompts or with other settings.
    """
    if settings.kind in ("separate", "activated"):
        return None  # the ranking cannot move, so a penalty has nothing to match either
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
    penalty = settings.penalty if head is not None and head.gamma > 0 else 0.0
    found = None
    if constrained:
        found = Bases.load(bases)
        _require_same(found, settings, prompts, bases)
        if settings.kind == "random":
            found = found.randomised(seed)
    elif settings.kind == "ranker":
        # Without gamma: a scale changes no row space, and gamma may be 0.
        found = ranker_bases(
            model,
            replace(head, gamma=1.0),
            energy=settings.energy,
            rank=settings.rank,
            scope=settings.scope,
        )
    elif penalty == 0:
        return None
    return RankingShield(
        found,
        prompts,
        head,
        side="output" if settings.kind == "ranker" else "input",
        scope=settings.scope,
        penalty=penalty,
        seed=seed,
        kind=settings.kind,
    )


def _require_same(
    bases: Bases, settings: ShieldSettings, prompts: Sequence[Sequence[int]], path: Path
) -> None:
    """Refuse bases of other prompts, or of other settings than asked for."""
    if bases.about.get("prompts_sha256") != prompts_sha256(prompts):
        raise UserError(
            f"{path}: its bases are of other prompts than these protected users'; collect them "
            "again with `shield bases` and the same data, templates, roles and seed"
        )
    # A rank overrides the energy.
    for name in ("weight", "rank", *["energy"] * (settings.rank is None)):
        found, asked = bases.about.get(name), getattr(settings, name)
        if found != asked:
            raise UserError(
                f"{path}: its bases have {name} {found}, but shield.{name} is {asked}; collect "
                "them again with `shield bases`"
            )
