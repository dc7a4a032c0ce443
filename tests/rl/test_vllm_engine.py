"""What goes into vLLM and what is made of its answers; vLLM itself does not run here."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from shielded_recrl.errors import UserError
from shielded_recrl.rl.rollout import Rollout
from shielded_recrl.rl.vllm_engine import (
    VLLMEngine,
    engine_options,
    padded,
    require,
    sampling_options,
)

PAD, EOS = 0, 2


@dataclass
class Logprob:
    """The fields of `vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """The fields of `vllm.outputs.CompletionOutput` as vLLM 0.33 fills them with logprobs=0."""

    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str
    stop_reason: int | None = None
    index: int = 0
    text: str = ""


def adapted(rank=12, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return get_peft_model(
        LlamaForCausalLM(config),
        LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", **options),
    )


class TestEngine:
    def test_reports_the_sampled_distribution_of_the_adapter_alone(self):
        options = engine_options("base", adapted(), "bf16", 0.3, 5)
        assert options["logprobs_mode"] == "processed_logprobs"
        assert options["generation_config"] == "vllm"
        assert options["dtype"] == "bfloat16"
        assert options["enable_lora"]
        assert (options["model"], options["seed"]) == ("base", 5)

    @pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (8, 8), (12, 16), (33, 64)])
    def test_rank_is_the_next_one_vllm_has(self, rank, served):
        assert engine_options("base", adapted(rank), "bf16", 0.3, 0)["max_lora_rank"] == served

    @pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
    def test_other_precisions_are_refused(self, precision):
        with pytest.raises(UserError, match=rf"^explainer\.precision: .*bf16, got {precision}$"):
            engine_options("base", adapted(), precision, 0.3, 0)

    def test_activated_adapters_are_refused(self):
        with pytest.raises(UserError, match=r"^rl\.engine: vllm serves no activated adapter"):
            engine_options("base", adapted(alora_invocation_tokens=[3]), "bf16", 0.3, 0)

    def test_ranks_beyond_vllm_are_refused(self):
        with pytest.raises(UserError, match=r"^explainer\.lora_rank: vllm serves at most 512"):
            engine_options("base", adapted(513), "bf16", 0.3, 0)

    def test_a_missing_vllm_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "vllm", None)
        with pytest.raises(UserError, match=r"^rl\.engine: vllm cannot be imported") as raised:
            VLLMEngine("base", adapted(), None, "bf16")
        assert "environment of its own" in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_vllm_without_an_argument_is_refused(self):
        @dataclass
        class OldEngineArgs:
            model: str
            dtype: str = "auto"

        require(OldEngineArgs, ["model", "dtype"])
        with pytest.raises(UserError, match="vllm's OldEngineArgs has no logprobs_mode; install"):
            require(OldEngineArgs, ["model", "logprobs_mode"])


class TestSampling:
    uniforms = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))

    def test_nothing_but_temperature_shapes_the_distribution(self):
        for options in sampling_options(self.uniforms, 0.7, EOS):
            assert (options["temperature"], options["max_tokens"]) == (0.7, 7)
            assert (options["top_p"], options["top_k"], options["min_p"]) == (1.0, 0, 0.0)
            assert options["logprobs"] == 0

    def test_the_trainers_end_of_text_alone_ends_a_response(self):
        (options,) = sampling_options(self.uniforms[:1], 1.0, EOS)
        assert options["ignore_eos"]
        assert options["stop_token_ids"] == [EOS]

    def test_seeds_follow_from_each_rows_draws(self):
        seeds = [each["seed"] for each in sampling_options(self.uniforms, 1.0, EOS)]
        assert len(set(seeds)) == len(seeds)
        assert all(0 <= seed < 2**63 for seed in seeds)
        turned = sampling_options(self.uniforms.flip(0), 1.0, EOS)
        assert [each["seed"] for each in turned] == seeds[::-1]

    @pytest.mark.parametrize("temperature", [0.0, 0.005, 2.5, math.nan])
    def test_a_temperature_vllm_would_change_or_refuse(self, temperature):
        with pytest.raises(UserError, match=r"^rl\.rollout_temperature: vllm takes 0\.01 to 2"):
            sampling_options(self.uniforms, temperature, EOS)


def test_answers_become_a_rollout():
    prompts = [[5, 6, 7], [8]]
    answers = [
        CompletionOutput(
            [9, EOS], [{9: Logprob(-0.5, 1)}, {EOS: Logprob(-1.5, 3)}], "stop", stop_reason=EOS
        ),
        CompletionOutput(
            [4, 4, 3], [{4: Logprob(-0.25)}, {4: Logprob(-0.125)}, {3: Logprob(-2.0)}], "length"
        ),
    ]
    fields = padded(prompts, answers, PAD, EOS)
    assert fields["ids"].tolist() == [[5, 6, 7, 9, EOS, PAD], [PAD, PAD, 8, 4, 4, 3]]
    assert fields["mask"].tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert fields["response"].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    assert fields["logp"].tolist() == [[-0.5, -1.5, 0.0], [-0.25, -0.125, -2.0]]
    assert fields["ended"].tolist() == [True, False]
    assert set(fields) == set(Rollout._fields) - {"request"}


def test_an_answer_without_all_its_figures_is_refused():
    answer = CompletionOutput([4, EOS], [{4: Logprob(-0.25)}], "stop")
    with pytest.raises(ValueError, match="longer than"):
        padded([[5]], [answer], PAD, EOS)
