"""The whole config as one typed model: the source of schema, defaults, docs table and flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from shielded_recrl.audit.settings import AuditSettings, ProbeSettings
from shielded_recrl.data.settings import DATASETS, EDITIONS, DatasetSettings, WorldSettings
from shielded_recrl.dialogue.settings import DialogueSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import ExplainerSettings
from shielded_recrl.hub import fetched_name, is_local, require_pinned
from shielded_recrl.machine import ResourceSettings
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.report.settings import ReportSettings
from shielded_recrl.rl.settings import (
    EvaluationSettings,
    RewardSettings,
    RLSettings,
    SamplingSettings,
)
from shielded_recrl.settings import Settings, one_line
from shielded_recrl.shield.settings import BasisSettings, RankingSettings, ShieldSettings


class Variant(Settings):
    """What one row of the study changes in the base settings; nothing means the default run."""

    explainer: dict[str, Any] = Field({}, description="Changed keys of `explainer`.")
    shield: dict[str, Any] = Field({}, description="Changed keys of `shield`.")
    rl: dict[str, Any] = Field({}, description="Changed keys of `rl`.")


class Cell(Settings):
    """Variants and seeds run on one dataset."""

    dataset: str = Field(description="A key of `datasets`.")
    variants: tuple[str, ...] = Field(min_length=1, description="Keys of `variants`.")
    seeds: tuple[int, ...] = Field(min_length=1, description="Seeds of training and sampling.")


class VariantSettings(Settings):
    """The settings of one variant after its changes."""

    explainer: ExplainerSettings
    shield: ShieldSettings
    rl: RLSettings


# A variant may change what its own adapter depends on; the rest is shared by the whole study.
VARIANT_KEYS = {
    "explainer": {
        "base",
        "revision",
        "precision",
        "prompt_tokens",
        "explanation_tokens",
        "lora_rank",
        "lora_alpha",
    },
    "shield": set(ShieldSettings.model_fields),
    "rl": set(RLSettings.model_fields),
}

# What a kind of shield does not read is set to these values, so that it can rerun nothing.
_NO_BASES = {name: field.default for name, field in BasisSettings.model_fields.items()}
UNREAD: dict[str, dict[str, Any]] = {
    "none": _NO_BASES,
    "separate": _NO_BASES | {"penalty": 0.0},
    "activated": _NO_BASES | {"penalty": 0.0},
    "ranker": {"weight": _NO_BASES["weight"]},
}


# A policy that is paid for length alone shows what of a gain length can explain.
LENGTH_ONLY = {name: 0.0 for name in RewardSettings.model_fields if name != "target_words"}
LENGTH_ONLY["length"] = 1.0


class Config(Settings):
    """The study: datasets, stages, variants, and which of them run."""

    seed: int = Field(
        42, ge=0, description="Seed of everything but the runs, which have their own."
    )
    datasets: dict[str, DatasetSettings] = Field(
        {
            "books": DatasetSettings(min_weight=4),
            "ml25m": DatasetSettings(min_weight=4),
            "steam": DatasetSettings(),
        },
        description="The datasets, by name.",
    )
    world: WorldSettings = Field(WorldSettings(), description="The embedded world.")
    ranker: RankerSettings = Field(RankerSettings(), description="SASRec.")
    explainer: ExplainerSettings = Field(ExplainerSettings(), description="Base LM and adapter.")
    ranking: RankingSettings = Field(RankingSettings(), description="The served ranking.")
    shield: ShieldSettings = Field(ShieldSettings(), description="The default shield.")
    rl: RLSettings = Field(RLSettings(), description="PPO.")
    sampling: SamplingSettings = Field(SamplingSettings(), description="Text sampled for people.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="Held-out evaluation.")
    audit: AuditSettings = Field(AuditSettings(), description="Audits.")
    probe: ProbeSettings = Field(ProbeSettings(), description="What audits ask the LM.")
    report: ReportSettings = Field(ReportSettings(), description="Table and figures.")
    dialogue: DialogueSettings = Field(
        DialogueSettings(), description="The dialogue branch, which `make dialogue` runs."
    )
    resources: ResourceSettings = Field(ResourceSettings(), description="Machine.")
    variants: dict[str, Variant] = Field(
        {
            "shielded": Variant(),
            "no_proj": Variant(shield={"kind": "none", "penalty": 0.0}),
            "separate": Variant(shield={"kind": "separate"}),
            "activated": Variant(shield={"kind": "activated"}),
            "ranker": Variant(shield={"kind": "ranker", "penalty": 0.0}),
            "random": Variant(shield={"kind": "random", "penalty": 0.0}),
            "no_penalty": Variant(shield={"penalty": 0.0}),
            "penalty_only": Variant(shield={"kind": "none"}),
            "loose": Variant(shield={"energy": 0.999}),
            "tight": Variant(shield={"energy": 0.99999}),
            "weighted": Variant(shield={"weight": "score"}),
            "all_blocks": Variant(shield={"scope": "all"}),
            "no_proj_all": Variant(shield={"kind": "none", "scope": "all", "penalty": 0.0}),
            "kl0": Variant(rl={"kl_weight": 0.0}),
            "length_only": Variant(rl={"reward": LENGTH_ONLY}),
            "lora4": Variant(explainer={"lora_rank": 4, "lora_alpha": 8}),
            "long_expl": Variant(explainer={"prompt_tokens": 128, "explanation_tokens": 64}),
        },
        description="Named changes; each ablation differs from `shielded` in one setting.",
    )
    study: tuple[Cell, ...] = Field(
        (
            Cell(dataset="books", variants=("shielded", "no_proj"), seeds=(42, 43, 44)),
            Cell(dataset="books", variants=("kl0", "lora4", "long_expl"), seeds=(42,)),
            Cell(dataset="ml25m", variants=("shielded", "no_proj"), seeds=(42, 43, 44)),
            Cell(dataset="steam", variants=("shielded", "no_proj"), seeds=(42, 43, 44)),
        ),
        description="What runs: every variant with every seed on the dataset.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name, settings in self.datasets.items():
            _require(
                name in DATASETS,
                f"datasets.{name}",
                f"unknown dataset; expected one of {', '.join(DATASETS)}",
            )
            editions = EDITIONS.get(name, ())
            _require(
                settings.edition in (None, *editions),
                f"datasets.{name}.edition",
                f"there is no edition {settings.edition}; expected "
                f"{' or '.join(map(str, (*editions, 'null')))}",
            )
            _require(
                settings.metadata != "download" or name != "ml25m",
                f"datasets.{name}.metadata",
                "the published zip is not fetched for its metadata alone; give the path of "
                "movies.csv, or set source to download",
            )
        source = self.datasets["steam"].source if "steam" in self.datasets else "embedded"
        _require(
            source != "download",
            "datasets.steam.source",
            "its terms ask for a login; fetch steam-200k.csv yourself and give its path",
        )
        bases: dict[str, tuple[str, str | None]] = {}
        for name in self.variants:
            _require(
                re.fullmatch(r"[A-Za-z0-9_]+", name) is not None,
                f"variants.{name}",
                "a variant's name has only letters, digits and underscores",
            )
            explainer = self.variant(name).explainer
            identity = (explainer.base, explainer.revision)
            _require(
                bases.setdefault(base_name(explainer), identity) == identity,
                f"variants.{name}.explainer.base",
                f"another base has the same folder name {base_name(explainer)!r}; rename one folder "
                "or use one revision",
            )
        dialogues, emotions = self.dialogue.data, self.dialogue.emotions
        _require(
            dialogues.source == "embedded"
            or emotions.goemotions != "embedded"
            or emotions.source == "lexicon",
            "dialogue.emotions.goemotions",
            "generated comments say nothing of the real dialogues of dialogue.data.source; give "
            "`download` or the folder of GoEmotions, or set dialogue.emotions.source to lexicon",
        )
        response, critic = self.dialogue.response, self.dialogue.critic
        require_pinned(response.base, response.revision, "dialogue.response.revision")
        require_pinned(critic.encoder, critic.encoder_revision, "dialogue.critic.encoder_revision")
        for index, cell in enumerate(self.study):
            key = f"study.{index}"
            _require(
                cell.dataset in self.datasets,
                f"{key}.dataset",
                f"{cell.dataset!r} is not a key of datasets",
            )
            for name in cell.variants:
                _require(
                    name in self.variants, f"{key}.variants", f"{name!r} is not a key of variants"
                )
        return self

    def variant(self, name: str) -> VariantSettings:
        """The settings of a variant: the base sections with its changes applied.

        Keys of `shield` that its kind does not read have the values of `UNREAD`.

        Raises:
            ValueError: the variant changes a key it may not, or to a bad value.
        """
        sections = {}
        for section, allowed in VARIANT_KEYS.items():
            changes = getattr(self.variants[name], section)
            for key in changes:
                _require(
                    key in allowed,
                    f"variants.{name}.{section}.{key}",
                    f"a variant cannot change this; it can change {', '.join(sorted(allowed))}",
                )
            base = getattr(self, section)
            try:
                sections[section] = type(base).model_validate(_merge(base.model_dump(), changes))
            except ValidationError as error:
                raise ValueError(one_line(error, f"variants.{name}.{section}")) from None
        settings = VariantSettings(**sections)
        explainer = settings.explainer
        own = "base" in self.variants[name].explainer
        key = f"variants.{name}.explainer.revision" if own else "explainer.revision"
        require_pinned(explainer.base, explainer.revision, key)
        shield = settings.shield
        _require(
            "penalty" not in self.variants[name].shield
            or shield.penalty == 0
            or shield.kind not in ("separate", "activated"),
            f"variants.{name}.shield.penalty",
            f"the kind {shield.kind} cannot move the ranking, so there is nothing to match; set 0",
        )
        _require(
            settings.rl.value_warmup < settings.rl.steps,
            f"variants.{name}.rl.value_warmup",
            f"{settings.rl.value_warmup} warm-up steps leave none of {settings.rl.steps} for the "
            "policy; lower it or raise rl.steps",
        )
        rl, gpus = settings.rl, max(1, self.resources.gpu)
        batch = rl.micro_batch * rl.gradient_accumulation
        _require(
            batch % gpus == 0,
            "rl.gradient_accumulation",
            f"{gpus} GPUs cannot share a batch of {batch} texts evenly; choose a multiple",
        )
        _require(
            rl.mini_batches <= batch,
            "rl.mini_batches",
            f"{rl.mini_batches} mini batches cannot be made of {batch} texts; lower it",
        )
        unread = dict(UNREAD.get(shield.kind, {}))
        if shield.rank is not None:
            unread["energy"] = _NO_BASES["energy"]
        return settings.model_copy(update={"shield": shield.model_copy(update=unread)})


def base_name(explainer: ExplainerSettings) -> str:
    """Folder name of a base LM in a precision; `embedded` for the embedded one in fp32."""
    base = explainer.base
    name = Path(base).name if is_local(base) else fetched_name(base)
    return name if explainer.precision == "fp32" else f"{name}-{explainer.precision}"


def load_config(values: dict[str, Any]) -> Config:
    """Validate a plain mapping, as read from YAML.

    Raises:
        UserError: one line that names the key, what is wrong and what was expected.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("config: " + one_line(error)) from None


def _require(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{key}: {message}")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged
