"""The config: its files on disk, the published numbers, and one line for every mistake."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from snakemake.utils import update_config

from shielded_recrl.config import Config, load_config
from shielded_recrl.errors import UserError
from shielded_recrl.schema import documents
from shielded_recrl.shield.settings import ShieldSettings
from shielded_recrl.study import Study

ROOT = Path(__file__).resolve().parents[1]
HUB = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
STEAM = {"dataset": "steam", "variants": ["shielded"], "seeds": [1]}
COMMIT = "fe8a4ea1ffedaf415f4da2f062534de366a451e6"


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def full():
    """config/full.yaml laid over the default, as Snakemake does it."""
    values = read("config/config.yaml")
    update_config(values, read("config/full.yaml"))
    return load_config(values)


@pytest.mark.parametrize("path", sorted(documents()))
def test_files_made_from_the_model_are_in_step(path):
    assert (ROOT / path).read_text() == documents()[path], "run `make schema`"


def test_documents_are_these():
    assert set(documents()) == {
        "config/config.yaml",
        "docs/configuration.md",
        "docs/train_log.md",
        "workflow/schemas/config.schema.json",
        "workflow/schemas/train.schema.json",
    }


def test_default_file_is_the_default_config():
    assert load_config(read("config/config.yaml")) == Config()


def test_default_file_names_every_key():
    def missing(model, values, prefix=""):
        for name in type(model).model_fields:
            if name not in values:
                yield prefix + name
            elif isinstance(getattr(model, name), BaseModel):
                yield from missing(getattr(model, name), values[name], f"{prefix}{name}.")

    assert list(missing(Config(), read("config/config.yaml"))) == []


def test_every_default_ablation_differs_in_one_setting():
    config = Config()
    base = config.variant("shielded").model_dump()
    for name in set(config.variants) - {"shielded"}:
        changed = {
            section
            for section, values in config.variant(name).model_dump().items()
            if values != base[section]
        }
        assert len(changed) == 1, name


class TestPublishedScale:
    def test_base(self, full):
        assert (full.explainer.base, full.explainer.revision) == (HUB, COMMIT)
        assert full.explainer.precision == "nf4"

    def test_every_variant_keeps_its_one_difference(self, full):
        runs = {name: full.variant(name) for name in full.variants}
        assert runs.keys() == Config().variants.keys()
        steps = {name: run.rl.steps for name, run in runs.items()}
        assert steps == dict.fromkeys(runs, 10000) | {"shielded": 20000}
        for name, run in runs.items():
            lora = (run.explainer.lora_rank, run.explainer.lora_alpha)
            assert lora == ((4, 8) if name == "lora4" else (16, 32)), name
            lengths = (run.explainer.prompt_tokens, run.explainer.explanation_tokens)
            assert lengths == ((512, 320) if name == "long_expl" else (384, 160)), name
            assert run.rl.kl_weight == (0 if name == "kl0" else 0.05), name
        kinds = {name: run.shield.kind for name, run in runs.items()}
        assert kinds["no_proj"] == "none"
        for name in ("separate", "activated", "ranker", "random"):
            assert kinds[name] == name
        assert kinds["shielded"] == kinds["kl0"] == kinds["lora4"] == "nullspace"

    def test_optimisation_and_sampling(self, full):
        assert (full.rl.micro_batch, full.rl.gradient_accumulation) == (4, 2)
        assert full.rl.learning_rate == 3e-5
        assert (full.sampling.temperature, full.sampling.top_p) == (0.7, 0.9)

    def test_seeds_and_protected_users(self, full):
        assert full.seed == 42
        assert all(42 in cell.seeds for cell in full.study)
        assert full.ranking.protected_users == 200

    def test_no_embedded_data(self, full):
        assert {name: dataset.source for name, dataset in full.datasets.items()} == {
            "books": "download",
            "ml25m": "download",
            "steam": "./raw/steam-200k.csv",
        }

    def test_downloads_and_base_are_pinned(self, full):
        downloads = read("resources/checksums.yaml")
        study = Study(full, downloads)
        assert study.raw_paths("books") == [
            "resources/raw/books-2023/Books.csv.gz",
            "resources/raw/books-2023/meta_Books.jsonl.gz",
        ]
        assert study.raw_paths("ml25m") == ["resources/raw/ml25m/ml-25m.zip"]
        assert study.raw_paths("steam")[1] == "resources/raw/steam/steam_games.json.gz"
        for dataset in ("books", "ml25m", "steam"):
            for path in study.raw_paths(dataset):
                if path.startswith("resources/"):
                    _, _, published, file = path.split("/")
                    assert downloads[published][file]["url"].startswith("https://")
        assert study.revisions() == {HUB.replace("/", "--"): COMMIT}


@pytest.mark.parametrize("name", ["tests/tiny.yaml", "tests/real.yaml"])
def test_configs_of_the_tests_load(name):
    values = read("config/config.yaml")
    update_config(values, read(name))
    assert load_config(values) != Config()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rl": {"stepz": 3}}, "rl.stepz: unknown key"),
        ({"colour": 3}, "colour: unknown key"),
        ({"rl": {"steps": "many"}}, "rl.steps: Input should be a valid integer"),
        ({"rl": {"steps": 0}}, "rl.steps: Input should be greater than or equal to 1; got 0"),
        ({"rl": None}, "rl: Input should be"),
        ({"rl": {"learning_rate": float("nan")}}, "rl.learning_rate: "),
        ({"shield": {"kind": "magic"}}, "shield.kind: Input should be 'none', 'separate',"),
        ({"datasets": {"yelp": {}}}, "datasets.yelp: unknown dataset; expected one of books"),
        (
            {"datasets": {"books": {"split": "random"}}},
            "datasets.books.split: Input should be 'per_user'",
        ),
        (
            {"explainer": {"base": HUB}},
            f"explainer.revision: hub id '{HUB}' needs the 40-digit commit",
        ),
        ({"explainer": {"base": HUB, "revision": "main"}}, "explainer.revision: String should"),
        (
            {"dialogue": {"data": {"source": "download"}}},
            "dialogue.emotions.goemotions: generated comments say nothing of the real dialogues of "
            "dialogue.data.source; give `download` or the folder of GoEmotions, or set "
            "dialogue.emotions.source to lexicon",
        ),
        (
            {"dialogue": {"response": {"base": HUB}}},
            f"dialogue.response.revision: hub id '{HUB}' needs the 40-digit commit",
        ),
        (
            {"dialogue": {"critic": {"encoder": HUB}}},
            f"dialogue.critic.encoder_revision: hub id '{HUB}' needs the 40-digit commit",
        ),
        (
            {"variants": {"shielded": {}, "hub": {"explainer": {"base": HUB}}}, "study": []},
            f"variants.hub.explainer.revision: hub id '{HUB}' needs the 40-digit commit",
        ),
        (
            {"variants": {"a": {"explainer": {"history_items": 2}}}, "study": []},
            "variants.a.explainer.history_items: a variant cannot change this",
        ),
        (
            {"variants": {"a": {"ranker": {"dim": 2}}}, "study": []},
            "variants.a.ranker: unknown key",
        ),
        (
            {"variants": {"a": {"rl": {"steps": -1}}}, "study": []},
            "variants.a.rl.steps: Input should be greater than or equal to 1",
        ),
        (
            {"study": [{"dataset": "books", "variants": ["nobody"], "seeds": [1]}]},
            "study.0.variants: 'nobody' is not a key of variants",
        ),
        (
            {"datasets": {"books": {}}, "study": [STEAM]},
            "study.0.dataset: 'steam' is not a key of datasets",
        ),
        ({"study": [STEAM | {"seeds": []}]}, "study.0.seeds: "),
        (
            {"datasets": {"steam": {"source": "download"}}, "study": []},
            "datasets.steam.source: its terms ask for a login",
        ),
        (
            {"datasets": {"books": {"edition": 2018}}, "study": []},
            "datasets.books.edition: there is no edition 2018; expected 2023 or 2014 or null",
        ),
        (
            {"datasets": {"steam": {"edition": 2014}}, "study": []},
            "datasets.steam.edition: there is no edition 2014; expected null",
        ),
        (
            {"datasets": {"ml25m": {"source": "r.csv", "metadata": "download"}}, "study": []},
            "datasets.ml25m.metadata: the published zip is not fetched for its metadata alone",
        ),
        (
            {"variants": {"a": {"shield": {"kind": "separate", "penalty": 5}}}, "study": []},
            "variants.a.shield.penalty: the kind separate cannot move the ranking",
        ),
        (
            {"shield": {"kind": "activated"}, "variants": {"a": {"shield": {"penalty": 5}}}}
            | {"study": []},
            "variants.a.shield.penalty: the kind activated cannot move the ranking",
        ),
        ({"variants": {"a-b": {}}, "study": []}, "variants.a-b: a variant's name has only"),
        (
            {"variants": {"a": {"rl": {"steps": 1}}}, "study": []},
            "variants.a.rl.value_warmup: 1 warm-up steps leave none of 1",
        ),
        (
            {
                "variants": {
                    "a": {"explainer": {"base": "./x/llama"}},
                    "b": {"explainer": {"base": "./y/llama"}},
                },
                "study": [],
            },
            "variants.b.explainer.base: another base has the same folder name 'llama'",
        ),
    ],
)
def test_mistake_is_one_line_that_names_the_key(values, says):
    with pytest.raises(UserError) as raised:
        load_config(values)
    line = str(raised.value)
    assert line.startswith(f"config: {says}")
    assert "\n" not in line


def test_local_folder_needs_no_revision():
    config = load_config({"explainer": {"base": "./models/mine"}})
    assert config.variant("shielded").explainer.base == "./models/mine"


@pytest.mark.parametrize(
    ("kind", "unread"),
    [
        ("none", {"energy", "rank", "weight"}),
        ("separate", {"energy", "rank", "weight", "penalty"}),
        ("activated", {"energy", "rank", "weight", "penalty"}),
        ("ranker", {"weight"}),
        ("random", set()),
        ("nullspace", set()),
    ],
)
def test_a_kind_has_defaults_where_it_reads_nothing(kind, unread):
    """So the study's own settings do not reach it, and none of them is refused."""
    base = {"energy": 0.9, "rank": None, "weight": "score", "scope": "all", "penalty": 5.0}
    values = {"shield": base, "variants": {"a": {"shield": {"kind": kind}}}, "study": []}
    got = load_config(values).variant("a").shield.model_dump()
    plain = ShieldSettings(penalty=0.0).model_dump()
    assert got == base | {"kind": kind} | {name: plain[name] for name in unread}


def test_a_rank_leaves_the_energy_unread():
    config = load_config({"shield": {"energy": 0.9, "rank": 3}})
    got = config.variant("shielded").shield
    assert (got.rank, got.energy) == (3, ShieldSettings().energy)
