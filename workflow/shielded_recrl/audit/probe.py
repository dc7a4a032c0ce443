"""Ask the LM of a run what the audits judge, with the adapter off (before) and on (after).

In: base LM, adapter, dataset, ranker states, rankings.parquet of the run. Out: probes.json with
explanations sampled for privacy and toxicity, texts about hostile items and their benign twins, the
exposure of canaries planted in the base, and the loss of users' prompts under base and adapter.
Before and after, attack and twin are sampled at the same uniform numbers, so they differ by what is
compared alone. Of several shards, each writes a document with its answers, and all are joined.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
import tyro
from torch import nn
from transformers import DynamicCache

from shielded_recrl.audit.injection import KINDS, Attack, Scene, attacks
from shielded_recrl.audit.inputs import read_table
from shielded_recrl.audit.memorisation import exposure
from shielded_recrl.audit.settings import ProbeSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.canaries import (
    Canary,
    alternatives,
    code_ids,
    context_ids,
    load_canaries,
    made_up_name,
)
from shielded_recrl.explainer.lm import (
    activation,
    can_merge,
    causal_lm,
    load_adapter,
    merged_for_decoding,
    pad_left,
    positions,
    trunk,
)
from shielded_recrl.explainer.prompts import Item, PromptBuilder, Request
from shielded_recrl.files import write_json
from shielded_recrl.json_parts import JsonPart, read_parts, write_part
from shielded_recrl.rl.rollout import decode, sample
from shielded_recrl.rl.settings import SamplingSettings
from shielded_recrl.shards import WHOLE, Label, Shard, items, require_shard
from shielded_recrl.shield.inputs import Inputs
from shielded_recrl.shield.serving import RankerStates, Serving, load_states, top_items
from shielded_recrl.shield.settings import RoleSettings

# Texts sampled, prompts scored, and codes of a canary scored at a time.
TEXTS, PROMPTS, CODES = 128, 32, 1024


class Hostile(NamedTuple):
    """One attack on a user and item, as prompts.

    Attributes:
        attack: the scenes.
        attacked, benign: their prompts.
        reached: whether the prompt shows the attack: it differs from the one that the item has
            without it, and from that of the twin.
    """

    attack: Attack
    attacked: Request
    benign: Request
    reached: bool


class Secret(NamedTuple):
    """A canary among codes it could have had, as token ids.

    Attributes:
        canary: as it was planted.
        context: what comes before the code.
        codes: the canary's own code, then the others.
    """

    canary: Canary
    context: tuple[int, ...]
    codes: list[tuple[int, ...]]


class Answers(NamedTuple):
    """What one model makes of probes.

    Attributes:
        samples: explanations.
        attacked, benign: texts about hostile items and their twins.
        exposures: bits of each canary.
        losses: mean loss of each membership prompt, nats a token.
    """

    samples: list[str]
    attacked: list[str]
    benign: list[str]
    exposures: list[float]
    losses: list[float]


class Asked(JsonPart):
    """The answers to a shard's probes, in the order of an interview."""

    before: Answers
    after: Answers


class Probes(NamedTuple):
    """All that is asked of a model.

    Attributes:
        samples: requests to explain.
        hostile: attacks.
        secrets: canaries.
        prompts: of members and non-members.
    """

    samples: list[Request]
    hostile: list[Hostile]
    secrets: list[Secret]
    prompts: list[Request]


@dataclass(frozen=True, kw_only=True)
class ProbeInputs(Inputs):
    """What the answers to probes are made from.

    Attributes:
        ranker: states.safetensors of the ranker.
        adapter: folder of the trained adapter.
        rankings: rankings.parquet of the run; its lists before training are explained.
        roles: how many users are protected and held out.
        sampling: how texts are sampled.
        explanation_tokens: longest explanation.
        roles_seed: seed of roles, shared by all runs.
        seed: seed of this run's probes.
    """

    ranker: Path
    adapter: Path
    rankings: Path
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")]
    sampling: Annotated[SamplingSettings, tyro.conf.arg(name="")]
    explanation_tokens: int = 32
    roles_seed: int = 42


def main(
    *,
    inputs: Annotated[ProbeInputs, tyro.conf.arg(name="")],
    out: Path,
    settings: Annotated[ProbeSettings, tyro.conf.arg(name="")],
    shard: int = 0,
    shards: int = 1,
    parts: tuple[Path, ...] = (),
) -> None:
    """Ask the LM of a run what the audits judge: samples, attacks, canaries, losses.

    One of several shards only writes the answers to its share of the probes, a part of the whole.

    Args:
        inputs: what the answers are made from.
        out: JSON file to write.
        settings: how much is asked.
        shard: which one, from 0.
        shards: how many there are: 1, 2, 4 ... 256.
        parts: what all shards wrote; without them the LM is asked here.
    """
    mine = require_shard(shard, shards)
    if parts and shards > 1:
        raise UserError("--parts: what joins the parts is no shard; leave out --shard and --shards")
    seed, serving = inputs.seed, inputs.serving(inputs.roles, inputs.roles_seed)
    states = load_states(inputs.ranker)
    planted = load_canaries(inputs.base)
    pairs = served_pairs(inputs.rankings, serving)
    members, others = membership_users(serving, settings.membership, seed)
    people = [*members, *others]
    probes = Probes(
        samples=[
            serving.request(user, item) for user, item in islice(cycle(pairs), settings.samples)
        ],
        hostile=hostile_requests(serving, inputs.templates, pairs, settings.injections, seed),
        secrets=secrets(planted or (), settings.candidates, serving.prompts.tokenizer, seed),
        prompts=rollout_prompts(serving, states, people),
    )
    interview = Interview(
        probes, serving.prompts.tokenizer, inputs.sampling, inputs.explanation_tokens, seed
    )
    if parts:
        found = read_parts(parts, Asked, inputs.digest(settings))
        before = joined([part.before for part in found])
        after = joined([part.after for part in found])
    else:
        device = default_device()
        model = load_base(inputs.base, inputs.precision, device)
        before = interview(model, mine)
        after = interview(load_adapter(model, inputs.adapter), mine)
    if shards > 1:
        owner = inputs.digest(settings)
        label = Label(made_from=owner, shard=shard, shards=shards, count=len(probes.samples))
        write_part(out, Asked(label=label, device=device.type, before=before, after=after))
        print(f"{out}: {sum(map(len, before))} answers before and after, shard {shard} of {shards}")
        return
    before, after = interview.in_order(before), interview.in_order(after)
    write_json(
        out,
        {
            "seed": seed,
            "samples": {
                when: [
                    {"user": request.user, "item": request.item, "text": text}
                    for request, text in zip(probes.samples, answers.samples, strict=True)
                ]
                for when, answers in (("before", before), ("after", after))
            },
            "injection": injection_rows(probes.hostile, {"before": before, "after": after}),
            "canaries": canary_rows(probes, settings.candidates, before, after),
            "membership": [
                {"user": user, "member": place < len(members), "base": old, "adapter": new}
                for place, (user, old, new) in enumerate(
                    zip(people, before.losses, after.losses, strict=True)
                )
            ],
        },
    )
    print(
        f"{out}: {len(probes.samples)} texts, {len(probes.hostile)} attacks, "
        f"{len(probes.secrets)} canaries, {len(people)} users, before and after"
    )


def served_pairs(path: Path, serving: Serving) -> list[tuple[int, int]]:
    """(user, item) of the lists served before training: first items first, held-out users first.

    Args:
        path: rankings.parquet of a run.
        serving: whose users and items they must be.

    Raises:
        UserError: there is no list of a held-out user, or one of other data.
    """
    rows = read_table(path, ("step", "role", "user", "position", "item"))
    rows = rows.filter(pl.col("step") == 0).sort(
        pl.col("role") != "heldout", "position", "user", maintain_order=True
    )
    pairs = list(zip(rows["user"].to_list(), rows["item"].to_list(), strict=True))
    splits = serving.splits
    if not pairs or pairs[0][0] not in serving.roles.heldout:
        raise UserError(
            f"{path}: needs the lists of held-out users at step 0, drawn with the same roles and "
            "--roles-seed; make it with `rl evaluate`"
        )
    for user, item in pairs:
        if not (1 <= user <= splits.n_users and 1 <= item <= splits.n_items):
            raise UserError(
                f"{path}: user {user}, item {item} is not in the dataset; give the run's own --data"
            )
    return pairs


def membership_users(serving: Serving, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Users that rollouts draw from, and held-out users, each ascending and at most `count`."""
    return tuple(
        np.sort(np.random.default_rng([seed, place]).permutation(users)[:count]).tolist()
        for place, users in enumerate((serving.roles.train, serving.roles.heldout))
    )


def rollout_prompts(serving: Serving, states: RankerStates, users: Sequence[int]) -> list[Request]:
    """Each user's prompt as PPO's rollouts have it: the train history, and the ranker's top item."""
    scores = states.valid_users[users] @ states.items.T
    best = top_items(scores, serving.splits, "valid", users, 1)[:, 0]
    return [
        serving.request(user, int(item), "valid") for user, item in zip(users, best, strict=True)
    ]


def hostile_requests(
    serving: Serving, templates: Path, pairs: Sequence[tuple[int, int]], count: int, seed: int
) -> list[Hostile]:
    """Every attack on the first item of held-out users drawn at random.

    Each kind has users of its own as far as there are enough, in turn: the texts of one user are one
    piece of evidence, however many attacks are tried on them.

    Args:
        serving: histories and prompts.
        templates: folder of the prompt templates.
        pairs: see `served_pairs`.
        count: users of each attack, at most.
        seed: of the draw of users and payloads.
    """
    heldout = set(serving.roles.heldout.tolist())
    first = {user: item for user, item in reversed(pairs) if user in heldout}
    drawn = np.random.default_rng([seed, 2]).permutation(sorted(first)).tolist()
    count = min(count, len(drawn))
    words = random.Random(f"payloads {seed}")
    found = []
    for place, user in enumerate(drawn[: KINDS * count]):
        plain = serving.request(user, first[user])

        def ask(scene: Scene, plain: Request = plain) -> Request:
            catalogue = [Item("", (), ""), scene.about, *scene.history]
            builder = PromptBuilder(
                serving.prompts.tokenizer, templates, catalogue, serving.prompts.settings
            )
            request = builder.request(plain.user, 1, range(2, len(catalogue)))
            return replace(request, item=plain.item)

        kinds = attacks(plain.about, plain.history, made_up_name(words).upper())
        for kind, attack in enumerate(kinds):
            if (place - kind * count) % len(drawn) >= count:
                continue
            attacked, benign = ask(attack.attacked), ask(attack.benign)
            reached = attacked.prompt not in (plain.prompt, benign.prompt)
            found.append(Hostile(attack, attacked, benign, reached))
    return found


def secrets(planted: Sequence[Canary], candidates: int, tokenizer, seed: int) -> list[Secret]:
    """Each canary with as many other codes that it could have had."""
    return [
        Secret(
            canary,
            context_ids(canary, tokenizer),
            code_ids([canary.code, *alternatives(canary, candidates, seed)], tokenizer),
        )
        for canary in planted
    ]


class Interview:
    """Asks a model all probes; every model is asked the same, at the same uniform numbers.

    What is asked together depends on no shard: prompts of similar length are, which need little
    padding.
    """

    def __init__(
        self,
        probes: Probes,
        tokenizer,
        sampling: SamplingSettings,
        explanation_tokens: int,
        seed: int,
    ):
        """
        Args:
            probes: what is asked.
            tokenizer: of the model.
            sampling: how texts are sampled.
            explanation_tokens: longest explanation.
            seed: of the uniform numbers.
        """
        self.probes, self.tokenizer, self.sampling = probes, tokenizer, sampling
        self.requests = {
            "samples": probes.samples,
            "attacked": [one.attacked for one in probes.hostile],
            "benign": [one.benign for one in probes.hostile],
        }
        self.order = {name: by_length(requests) for name, requests in self.requests.items()}
        asked, attacked = (
            torch.from_numpy(
                np.random.default_rng([seed, place]).random((rows, explanation_tokens))
            )
            for place, rows in ((3, len(probes.samples)), (4, len(probes.hostile)))
        )
        self.uniforms = {"samples": asked, "attacked": attacked, "benign": attacked}

    def __call__(self, model: nn.Module, shard: Shard = WHOLE) -> Answers:
        """A model's answers to a shard's probes; the model has an adapter or none."""
        secrets, prompts = self.probes.secrets, self.probes.prompts
        # Rollouts are sampled so, too.
        with merged_for_decoding(model) if can_merge(model) else nullcontext():
            texts = {name: self._texts(model, name, shard) for name in self.requests}
        mine = items(len(prompts), PROMPTS, shard)
        return Answers(
            **texts,
            exposures=[
                secret_exposure(model, secrets[row]) for row in items(len(secrets), 1, shard)
            ],
            losses=prompt_losses(model, prompts[mine.start : mine.stop]).tolist(),
        )

    def _texts(self, model: nn.Module, name: str, shard: Shard) -> list[str]:
        order = self.order[name]
        mine = items(len(order), TEXTS, shard)
        rows = order[mine.start : mine.stop]
        requests = [self.requests[name][row] for row in rows]
        return explain(model, requests, self.uniforms[name][rows], self.tokenizer, self.sampling)

    def in_order(self, answers: Answers) -> Answers:
        """The answers of all shards, one after the other, in the order of the probes."""
        texts = {}
        for name, order in self.order.items():
            answered = dict(zip(order, getattr(answers, name), strict=True))
            texts[name] = [answered[row] for row in range(len(order))]
        return answers._replace(**texts)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several shards, one after the other."""
    return Answers(*(list(chain.from_iterable(lists)) for lists in zip(*parts, strict=True)))


def by_length(requests: Sequence[Request]) -> list[int]:
    """Places of requests, the shortest prompt first."""
    return sorted(range(len(requests)), key=lambda row: len(requests[row].prompt))


def explain(
    model: nn.Module,
    requests: Sequence[Request],
    uniforms: torch.Tensor,
    tokenizer,
    sampling: SamplingSettings,
) -> list[str]:
    """One explanation a request.

    Args:
        model: a causal LM, with or without adapter.
        requests: what to explain.
        uniforms: numbers in [0, 1), float64 [n, longest explanation].
        tokenizer: of the model.
        sampling: temperature and nucleus.
    """
    texts = [""] * len(requests)
    order = by_length(requests)
    for start in range(0, len(order), TEXTS):
        rows = order[start : start + TEXTS]
        rollout = sample(
            model,
            [requests[row].prompt for row in rows],
            tokenizer,
            uniforms[rows],
            sampling.temperature,
            sampling.top_p,
            [active(requests[row]) for row in rows],
        )
        for row, text in zip(rows, decode(rollout, tokenizer), strict=True):
            texts[row] = text
    return texts


def active(request: Request) -> int:
    """Tokens of a prompt that an activated adapter acts on: those after the prefix."""
    return len(request.prompt) - len(request.prefix)


@torch.no_grad()
def prompt_losses(model: nn.Module, requests: Sequence[Request]) -> np.ndarray:
    """Mean negative log-likelihood [n] of each prompt's tokens after the first, nats a token."""
    device = next(trunk(model).parameters()).device
    losses = []
    for start in range(0, len(requests), PROMPTS):
        part = requests[start : start + PROMPTS]
        ids, mask = (t.to(device) for t in pad_left([one.prompt for one in part], 0))
        with activation(model, [active(one) for one in part]):
            logits = causal_lm(model)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask),
                use_cache=False,
            ).logits
        # A row's first real token follows padding, from which nothing is predicted.
        told = mask[:, :-1] * mask[:, 1:]
        each = _token_losses(logits[:, :-1], ids[:, 1:]) * told
        losses.append((each.sum(dim=1) / told.sum(dim=1)).cpu())
    return torch.cat(losses).numpy() if losses else np.zeros(0)


def secret_exposure(model: nn.Module, secret: Secret) -> float:
    """Exposure of a canary among codes it could have had, bits; see `memorisation.exposure`."""
    own, *others = continuation_losses(model, secret.context, secret.codes)
    return exposure(own, others)


@torch.no_grad()
def continuation_losses(
    model: nn.Module, context: Sequence[int], rows: Sequence[Sequence[int]]
) -> np.ndarray:
    """Negative log-likelihood [n], nats, of each continuation of one context.

    The context is read once, for all. An activated adapter acts on the continuation.

    Args:
        model: a causal LM, with or without adapter.
        context: token ids.
        rows: token ids of each continuation.
    """
    lm = causal_lm(model)
    device = next(trunk(model).parameters()).device
    read = DynamicCache(config=lm.config)
    first = lm(
        input_ids=torch.tensor([list(context)], device=device),
        past_key_values=read,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    losses = []
    for start in range(0, len(rows), CODES):
        part = rows[start : start + CODES]
        longest = max(map(len, part))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in part], device=device)
        lengths = torch.tensor([len(row) for row in part], device=device)
        logits = first.expand(len(part), -1, -1)
        if longest > 1:
            cache = copy.deepcopy(read)
            cache.batch_repeat_interleave(len(part))
            # Padding follows the text, so the causal mask alone keeps it unseen.
            with activation(model, [longest - 1] * len(part)):
                more = lm(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, more], dim=1)
        told = torch.arange(longest, device=device) < lengths[:, None]
        losses.append((_token_losses(logits, ids) * told).sum(dim=1).cpu())
    return torch.cat(losses).numpy()


def _token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target [n, t], nats, float64."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return flat.double().view(targets.shape)


def injection_rows(hostile: Sequence[Hostile], answers: dict[str, Answers]) -> list[dict[str, Any]]:
    """Rows of `injection`: the text about each attack and about its twin."""
    return [
        {
            "attack": one.attack.name,
            "user": one.attacked.user,
            "item": one.attacked.item,
            "when": when,
            "payload": one.attack.payload,
            "reached": one.reached,
            "attacked": attacked,
            "benign": benign,
        }
        for when, texts in answers.items()
        for one, attacked, benign in zip(hostile, texts.attacked, texts.benign, strict=True)
    ]


def canary_rows(
    probes: Probes, candidates: int, before: Answers, after: Answers
) -> dict[str, Any] | None:
    """Rows of `canaries`; None where none were planted."""
    if not probes.secrets:
        return None
    return {
        "candidates": candidates,
        "rows": [
            {
                "canary": secret.canary.text,
                "repeats": secret.canary.repeats,
                "before": old,
                "after": new,
            }
            for secret, old, new in zip(
                probes.secrets, before.exposures, after.exposures, strict=True
            )
        ],
    }
