"""The rules keep the conventions that make the workflow easy to live in."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["audit", "data", "dialogue", "explainer", "ranker", "report", "rl", "shield"]
RULE = re.compile(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def rules():
    """Name, text and file of every rule."""
    found = []
    for path in sorted(ROOT.glob("rules/*.smk")):
        for name, text in RULE.findall(path.read_text()):
            found.append(pytest.param(text, path, id=name))
    return found


def directive(text, name):
    """The block under a directive of a rule."""
    found = re.search(rf"^    {name}:(.*?)(?=^    \w|\Z)", text + "\n", re.MULTILINE | re.DOTALL)
    assert found, f"no {name}"
    return found[1].strip()


def test_stage_has_the_same_name_everywhere():
    assert sorted({path.stem for path in ROOT.glob("rules/*.smk")} - {"common"}) == STAGES
    packages = {
        path.parent.name for path in (ROOT / "workflow/shielded_recrl").glob("*/__main__.py")
    }
    # `explain` serves a finished study, `cluster` prepares machines: neither is a step of it.
    assert packages == {*STAGES, "explain", "cluster"}
    assert sorted({path.stem for path in ROOT.glob("envs/*.yaml")} - {"download"}) == STAGES
    assert {f"{stage}.md" for stage in STAGES} <= {path.name for path in ROOT.glob("docs/*.md")}


def test_snakefile_is_a_table_of_contents():
    lines = (ROOT / "Snakefile").read_text().splitlines()
    assert len(lines) <= 80
    included = re.findall(r'include: "rules/(\w+)\.smk"', "\n".join(lines))
    assert sorted(included) == sorted([*STAGES, "common"])


def test_there_are_rules_to_look_at():
    assert len(rules()) == 41


@pytest.mark.parametrize(("text", "path"), rules())
class TestRule:
    def test_says_what_it_does(self, text, path):
        assert len(directive(text, "message")) > 10

    def test_keeps_log_and_benchmark_of_its_stage(self, text, path):
        log, benchmark = directive(text, "log"), directive(text, "benchmark")
        assert re.match(rf'"results/logs/{path.stem}/.+\.log"', log)
        assert re.match(rf'"results/benchmarks/{path.stem}/.+\.tsv"', benchmark)
        assert "2>&1 | tee {log}" in directive(text, "shell")

    def test_names_threads_memory_and_code(self, text, path):
        assert directive(text, "threads")
        assert "mem_mb=" in directive(text, "resources")
        # What is pinned by checksum or commit is not fetched again when the code changes.
        digest = f'code=code_digest("shielded_recrl.{path.stem}.' in directive(text, "params")
        assert digest or re.search(r"shielded_recrl\.\w+ (download|fetch)", text)

    def test_code_is_the_command_it_runs(self, text, path):
        stage, command = re.search(
            r"python -m shielded_recrl\.(\w+) (\w+)", directive(text, "shell")
        ).groups()
        digest = f'code_digest("shielded_recrl.{stage}.{command}")' in text
        assert digest or command in ("download", "fetch")

    def test_command_finds_its_files_also_where_a_storage_keeps_them(self, text, path):
        """Only scratch and live files lie below results/ whatever holds the rest."""
        assert not re.search(r"results/(?!scratch/|live/)", directive(text, "shell"))
        # The S3 plugin loses these; `download` needs none, as what it makes is named in full.
        assert "wildcard_constraints:" not in text or "data download" in text

    def test_environment_exists_and_names_its_packages(self, text, path):
        file = (path.parent / directive(text, "conda").strip('"')).resolve()
        environment = yaml.safe_load(file.read_text())
        assert environment["channels"]
        assert environment["dependencies"]


def test_gpu_goes_to_rules_that_train_or_generate():
    wanting = {rule.id for rule in rules() if re.search("gpu=(LM|PPO)_GPU", rule.values[0])}
    assert wanting == {
        "train_ranker",
        "pretrain",
        "embed_prefixes",
        "fit_readout",
        "collect_moments",
        "collect_bases",
        "train_policy",
        "generate_texts",
        "evaluate_policy",
        "ask_probes",
        "probe_policy",
        "pretrain_dialogue",
        "supervise",
        "judge_responses",
        "train_critic",
        "train_responses",
        "evaluate_responses",
    }


def test_rule_files_say_what_goes_in_and_out():
    for stage in STAGES:
        first, second = (ROOT / f"rules/{stage}.smk").read_text().splitlines()[:2]
        assert first.startswith("# REQUIRED INPUTS: ")
        assert second.startswith("# OUTPUTS: ")


def quoted(copy, path):
    """Arguments of the command in the head of a config."""
    return shlex.split(re.search(r"^#   snakemake (.+)$", copy.read(path), re.MULTILINE)[1])


@pytest.fixture(scope="module")
def published(untouched):
    """What a run at the published scale would do."""
    return untouched.plan(config="config/full.yaml")


@pytest.mark.slow
class TestDialogues:
    """The branch is apart from the default target."""

    WHOLE = "results/dialogue/report/manifest.json"

    def test_three_runs_share_all_before_them_and_nothing_of_the_study_runs(self, untouched):
        plan = untouched.plan(self.WHOLE, config=None)
        text = (ROOT / "rules/dialogue.smk").read_text()
        once = dict.fromkeys((name for name, _ in RULE.findall(text)), 1)
        assert plan.rules == once | {"train_responses": 3, "evaluate_responses": 3}

    def test_published_files_and_models_are_fetched(self, untouched):
        plan = untouched.plan(self.WHOLE, config="config/full.yaml")
        assert {rule: plan.rules[rule] for rule in ("download", "fetch", "train_responses")} == {
            "download": 4,
            "fetch": 2,
            "train_responses": 3,
        }
        assert {"make_dialogues", "pretrain_dialogue"}.isdisjoint(plan.rules)


@pytest.mark.slow
class TestDryRun:
    def test_default_config_runs_every_run_once(self, untouched):
        plan = untouched.plan(config="config/config.yaml")
        assert plan.rules["train_policy"] == plan.rules["audit_policy"] == 21
        assert plan.rules["train_ranker"] == plan.rules["pretrain"] == 3
        assert set(plan.jobs.values()) == {1}

    def test_published_scale(self, published):
        assert published.rules["train_policy"] == published.rules["audit_policy"] == 21
        assert published.rules["fetch"] == 1
        assert "make_world" not in published.rules
        assert "pretrain" not in published.rules

    def test_command_quoted_there_is_the_profile_of_the_pod_and_does_it(self, untouched, published):
        words = quoted(untouched, "config/full.yaml")
        assert words == ["--profile", "runpod"]
        assert untouched.plan(*words, config=None) == published
        # The same by the name that the other profiles have.
        assert (untouched.folder / "runpod").resolve() == untouched.folder / "profiles/runpod"

    def test_commands_quoted_in_other_configs_are_real(self, untouched):
        own = quoted(untouched, "config/config.yaml")
        words = [word.replace("mine.yaml", "tests/tiny.yaml") for word in own]
        assert words != own
        assert "train_policy" in untouched.plan(*words, config=None).rules
        # The one of the run that all tests share, and nothing else.
        words[words.index("--cores") + 1] = "2"
        assert quoted(untouched, "tests/tiny.yaml") == words
