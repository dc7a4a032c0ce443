"""The texts of one shard of an evaluation, where one machine takes too long for all of them.

In: base LM, adapter snapshots, read-out, ranker states, dataset. Out: a JSON document with the texts
of the shard's users, before training and at each snapshot. `rl evaluate` joins those of all shards;
without shards it samples the same texts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.json_parts import write_part
from shielded_recrl.rl.evaluation.base import Triple
from shielded_recrl.rl.evaluation.generation import Text, Texts, generate, groups
from shielded_recrl.rl.evaluation.ranking import Served, check_readout
from shielded_recrl.rl.evaluation.slate import slate_users, top_triples
from shielded_recrl.rl.evaluation.snapshots import check_snapshots, load_snapshots
from shielded_recrl.rl.settings import SamplingSettings, SlateSettings
from shielded_recrl.settings import Settings
from shielded_recrl.shards import Label, require_shard
from shielded_recrl.shield.parts import made_from
from shielded_recrl.shield.serving import Serving, load_readout, load_states
from shielded_recrl.shield.settings import RoleSettings


def main(
    *,
    data: Path,
    ranker: Path,
    base: Path,
    run: Path,
    readout: Path,
    templates: Path,
    out: Path,
    shard: int,
    shards: int,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="")],
    settings: Annotated[SlateSettings, tyro.conf.arg(name="")],
    explanation_tokens: int = 32,
    precision: Precision = "fp32",
    roles_seed: int = 42,
    seed: int = 42,
) -> None:
    """Sample one shard of the texts that an evaluation measures.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        run: folder of the run.
        readout: readout.safetensors.
        templates: folder of the prompt templates.
        out: JSON file to write.
        shard: which one, from 0.
        shards: how many there are: 1, 2, 4 ... 256.
        prompt: prompt lengths.
        roles: how many users are protected and held out.
        sampling: how texts are sampled.
        settings: how much is explained.
        explanation_tokens: longest explanation.
        precision: precision the base is served in.
        roles_seed: seed of roles and slate, shared by all runs.
        seed: seed of this run's text sampling.
    """
    mine = require_shard(shard, shards)
    snapshots = load_snapshots(run / "snapshots.safetensors")
    serving = Serving.load(data, base, templates, prompt, roles, roles_seed)
    states, fitted = load_states(ranker), load_readout(readout)
    served, device = Served(serving, states, fitted), default_device()
    users = slate_users(serving.roles.heldout, settings, roles_seed)
    texts: list[Text] = []
    # A shard without users needs no LM.
    if asked := list(groups(users, settings.items_per_user, explanation_tokens, seed, mine)):
        model = load_base(base, precision, device)
        check_readout(fitted, model, readout)
        model = load_adapter(model, run / "adapter")
        check_snapshots(snapshots, model, run / "snapshots.safetensors")

        def slates(users: np.ndarray) -> list[Triple]:
            with model.disable_adapter():
                scores = served(model, served.rows(users))
            return top_triples(serving, users, scores, settings.items_per_user)

        texts = generate(model, serving, snapshots, slates, asked, sampling)
    owner = texts_made_from(
        data,
        ranker,
        base,
        run,
        readout,
        templates,
        (prompt, roles, sampling, settings),
        (explanation_tokens, precision, roles_seed, seed),
    )
    label = Label(made_from=owner, shard=shard, shards=shards, count=len(users))
    write_part(out, Texts(label=label, device=device.type, texts=texts))
    print(f"{out}: {len(texts)} texts, shard {shard} of {shards}")


def texts_made_from(
    data: Path,
    ranker: Path,
    base: Path,
    run: Path,
    readout: Path,
    templates: Path,
    settings: Sequence[Settings],
    values: Sequence[int | str],
) -> str:
    """Digest of all that the texts depend on; see `main`.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        run: folder of the run.
        readout: readout.safetensors.
        templates: folder of the prompt templates.
        settings: of prompt, roles, sampling and slate.
        values: explanation_tokens, precision, roles_seed and seed.
    """
    others = [ranker, readout, run / "adapter", run / "snapshots.safetensors"]
    return made_from("shielded_recrl.rl.generate", data, base, templates, settings, values, others)
