"""`explainer init` writes a plain PEFT adapter that changes nothing yet."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from shielded_recrl.errors import UserError
from shielded_recrl.explainer import init
from shielded_recrl.explainer.base import load_base
from shielded_recrl.files import read_json, sha256

TEMPLATES = Path(__file__).resolve().parents[2] / "resources" / "prompts"
CPU = torch.device("cpu")


def test_a_new_adapter_loads_and_changes_nothing(base, tmp_path):
    init.main(base=base, templates=TEMPLATES, out=tmp_path / "adapter", lora_rank=4, lora_alpha=8)
    ids = torch.arange(10)[None]
    before = load_base(base, "fp32", CPU)(ids).logits
    model = PeftModel.from_pretrained(load_base(base, "fp32", CPU), tmp_path / "adapter")
    assert torch.equal(model(ids).logits, before)
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {name.split(".")[-1] for name in config["target_modules"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    a = [p for name, p in model.named_parameters() if "lora_A" in name]
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(a) == len(b) == 7
    assert all(p.abs().sum() > 0 for p in a)
    assert all(p.abs().sum() == 0 for p in b)


def test_equal_seeds_give_equal_bytes(base, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        init.main(
            base=base, templates=TEMPLATES, out=tmp_path / name / "adapter", seed=seed, lora_rank=4
        )
    one, two, other = (sha256(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert sorted(p.name for p in (tmp_path / "one" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_nothing_is_written_without_a_base(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        init.main(base=tmp_path, templates=TEMPLATES, out=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_last_block_alone_can_be_adapted(base, tmp_path):
    init.main(base=base, templates=TEMPLATES, out=tmp_path / "adapter", scope="last_block")
    model = PeftModel.from_pretrained(load_base(base, "fp32", CPU), tmp_path / "adapter")
    blocks = model.config.num_hidden_layers
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 7
    assert all(f".layers.{blocks - 1}." in name for name in adapted)


def test_an_activated_adapter_needs_words_before_the_title(base, tmp_path):
    (tmp_path / "request.txt").write_text("{title} ({categories}) Why:")
    with pytest.raises(UserError, match=r"request\.txt: an activated adapter needs"):
        init.main(base=base, templates=tmp_path, out=tmp_path / "adapter", activated=True)
    assert not (tmp_path / "adapter").exists()
