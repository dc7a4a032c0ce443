"""Collect a shard of the second moments that bases are made of.

In: base LM, protected users' serving prefixes. Out: a folder (see `parts`) with what the moment of
each group of modules holds of the shard's prefixes, written a few decoder blocks at a time.

Every shard reads the prefixes of all protected users, which costs little beside the LM: their
lengths decide how moments are kept, and the longest tell which modules share an input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import blocks, causal_lm, frozen
from shielded_recrl.shards import WHOLE, Label, Shard, items, require_shard
from shielded_recrl.shield.digests import precision_of, prompts_sha256, weights_sha256
from shielded_recrl.shield.inputs import Inputs
from shielded_recrl.shield.moments import CHUNK, Head, Moment, Prompts, second_moments
from shielded_recrl.shield.parts import save_part
from shielded_recrl.shield.serving import RankingHead, Serving, load_readout, load_states
from shielded_recrl.shield.settings import MomentSettings, RoleSettings, Scope, Weight


@dataclass(frozen=True, kw_only=True)
class MomentInputs(Inputs):
    """What the moments are made from.

    Attributes:
        roles: how many users are protected and held out.
        readout: readout.safetensors, needed by the score weight.
        ranker: states.safetensors of the ranker, needed by the score weight.
        seed: seed of the draw of protected users and of the probes.
    """

    roles: Annotated[RoleSettings, tyro.conf.arg(name="")]
    readout: Path | None = None
    ranker: Path | None = None


def main(
    *,
    inputs: Annotated[MomentInputs, tyro.conf.arg(name="")],
    out: Path,
    shard: int,
    shards: int,
    settings: Annotated[MomentSettings, tyro.conf.arg(name="")],
) -> None:
    """Collect a shard of the second moments of the protected prefixes.

    Args:
        inputs: what the moments are made from.
        out: folder to write.
        shard: which shard, from 0.
        shards: how many there are, a power of two.
        settings: which moments.
    """
    from shielded_recrl.explainer.base import default_device, load_base

    own, device = require_shard(shard, shards), default_device()
    head = score_head(settings.weight, inputs.readout, inputs.ranker)
    prompts = protected_prefixes(inputs.serving(inputs.roles, inputs.seed))
    mine, facts = items(len(prompts), CHUNK, own), {}

    def collected() -> Iterator[dict[str, Tensor]]:
        model = load_base(inputs.base, inputs.precision, device)
        facts["about"] = facts_of(model, prompts, settings.weight)
        facts["groups"], facts["inputs"] = {}, []
        for moments, groups in moments_by_blocks(
            model,
            prompts,
            weight=settings.weight,
            complete=settings.complete,
            head=head,
            seed=inputs.seed,
            shard=own,
        ):
            facts["groups"] |= groups
            facts["inputs"] += [(group, one.width, one.count) for group, one in moments.items()]
            yield {group: one.held() for group, one in moments.items()}

    label = Label(
        made_from=inputs.digest(settings),
        shard=shard,
        shards=shards,
        count=len(prompts),
    )
    # A shard without prefixes needs no LM.
    save_part(out, label, device, collected() if mine else (), facts)
    print(f"{out}: {len(mine)} of {len(prompts)} protected prefixes")


def protected_prefixes(serving: Serving) -> list[tuple[int, ...]]:
    """Serving prefixes of the protected users, by user id."""
    return [serving.prefix(user) for user in serving.roles.protected]


def score_head(weight: Weight, readout: Path | None, ranker: Path | None) -> Head | None:
    """The scores that weigh the inputs; None for the plain weight.

    Raises:
        UserError: the score weight without a read-out or a ranker.
    """
    if weight == "plain":
        return None
    if readout is None or ranker is None:
        raise UserError("bases: weight score needs --readout and --ranker")
    # Without gamma: a scale changes no basis, and gamma may be 0.
    matrix = load_readout(readout).weight
    return RankingHead(
        torch.from_numpy(load_states(ranker).items[1:]), torch.from_numpy(matrix), 1.0
    )


def moments_by_blocks(
    model: nn.Module,
    prompts: Prompts,
    *,
    weight: Weight,
    complete: bool,
    scope: Scope = "all",
    head: Head | None = None,
    seed: int = 0,
    batch_size: int = 32,
    layers_at_a_time: int = 4,
    probes: int = 4,
    shard: Shard = WHOLE,
) -> Iterator[tuple[dict[str, Moment], dict[str, str]]]:
    """Second moments of the inputs of every linear layer, some decoder blocks at a time.

    Passes over the prompts once for every `layers_at_a_time` blocks, so that the device
    holds no more than their second moments; partial sums of them wait in main memory.

    Args:
        model: causal LM in any precision, or a PEFT model, whose adapter is off meanwhile.
        prompts: token ids, those of all shards.
        weight, scope, head, seed, batch_size, layers_at_a_time, probes: see `bases.collect_bases`.
        complete: whether the complete span is wanted.
        shard: whose prompts are added.

    Yields:
        moments: group -> moment.
        groups: module name in the base LM -> group.
    """
    count = len(blocks(model))
    first = count - 1 if scope == "last_block" else 0
    adapter_off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with frozen(model), adapter_off:
        for start in range(first, count, layers_at_a_time):
            yield second_moments(
                model,
                prompts,
                range(start, min(start + layers_at_a_time, count)),
                head=head if weight == "score" else None,
                seed=seed,
                batch_size=batch_size,
                probes=probes,
                complete=complete,
                shard=shard,
            )


def facts_of(
    model: nn.Module, prompts: Prompts, weight: Weight, scope: Scope = "all"
) -> dict[str, Any]:
    """What moments and bases were collected from; see `bases.Bases`."""
    return {
        "base_sha256": weights_sha256(model),
        "precision": precision_of(causal_lm(model)),
        "prompts_sha256": prompts_sha256(prompts),
        "tokens": sum(map(len, prompts)),
        "weight": weight,
        "scope": scope,
    }
