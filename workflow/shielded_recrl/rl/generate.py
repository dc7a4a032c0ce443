"""The texts of one shard of an evaluation, where one machine takes too long for all of them.

In: base LM, adapter snapshots, read-out, ranker states, dataset. Out: a JSON document with the texts
of the shard's users, before training and at each snapshot. `rl evaluate` joins those of all shards;
without shards it samples the same texts itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.json_parts import write_part
from shielded_recrl.rl.evaluation.base import Triple
from shielded_recrl.rl.evaluation.generation import Text, Texts, generate, groups
from shielded_recrl.rl.evaluation.ranking import Served, check_readout
from shielded_recrl.rl.evaluation.slate import slate_users, top_triples
from shielded_recrl.rl.evaluation.snapshots import check_snapshots, load_snapshots
from shielded_recrl.rl.settings import SamplingSettings, SlateSettings
from shielded_recrl.shards import Label, require_shard
from shielded_recrl.shield.inputs import Inputs
from shielded_recrl.shield.serving import load_readout, load_states
from shielded_recrl.shield.settings import RoleSettings


@dataclass(frozen=True, kw_only=True)
class TextInputs(Inputs):
    """What the texts of an evaluation are made from.

    Attributes:
        ranker: states.safetensors of the ranker.
        run: folder of the run; what `rl evaluate` finds is written there.
        readout: readout.safetensors.
        roles: how many users are protected and held out.
        sampling: how texts are sampled.
        explanation_tokens: longest explanation.
        roles_seed: seed of what all runs share: roles, slate, simulators and bootstrap.
        seed: seed of this run's text sampling.
    """

    ranker: Path
    run: Path
    readout: Path
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")]
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="")]
    explanation_tokens: int = 32
    roles_seed: int = 42


def main(
    *,
    inputs: Annotated[TextInputs, tyro.conf.arg(name="")],
    out: Path,
    shard: int,
    shards: int,
    settings: Annotated[SlateSettings, tyro.conf.arg(name="")],
) -> None:
    """Sample one shard of the texts that an evaluation measures.

    Args:
        inputs: what the texts are made from.
        out: JSON file to write.
        shard: which one, from 0.
        shards: how many there are: 1, 2, 4 ... 256.
        settings: how much is explained.
    """
    mine = require_shard(shard, shards)
    snapshots = load_snapshots(inputs.run / "snapshots.safetensors")
    serving = inputs.serving(inputs.roles, inputs.roles_seed)
    states, fitted = load_states(inputs.ranker), load_readout(inputs.readout)
    served, device = Served(serving, states, fitted), default_device()
    users = slate_users(serving.roles.heldout, settings, inputs.roles_seed)
    texts: list[Text] = []
    tokens, seed = inputs.explanation_tokens, inputs.seed
    # A shard without users needs no LM.
    if asked := list(groups(users, settings.items_per_user, tokens, seed, mine)):
        model = load_base(inputs.base, inputs.precision, device)
        check_readout(fitted, model, inputs.readout)
        model = load_adapter(model, inputs.run / "adapter")
        check_snapshots(snapshots, model, inputs.run / "snapshots.safetensors")

        def slates(users: np.ndarray) -> list[Triple]:
            with model.disable_adapter():
                scores = served(model, served.rows(users))
            return top_triples(serving, users, scores, settings.items_per_user)

        texts = generate(model, serving, snapshots, slates, asked, inputs.sampling)
    label = Label(made_from=inputs.digest(settings), shard=shard, shards=shards, count=len(users))
    write_part(out, Texts(label=label, device=device.type, texts=texts))
    print(f"{out}: {len(texts)} texts, shard {shard} of {shards}")
