"""What a part was made from: files by their content, settings, code; and nothing else."""

import shutil
from dataclasses import fields, replace

import pytest

from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.provenance import code_digest
from shielded_recrl.rl.generate import TextInputs
from shielded_recrl.rl.settings import SamplingSettings, SlateSettings
from shielded_recrl.shield import inputs as module
from shielded_recrl.shield.settings import RoleSettings

SLATE = SlateSettings()
READ = {
    "data": "items.parquet",
    "base": "config.json",
    "templates": "prefix.txt",
    "run": "adapter/adapter_config.json",
}
OTHER = {
    "prompt": PromptSettings(history_items=9),
    "roles": RoleSettings(protected_users=9),
    "sampling": SamplingSettings(top_p=0.5),
    **{"precision": "bf16", "explanation_tokens": 9, "roles_seed": 9, "seed": 9},
}


@pytest.fixture
def inputs(world, tmp_path) -> TextInputs:
    """Inputs of a run that are a test's own."""
    for name in ("data", "base", "templates"):
        shutil.copytree(getattr(world, name), tmp_path / name)
    shutil.copytree(world.adapter, tmp_path / "run/adapter")
    for name in ("run/snapshots.safetensors", "readout"):
        (tmp_path / name).write_text("numbers")
    shutil.copyfile(world.ranker, tmp_path / "ranker")
    paths = {name: tmp_path / name for name in (*READ, "ranker", "readout")}
    return TextInputs(**paths, prompt=world.prompt, roles=world.roles, sampling=SamplingSettings())


@pytest.mark.parametrize("name", [one.name for one in fields(TextInputs)])
def test_every_flag_counts(inputs, name):
    before = inputs.digest(SLATE)
    if name in OTHER:
        inputs = replace(inputs, **{name: OTHER[name]})
    else:
        with (getattr(inputs, name) / READ.get(name, "")).open("ab") as file:
            file.write(b" ")
    assert inputs.digest(SLATE) != before


def test_settings_and_code_count(inputs, monkeypatch):
    before = inputs.digest(SLATE)
    assert inputs.digest(SlateSettings(users=9)) != before
    asked = []
    monkeypatch.setattr(module, "code_digest", lambda name: asked.append(name) or "other")
    assert inputs.digest(SLATE) != before
    assert asked == ["shielded_recrl.rl.generate"]
    assert code_digest(asked[0])


def test_the_place_of_files_and_what_is_not_read_do_not_count(inputs, tmp_path):
    before = inputs.digest(SLATE)
    (inputs.data / "reviews.parquet").write_text("not read")
    (inputs.run / "evaluation.json").write_text("written by the command that joins")
    moved = inputs.run.rename(tmp_path / "elsewhere")
    assert replace(inputs, run=moved).digest(SLATE) == before
