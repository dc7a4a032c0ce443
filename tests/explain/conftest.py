"""A tiny study of four kinds of shield on one dataset, trained by the commands of the stages."""

import os
from pathlib import Path

import polars as pl
import pytest
import yaml

from shielded_recrl.explain.runs import Runs, read_config
from shielded_recrl.explain.service import Library
from shielded_recrl.explainer.init import main as init
from shielded_recrl.explainer.pretrain import main as pretrain
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.files import write_json
from shielded_recrl.rl.evaluate import main as evaluate
from shielded_recrl.rl.train import main as train
from shielded_recrl.settings import section
from shielded_recrl.shield.bases import main as bases
from shielded_recrl.shield.readout import main as readout
from shielded_recrl.shield.settings import BasisSettings, RankingSettings, RoleSettings
from shielded_recrl.study import lora_name
from tiny_world import call, make_world

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>document.title = "taken"</script> & \x1b[31mRed'
VARIANTS = ("shielded", "no_proj", "separate", "activated")
CONFIG = {
    "seed": 3,
    "ranking": {"protected_users": 5, "heldout_users": 7, "gamma": 1.0, "epochs": 3},
    "explainer": {
        "history_items": 3,
        "prompt_tokens": 56,
        "explanation_tokens": 40,
        "lora_rank": 4,
        "lora_alpha": 8,
        "pretrain": {
            **{"vocabulary": 600, "hidden_size": 48, "layers": 2, "heads": 4},
            **{"steps": 150, "batch_size": 8, "learning_rate": 0.01},
        },
    },
    "shield": {"energy": 0.9, "scope": "all", "penalty": 0.0},
    "rl": {
        **{"steps": 2, "micro_batch": 4, "value_warmup": 0, "snapshots": 1, "slate": 4},
        **{"learning_rate": 0.03, "drift_users": 2},
    },
    "evaluation": {"users": 3, "items_per_user": 1, "sessions": 5, "bootstrap": 10, "merge": []},
    "study": [
        {"dataset": "books", "variants": list(VARIANTS), "seeds": [5]},
        {"dataset": "books", "variants": ["shielded"], "seeds": [6]},
        {"dataset": "steam", "variants": ["shielded"], "seeds": [5]},
    ],
}


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """Folder of a study: config, resources and results. Seed 6 and steam were never run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "resources").symlink_to(ROOT / "resources")
    world = make_world(folder / "world")
    data = folder / "results/data/books"
    data.parent.mkdir(parents=True)
    world.data.rename(data)
    items = pl.read_parquet(data / "items.parquet")
    items.with_columns(
        title=pl.when(pl.col("item") == 1).then(pl.lit(HOSTILE)).otherwise("title")
    ).write_parquet(data / "items.parquet")
    write_json(data / "stats.json", {"synthetic": True, "sequential": True})
    (folder / "results/ranker/books").mkdir(parents=True)
    states = folder / "results/ranker/books/states.safetensors"
    world.ranker.rename(states)

    before = Path.cwd()
    os.chdir(folder)
    try:
        runs = Runs(read_config([]))
        make_runs(runs, data, states, folder / "resources/prompts")
    finally:
        os.chdir(before)
    return folder


def make_runs(runs: Runs, data: Path, states: Path, templates: Path) -> None:
    """Every run of books with seed 5, by the functions behind the commands."""
    config, base = runs.study.config, Path(runs.study.base_path("books", "embedded"))
    prompt = section(config.explainer, PromptSettings)
    roles = section(config.ranking, RoleSettings)
    tokens = config.explainer.explanation_tokens
    shared = {"data": data, "templates": templates, "prompt": prompt}
    pretrain(
        **shared,
        out=base,
        seed=config.seed,
        explanation_tokens=tokens,
        settings=config.explainer.pretrain,
    )
    paths = {name: runs.study.run_paths("books", name) for name in VARIANTS}
    common = shared | {"base": base, "seed": config.seed}
    fitted = Path(paths["shielded"]["readout"])
    settings = section(config.ranking, RankingSettings)
    call(readout, **common, ranker=states, out=fitted, settings=settings)
    collected = Path(paths["shielded"]["bases"])
    wanted = section(runs.study.variants["shielded"].shield, BasisSettings)
    call(bases, **common, roles=roles, out=collected, settings=wanted)
    for name in VARIANTS:
        variant = runs.study.variants[name]
        adapter = Path(paths[name]["adapter"])
        if not adapter.exists():
            assert adapter.name == lora_name(variant)
            init(
                base=base,
                out=adapter,
                templates=templates,
                scope=variant.shield.scope,
                activated=variant.shield.kind == "activated",
                lora_rank=variant.explainer.lora_rank,
                lora_alpha=variant.explainer.lora_alpha,
                seed=config.seed,
            )
        out = Path(f"results/rl/books/{name}/seed-5")
        run = shared | {
            **{"ranker": states, "base": base, "readout": fitted, "roles": roles},
            **{"dataset": "books", "variant": name, "shield": variant.shield},
            **{"bases": collected if variant.shield.kind == "nullspace" else None},
            **{"explanation_tokens": tokens, "roles_seed": config.seed, "seed": 5},
        }
        train(**run, adapter=adapter, settings=variant.rl, out=out, scratch=Path("scratch"))
        call(
            evaluate,
            **run,
            run=out,
            settings=config.evaluation,
            sampling=config.sampling,
            reward=variant.rl.reward,
        )


@pytest.fixture
def inside(study, monkeypatch) -> Path:
    """The folder of the study as the working directory."""
    monkeypatch.chdir(study)
    return study


@pytest.fixture(scope="session")
def shared_library(study) -> Library:
    return Library(Runs(read_config([study / "config/config.yaml"]), study / "results"))


@pytest.fixture
def library(inside, shared_library) -> Library:
    """Answers of the runs; models stay loaded from test to test."""
    return shared_library
