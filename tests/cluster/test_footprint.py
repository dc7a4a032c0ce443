"""Estimated memory: worked by hand, held against what torch really keeps, and against the configs."""

import inspect
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig

from shielded_recrl.cluster.doctor import SHAPES, read_study
from shielded_recrl.cluster.footprint import (
    CONTEXT,
    GB,
    GENERATION_BATCH,
    PENALTY_BATCH,
    SLACK,
    Job,
    Shape,
    bases_bytes,
    decoding_bytes,
    job_of,
    kept_bytes,
    merging_bytes,
    peak_bytes,
    shape_of,
    trained_bytes,
    training_bytes,
    weight_bytes,
)
from shielded_recrl.rl.evaluation import generation
from shielded_recrl.shield.ranking_shield import RankingShield

ROOT = Path(__file__).resolve().parents[2]
TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SHAPE = Shape(
    linear=1000, other=100, lora=60, layers=2, hidden=10, keys=4, feedforward=20, vocabulary=50
)
JOB = Job(
    precision="nf4",
    rank=2,
    adapters=1,
    blocks=1,
    prompt=6,
    response=4,
    micro_batch=2,
    batch=4,
    rollouts=4,
    protected=8,
    bases=True,
    checkpointing=False,
    merges=(),
)


class TestByHand:
    def test_weights(self):
        # A fp32 scale for each 64 weights of 4 bits; what is not quantised has 2 bytes.
        assert weight_bytes(SHAPE, "nf4") == 1000 * 0.5625 + 100 * 2
        assert weight_bytes(SHAPE, "int8") == 1000 + 100 * 2
        assert weight_bytes(SHAPE, "bf16") == 2200
        assert weight_bytes(SHAPE, "fp32") == 4400

    def test_adapter_and_bases(self):
        # Rank 2 in one of two blocks: 60 weights of 16 bytes.
        assert trained_bytes(SHAPE, JOB) == 60 * 16
        assert trained_bytes(SHAPE, JOB._replace(adapters=2, blocks=2)) == 4 * 60 * 16
        # Half of three inputs of 10 x 10 and one of 20 x 20, 4 bytes each.
        assert bases_bytes(SHAPE, JOB) == 4 * (300 + 400) / 2
        assert bases_bytes(SHAPE, JOB._replace(bases=False)) == 0

    def test_activations(self):
        # bf16: 8 x 10 + 4 x 4 + 4 x 20 = 176 of 2 bytes; 6 x 10 + 20 = 80 of 4 enter LoRA.
        assert kept_bytes(SHAPE, JOB, 20) == 20 * (352 + 320)
        assert kept_bytes(SHAPE, JOB._replace(precision="fp32"), 20) == 20 * 704
        assert kept_bytes(SHAPE, JOB._replace(blocks=2), 20) == 2 * 20 * 672
        # Checkpointed: what enters each block, and one block whole.
        recomputed = JOB._replace(blocks=2, checkpointing=True)
        assert kept_bytes(SHAPE, recomputed, 20) == 20 * (2 * 2 * 10 + 672)

    def test_training(self):
        states = 4 * 10 * 10 * (2 + 4) + 8 * 6 * 10 * 2
        logits = 2 * 5 * 50 * (2 * 2 + 16)
        policy, penalty = 20 * 672 + logits, 8 * 6 * 672
        assert penalty > policy
        assert training_bytes(SHAPE, JOB) == states + penalty
        without = JOB._replace(protected=0)
        assert training_bytes(SHAPE, without) == 4 * 10 * 10 * 6 + policy

    def test_decoding_and_merging(self):
        cache, block, logits = 10 * 2 * 2 * 4 * 2, 6 * 2 * (50 + 60), 24 * 50
        assert decoding_bytes(SHAPE, JOB, 4) == 4 * (cache + block + logits)
        assert merging_bytes(SHAPE, JOB) == 0
        assert merging_bytes(SHAPE, JOB._replace(merges=("nf4",))) == 4400
        assert merging_bytes(SHAPE, JOB._replace(merges=("fp32", "nf4"))) == 2 * 4400

    def test_peak_is_that_of_the_largest_job(self):
        generation = decoding_bytes(SHAPE, JOB, 128)
        assert generation == 128 * 2840
        assert peak_bytes(SHAPE, JOB) == pytest.approx(CONTEXT + SLACK * (762.5 + generation))
        long = JOB._replace(micro_batch=1000)
        training = 960 + 1400 + training_bytes(SHAPE, long)
        assert peak_bytes(SHAPE, long) == pytest.approx(CONTEXT + SLACK * (762.5 + training))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_estimate_covers_what_autograd_keeps(precision, dtype):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        base = AutoModelForCausalLM.from_config(config).to(dtype).requires_grad_(False)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.get_base_model().base_model(input_ids=torch.arange(200).view(4, 50), use_cache=False)
    counted = sum(storage.nbytes() for storage in kept.values())
    job = JOB._replace(precision=precision, rank=4, blocks=3)
    assert 1 <= kept_bytes(shape_of(config), job, 200) / counted <= 1.3


class TestShapes:
    def test_of_the_base_that_is_not_fetched_yet(self):
        # The sizes in the config.json of the commit in config/full.yaml.
        published = LlamaConfig(
            vocab_size=32_000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
        )
        assert shape_of(published) == SHAPES[TINYLLAMA]
        assert SHAPES[TINYLLAMA].linear + SHAPES[TINYLLAMA].other == 1_100_048_384

    def test_of_a_model_with_other_names_for_its_sizes(self):
        shape = shape_of(GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=90))
        assert shape[2:] == (2 * (6 * 32 + 2 * 32 + 2 * 160), 2, 32, 32, 128, 90)
        assert shape.linear == 2 * (4 * 32**2 + 2 * 4 * 32**2)


def test_batches_are_those_of_the_stages():
    default = inspect.signature(RankingShield).parameters["batch_size"].default
    assert (default, generation.GENERATION_BATCH) == (PENALTY_BATCH, GENERATION_BATCH)


class TestConfigs:
    """What the configs promise of the machines they name."""

    @pytest.fixture(autouse=True)
    def in_repository(self, monkeypatch):
        monkeypatch.chdir(ROOT)

    def needs(self, path):
        study = read_study([Path(path)])
        return {
            variant: peak_bytes(SHAPES[TINYLLAMA], job_of(study.config, variant, SHAPES[TINYLLAMA]))
            for _, variant, _ in study.runs
        }

    def test_six_gigabytes_leave_one_for_the_screen(self):
        assert max(self.needs("config/local6g.yaml").values()) < 5 * GB

    def test_published_scale_fits_an_rtx_4090(self):
        assert max(self.needs("config/full.yaml").values()) < 24 * GB

    def test_all_variants_fit_an_a100(self):
        config = read_study([Path("config/full.yaml")]).config
        shape = SHAPES[TINYLLAMA]
        peaks = [peak_bytes(shape, job_of(config, name, shape)) for name in config.variants]
        assert max(peaks) < 80 * GB
