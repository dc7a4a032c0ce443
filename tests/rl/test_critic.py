"""Value critics: what they predict, and that policy and critic leave each other alone."""

import pytest
import torch
from safetensors.torch import load_file

from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import blocks, causal_lm
from shielded_recrl.rl.critic import make_critic, predicted
from shielded_recrl.rl.rollout import response_logits, response_states
from tiny_ppo import CLOSE, adapted, make_ppo, weights

KINDS = ("shared", "separate")


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_zero_at_first(kind):
    trajectory, row = make_ppo(critic=kind).generate_trajectory()
    assert not trajectory.values.any()
    # A constant explains nothing.
    assert row["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_a_value_is_the_head_on_a_state_by_hand():
    """h = (3, 1, 1, 1), w = (2, 0, 0, 0), b = 1/2: 3 * 2 / sqrt 4 + 1/2."""
    head = torch.nn.Linear(4, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0, 0.0, 0.0]]))
        head.bias.fill_(0.5)
    assert predicted(head, torch.tensor([[[3.0, 1.0, 1.0, 1.0]]])).tolist() == [[3.5]]


def test_the_shared_critic_reads_the_states_tokens_were_drawn_at():
    trainer = make_ppo()
    for weight in trainer.critic.parameters.values():
        torch.nn.init.normal_(weight)
    trajectory, _ = trainer.generate_trajectory()
    rollout = trajectory.rollout
    with torch.no_grad():
        _, hidden = response_logits(trainer.model, rollout)
        expected = predicted(trainer.critic.head, hidden) * rollout.response
    torch.testing.assert_close(trajectory.values, expected, atol=CLOSE, rtol=CLOSE)
    assert expected.abs().max() > 0.1


def test_the_separate_critic_has_a_trunk_of_its_own():
    """Moved by its own adapter, not by the policy's."""
    trainer = make_ppo(critic="separate")
    model, critic = trainer.model, trainer.critic
    torch.nn.init.normal_(critic.head.weight)
    rollout = trainer.generate_trajectory()[0].rollout

    def values() -> torch.Tensor:
        with torch.no_grad():
            # It reads no state of the policy.
            return trainer.values(rollout, torch.full((1,), torch.nan).expand(8, 6, 1), None)

    before = values()
    with torch.no_grad(), model.disable_adapter():
        _, hidden = response_logits(model, rollout)
        base = predicted(critic.head, hidden) * rollout.response
    torch.testing.assert_close(before, base, atol=CLOSE, rtol=CLOSE)  # its lora_B is 0
    with torch.no_grad():
        for weight in trainer.parameters.values():
            weight.mul_(3)
        torch.testing.assert_close(values(), before, atol=CLOSE, rtol=CLOSE)
        for name, weight in critic.parameters.items():
            if "lora_B" in name:
                weight.fill_(0.1)
    assert (values() - before).abs().max() > 0.1


def test_states_without_logits_are_those_that_logits_are_read_from():
    trainer = make_ppo()
    rollout = trainer.generate_trajectory()[0].rollout
    with torch.no_grad():
        _, expected = response_logits(trainer.model, rollout)
        assert torch.equal(response_states(trainer.model, rollout), expected)


def test_the_separate_critic_computes_no_logits_and_nothing_below_the_entry():
    """And predicts what a whole pass would, bit for bit, with gradients of the same bits."""
    trainer = make_ppo(adapted(last_block=True), critic="separate")
    torch.nn.init.normal_(trainer.critic.head.weight)
    for name, weight in trainer.critic.parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.1)
    trajectory, _ = trainer.generate_trajectory()
    rollout, hidden = trajectory.rollout, trajectory.hidden
    place = rollout.place(torch.arange(8))
    entry = trainer.entry(trajectory.entry, place)
    assert entry[0] == trainer.first_block == 1
    below, last = blocks(trainer.model).values()
    computed = []
    modules = {
        "below": below.self_attn,
        "last": last.self_attn,
        "logits": causal_lm(trainer.model).lm_head,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: computed.append(name))

    def values(entry) -> tuple[torch.Tensor, torch.Tensor]:
        predicted = trainer.critic(rollout.at(place), hidden, entry)
        weights = list(trainer.critic.parameters.values())
        return predicted, torch.cat(
            [grad.flatten() for grad in torch.autograd.grad(predicted.square().sum(), weights)]
        )

    short = values(entry)
    assert computed == ["last"]
    whole = values(None)
    assert computed == ["last", "below", "last"]
    for one, other in zip(short, whole, strict=True):
        assert torch.equal(one, other)
        assert one.abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_leaves_the_policy_alone(kind):
    trainer = make_ppo(critic=kind, value_epochs=3)
    trajectory, _ = trainer.generate_trajectory()
    before = weights(trainer)
    trainer.update_critic(trajectory)
    after = weights(trainer)
    for name in before:
        moved = not torch.equal(before[name], after[name])
        # lora_A moves from the second update on, when lora_B is no longer 0.
        assert moved == (name in trainer.critic.parameters)
    assert all(weight.grad is None for weight in trainer.parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_leaves_the_critic_alone(kind):
    trainer = make_ppo(critic=kind)
    trajectory, _ = trainer.generate_trajectory()
    before = weights(trainer)
    trainer.update_policy(trajectory)
    after = weights(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) != (name in trainer.parameters)
    assert all(weight.grad is None for weight in trainer.critic.parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_both_go_on_wanting_gradients(kind):
    """PEFT freezes an adapter that is switched off, and each step switches both off and on."""
    trainer = make_ppo(critic=kind)
    for _ in range(2):
        trainer.train_step()
        assert all(weight.requires_grad for weight in trainer.trained.values())
        assert trainer.model.active_adapter == "default"
    frozen = [w for n, w in trainer.model.named_parameters() if n not in trainer.trained]
    assert frozen
    assert not any(weight.requires_grad for weight in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_learns_the_returns(kind):
    trainer = make_ppo(
        critic=kind, value_epochs=60, value_learning_rate=0.02, clip_value=10.0, micro_batch=16
    )
    trajectory, _ = trainer.generate_trajectory()
    mask = trajectory.rollout.response
    start = ((trajectory.values - trajectory.returns).square() * mask).sum() / mask.sum() / 2
    assert trainer.update_critic(trajectory)["value_loss"] < 0.5 * start.item()


def test_the_first_step_of_the_head_by_hand():
    """d loss / d bias = mean of V - R; a clipped loss of equal values has that gradient too."""
    trainer = make_ppo(value_epochs=1)
    trainer.value_optimizer = torch.optim.SGD(trainer.critic.parameters.values(), lr=1.0)
    trajectory, _ = trainer.generate_trajectory()
    mask = trajectory.rollout.response
    trainer.update_critic(trajectory)
    mean = (trajectory.returns * mask).sum() / mask.sum()
    assert trainer.critic.head.bias.item() == pytest.approx(mean.item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_adapter_is_the_policy_alone(kind, tmp_path):
    trainer = make_ppo(critic=kind)
    trainer.train_step()
    save_adapter(trainer.model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    own = {name.replace(".default", ""): weight for name, weight in trainer.parameters.items()}
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in own.items())
    assert not (tmp_path / "critic").exists()


def test_dropout_is_off_in_both_adapters():
    """The config asks for dropout; in training rollouts it would make the ratio noise."""
    trainer = make_ppo(critic="separate")
    dropouts = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert {module.p for module in dropouts} == {0.1}
    assert len(dropouts) == 2 * 2 * 7
    assert not any(module.training for module in dropouts)


def test_the_separate_critic_is_drawn_from_its_seed():
    first, same, other = (make_critic("separate", adapted(), seed) for seed in (1, 1, 2))
    for name, weight in first.parameters.items():
        assert torch.equal(weight, same.parameters[name])
        if "lora_A" in name:
            assert not torch.equal(weight, other.parameters[name])


@pytest.mark.parametrize("kind", KINDS)
def test_making_a_critic_draws_from_no_global_generator(kind):
    model = adapted()
    before = torch.get_rng_state()
    make_critic(kind, model, 3)
    assert torch.equal(torch.get_rng_state(), before)
