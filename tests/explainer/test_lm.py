"""What PPO reads off a causal LM: states, merged decoding, passes that begin at a block."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from shielded_recrl.explainer.lm import (
    activation,
    adapter_parameters,
    blocks,
    can_merge,
    decoding,
    dropout_off,
    entered_at,
    first_adapted,
    inputs_recorded,
    last_block_linears,
    merged_for_decoding,
    pad_left,
    positions,
    recomputes,
    save_memory,
    states_recorded,
    switch_off_dropout,
    trunk,
)
from shielded_recrl.rl.rollout import sample
from tiny_ppo import CLOSE, VOCABULARY, adapted, held, letters
from tiny_world import prompts, tiny_llama, with_adapter

HEADS = {"n_layer": 3, "n_head": 4}
MAKERS = {
    "llama": lambda: tiny_llama(VOCABULARY, layers=3),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, **HEADS)),
    "gptj": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=VOCABULARY, n_embd=32, rotary_dim=4, n_positions=64, **HEADS)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, **HEADS)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
    ),
}
ROWS = prompts(4, 3, 9, vocabulary=VOCABULARY)


def inputs() -> dict[str, torch.Tensor]:
    ids, mask = pad_left(ROWS, 0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions(mask),
        "use_cache": False,
    }


def base_named(name: str):
    torch.manual_seed(0)
    return MAKERS[name]().requires_grad_(False).eval()


class TestEnteredAt:
    """The blocks below the first adapted one are the same in every pass, so they are passed once."""

    def moved_last_block(self, name: str, activated: bool = False):
        base = base_named(name)
        if name != "gpt2":
            return adapted(base, last_block=True, activated=activated)
        # Its layers are transformers' own Conv1D.
        names = ["h.2.attn.c_attn", "h.2.mlp.c_proj"]
        config = LoraConfig(target_modules=names, fan_in_fan_out=True, task_type="CAUSAL_LM")
        model = get_peft_model(base, config).eval()
        for key, weight in adapter_parameters(model).items():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, 0, 0.1)
        return model

    @pytest.mark.parametrize("off", [False, True])
    @pytest.mark.parametrize("name", MAKERS)
    def test_it_is_the_whole_pass_bit_for_bit(self, name, off):
        """Also of models whose blocks give tuples."""
        model = self.moved_last_block(name)
        block = first_adapted(model)
        assert block == 2
        with torch.no_grad(), model.disable_adapter(), inputs_recorded(model, block) as entering:
            base = model.get_base_model()(**inputs()).logits
        (states,) = entering
        switched = model.disable_adapter() if off else nullcontext()
        with torch.no_grad(), switched:
            whole = model.get_base_model()(**inputs()).logits
            with entered_at(model, block, states):
                short = model.get_base_model()(**inputs()).logits
            again = model.get_base_model()(**inputs()).logits
        assert torch.equal(short, whole)
        assert torch.equal(again, whole)
        assert torch.equal(whole, base) == off

    def test_it_is_the_whole_pass_of_an_activated_adapter(self):
        model = self.moved_last_block("llama", activated=True)
        with torch.no_grad(), model.disable_adapter(), inputs_recorded(model, 2) as entering:
            model.get_base_model()(**inputs())
        with torch.no_grad(), activation(model, [2, 1, 3, 2]):
            whole = model.get_base_model()(**inputs()).logits
            with entered_at(model, 2, entering[0]):
                assert torch.equal(model.get_base_model()(**inputs()).logits, whole)

    def test_the_blocks_below_are_not_computed(self):
        model = self.moved_last_block("llama")
        with torch.no_grad(), inputs_recorded(model, 2) as entering:
            whole = model.get_base_model()(**inputs()).logits
        garbled = torch.randn_like(entering[0])
        with torch.no_grad(), entered_at(model, 2, garbled):
            got = model.get_base_model()(**inputs()).logits
        assert (got - whole).abs().max() > 0.1

    def test_gradients_are_those_of_the_whole_pass(self):
        model = self.moved_last_block("llama")
        weights = list(adapter_parameters(model).values())
        with torch.no_grad(), inputs_recorded(model, 2) as entering:
            model.get_base_model()(**inputs())
        whole = torch.autograd.grad(
            model.get_base_model()(**inputs()).logits.square().sum(), weights
        )
        with entered_at(model, 2, entering[0]):
            logits = model.get_base_model()(**inputs()).logits
        short = torch.autograd.grad(logits.square().sum(), weights)
        assert all(map(torch.equal, whole, short))

    def test_blocks_come_back_after_an_error(self):
        model = self.moved_last_block("llama")
        with torch.no_grad(), inputs_recorded(model, 2) as entering:
            whole = model.get_base_model()(**inputs()).logits
        with pytest.raises(RuntimeError, match="cut"), entered_at(model, 2, entering[0]):
            raise RuntimeError("cut")
        with torch.no_grad():
            assert torch.equal(model.get_base_model()(**inputs()).logits, whole)

    def test_where_an_adapter_acts_first(self):
        assert first_adapted(with_adapter(tiny_llama())) == 0
        base = tiny_llama(layers=3)
        assert first_adapted(adapted(base, last_block=True)) == 2
        # A layer outside of all blocks acts from the start on.
        config = LoraConfig(r=2, target_modules=["lm_head", *last_block_linears(tiny_llama())])
        assert first_adapted(get_peft_model(tiny_llama(), config)) == 0


class TestMergedForDecoding:
    def logits(self, model):
        with torch.no_grad():
            return model.get_base_model()(**inputs()).logits

    def test_it_computes_what_the_adapter_computes(self):
        model = adapted()
        expected = self.logits(model)
        with merged_for_decoding(model):
            merged = self.logits(model)
        torch.testing.assert_close(merged, expected, atol=CLOSE, rtol=CLOSE)
        with model.disable_adapter():
            assert (merged - self.logits(model)).abs().max() > 0.1

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_base_comes_back_bit_for_bit(self, fails):
        """Also after an error in the middle of decoding."""
        model = adapted()
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        expected, raised = self.logits(model), None
        try:
            with merged_for_decoding(model):
                moved = [n for n, w in model.named_parameters() if not torch.equal(w, before[n])]
                if fails:
                    raise RuntimeError("out of memory")
        except RuntimeError as error:
            raised = error
        assert (raised is not None) == fails
        assert len(moved) == 2 * 7
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
            assert weight.requires_grad == ("lora_" in name)
        assert torch.equal(self.logits(model), expected)

    def test_only_the_active_adapter_is_merged(self):
        model = adapted()
        expected = self.logits(model)
        model.add_adapter("other", model.peft_config["default"])
        for weight in adapter_parameters(model, "other").values():
            torch.nn.init.ones_(weight)
        with merged_for_decoding(model):
            torch.testing.assert_close(self.logits(model), expected, atol=CLOSE, rtol=CLOSE)

    def test_where_it_is_exact_enough(self):
        assert can_merge(adapted())
        assert not can_merge(adapted(tiny_llama(VOCABULARY).bfloat16()))
        assert not can_merge(adapted(activated=True))
        assert not can_merge(tiny_llama())

    def plain(self, base=None, **options):
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | options)
        return get_peft_model(base or tiny_llama(VOCABULARY, attention_bias=True), config)

    @pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
    def test_not_where_the_adapter_is_more_than_a_product(self, options):
        assert can_merge(self.plain())
        assert not can_merge(self.plain(**options))

    @pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
    def test_not_where_another_module_shares_the_weight(self):
        """Inputs would be embedded by the merged weight as well."""
        for tied in (False, True):
            base = tiny_llama(VOCABULARY)
            if tied:
                base.config.tie_word_embeddings = True
                base.tie_weights()
                assert base.lm_head.weight is base.get_input_embeddings().weight
            assert can_merge(self.plain(base, target_modules=["lm_head", "q_proj"])) == (not tied)

    def test_not_where_one_layer_is_rounded(self):
        base = tiny_llama(VOCABULARY)
        base.model.layers[1].self_attn.q_proj.bfloat16()
        assert not can_merge(self.plain(base))


class TestSaveMemory:
    """Blocks are recomputed going backward, with what held when they ran."""

    def gradients(self, model, adapter: str = "default", awake=None):
        """Gradients of an adapter that is switched off by the time of the backward pass."""
        weights = adapter_parameters(model, adapter)
        now = model.active_adapter
        model.set_adapter(adapter)
        with nullcontext() if awake is None else activation(model, awake):
            loss = model.get_base_model()(**inputs()).logits.square().sum()
        model.set_adapter(now)
        for weight in weights.values():
            weight.requires_grad_(True)
        return torch.autograd.grad(loss, list(weights.values()))

    @pytest.mark.parametrize("what", ["plain", "second adapter", "activated"])
    def test_gradients_are_the_same(self, what):
        model = adapted(activated=what == "activated")
        adapter = "default"
        if what == "second adapter":
            torch.manual_seed(1)
            adapter = "second"
            model.add_adapter(adapter, model.peft_config["default"])
            for weight in adapter_parameters(model, adapter).values():
                torch.nn.init.normal_(weight, 0, 0.1)
            switch_off_dropout(model)
        awake = [2, 3, 1, 2] if what == "activated" else None
        expected = self.gradients(model, adapter, awake)
        save_memory(model)
        for got, right in zip(self.gradients(model, adapter, awake), expected, strict=True):
            assert torch.equal(got, right)
        assert all(grad.abs().max() > 0 for grad in expected)

    def test_fewer_activations_are_kept(self):
        """Also after what switches dropout off, and inside of it."""

        def kept(model) -> int:
            return held(lambda: model.get_base_model()(**inputs()))

        plain, saving = (adapted(tiny_llama(VOCABULARY, layers=6)) for _ in range(2))
        save_memory(saving)
        bound = 0.3 * kept(plain)
        assert kept(saving) < bound
        switch_off_dropout(saving)
        assert kept(saving) < bound
        with dropout_off(saving):
            assert kept(saving) < bound
        with decoding(saving):
            pass
        assert kept(saving) < bound

    def test_blocks_alone_recompute(self):
        model = adapted()
        save_memory(model)
        own = list(blocks(model).values())
        assert [module for module in model.modules() if recomputes(module)] == own
        assert [module for module in model.modules() if module.training] == own

    @pytest.mark.parametrize("fails", [False, True])
    def test_no_block_recomputes_while_decoding(self, fails):
        model = adapted()
        save_memory(model)
        before = [module.training for module in model.modules()]
        raised = None
        try:
            with decoding(model):
                assert not any(module.training for module in model.modules())
                if fails:
                    raise RuntimeError("out of memory")
        except RuntimeError as error:
            raised = error
        assert (raised is not None) == fails
        assert [module.training for module in model.modules()] == before

    def test_decoding_writes_the_same(self):
        """A block that recomputes would ignore the cache, and so all tokens but the last."""
        model = adapted()
        uniforms = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).double()
        expected = sample(model, ROWS, letters(), uniforms, 1.0)
        save_memory(model)
        got = sample(model, ROWS, letters(), uniforms, 1.0)
        assert torch.equal(got.ids, expected.ids)
        assert torch.equal(got.logp, expected.logp)

    def test_no_dropout_comes_with_it(self):
        model = adapted()
        save_memory(model)
        dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        assert dropouts
        assert not any(module.training for module in dropouts)
        first, second = (model.get_base_model()(**inputs()).logits for _ in range(2))
        assert torch.equal(first, second)

    def test_a_block_s_own_dropout_is_off(self):
        """OPT's blocks drop out by a function, in training mode whatever their modules' mode is."""
        torch.manual_seed(0)
        base = OPTForCausalLM(
            OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                word_embed_proj_dim=32,
                ffn_dim=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
                dropout=0.5,
            )
        )
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).eval()
        ids, mask = pad_left(ROWS, 0)
        given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        expected = model.get_base_model()(**given).logits
        assert next(iter(blocks(model).values())).dropout == 0.5
        save_memory(model)
        assert all(block.training for block in blocks(model).values())
        assert torch.equal(model.get_base_model()(**given).logits, expected)


def test_recorded_states_are_what_the_trunk_gives():
    model = adapted()
    with torch.no_grad(), states_recorded(model) as states:
        model.get_base_model()(**inputs())
        model.get_base_model()(**inputs())
    with torch.no_grad():
        expected = trunk(model)(**inputs()).last_hidden_state
    assert len(states) == 2
    assert all(torch.equal(state, expected) for state in states)
    model.get_base_model()(**inputs())
    assert len(states) == 2


def test_parameters_of_one_adapter_only():
    model = adapted()
    model.add_adapter("other", model.peft_config["default"])
    own, other = adapter_parameters(model), adapter_parameters(model, "other")
    assert len(own) == len(other) == 2 * 2 * 7
    assert not own.keys() & other.keys()
    assert list(own) == sorted(own)
