"""Loading a base LM: clear errors for what is missing or damaged, quantised weights."""

import shutil

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer

CPU = torch.device("cpu")


def test_a_base_is_frozen_and_in_evaluation_mode(base):
    model = load_base(base, "fp32", CPU)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load_base(base, "bf16", CPU).dtype == torch.bfloat16


@pytest.mark.parametrize("load", [lambda path: load_base(path, "fp32", CPU), load_tokenizer])
def test_a_missing_folder_is_one_line(tmp_path, load):
    with pytest.raises(UserError) as caught:
        load(tmp_path / "nothing")
    assert "no config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_truncated_weights_are_one_line(base, tmp_path, kept):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        load_base(folder, "fp32", CPU)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_base(folder, "fp32", CPU)


def test_a_folder_without_tokenizer_is_one_line(base, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_quantised_weights_give_nearly_the_same_logits(tmp_path, base, precision, layer):
    pytest.importorskip("bitsandbytes")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "model"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    ).save_pretrained(folder)
    quantised = load_base(folder, precision, CPU)
    assert type(quantised.model.layers[0].mlp.up_proj).__name__ == layer
    ids = torch.arange(12)[None]
    exact = load_base(folder, "fp32", CPU)(ids).logits
    close = quantised(ids).logits.float()
    correlation = torch.corrcoef(torch.stack([exact.flatten(), close.flatten()]))[0, 1]
    assert correlation > 0.98
    assert not torch.equal(close, exact)
