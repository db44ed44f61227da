"""Beside an MLP actor the MLP critic is PPO's, and what attention adds to it has to prove itself."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac import AAC
from sb3_attention_ac.value_gate import MARGIN, ValueGate

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 3, "seed": 0, "device": "cpu"}


def trained_on_one_rollout(n_layers: int, clip_range_vf: float | None) -> tuple[AAC, PPO]:
    """Both with the same weights, on the same rollout, in the same minibatches"""
    env = make_vec_env("CartPole-v1", 1, seed=0)  # of several, the buffers have the transitions in another order
    sb3 = PPO("MlpPolicy", env, clip_range_vf=clip_range_vf, **SMALL)
    ours = AAC("MlpPolicy", env, policy_kwargs={"n_layers": n_layers}, clip_range_vf=clip_range_vf, **SMALL)
    ours.learn(64)
    sb3.learn(64)
    sb3.policy.load_state_dict({name: ours.policy.state_dict()[name] for name in sb3.policy.state_dict()})
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
        setattr(sb3.rollout_buffer, name, getattr(ours.rollout_buffer, name).copy())
    sb3.rollout_buffer.generator_ready = False
    fresh = th.optim.Adam(sb3.policy.parameters(), lr=3e-4, eps=1e-5)
    sb3.policy.optimizer = fresh
    for group in ours.policy.optimizer.param_groups:
        for parameter in group["params"]:
            ours.policy.optimizer.state[parameter].clear()
    sb3._current_progress_remaining = ours._current_progress_remaining
    return ours, sb3


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
def test_without_attention_it_is_ppo(clip_range_vf):
    """The same update of actor and critic as SB3's PPO: losses, minibatches, clipping of gradients, Adam."""
    ours, sb3 = trained_on_one_rollout(0, clip_range_vf)
    before = sb3.policy.value_net.weight.clone()
    for model in (ours, sb3):
        np.random.seed(7)
        model.train()
    assert not th.equal(sb3.policy.value_net.weight, before)
    for name, parameter in sb3.policy.state_dict().items():
        th.testing.assert_close(ours.policy.state_dict()[name], parameter, rtol=1e-4, atol=1e-6)


def test_attention_does_not_move_the_mlps():
    ours, _ = trained_on_one_rollout(1, None)
    policy = ours.policy
    windows = next(ours._attention_windows())
    policy.optimizer.zero_grad()
    sum(ours._losses(windows).values()).backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved and all(name.startswith("critic_trunk.") for name in moved)


def test_values_are_a_mixture():
    ours, _ = trained_on_one_rollout(1, None)
    policy = ours.policy
    latents = policy.window_latents(next(ours._attention_windows()).windows, 4).critic
    assert latents.gathered is not None
    mlp, whole = policy.value_net(latents.mlp_latents).squeeze(-1), policy.value_net(latents.latents).squeeze(-1)
    for share in (0.0, 0.25, 1.0):
        policy.value_gate.share.fill_(share)
        values, added = policy.values_and_added(latents)
        th.testing.assert_close(values, (1 - share) * mlp + share * whole)
        th.testing.assert_close(added, whole - mlp)
    assert not th.allclose(mlp, whole)


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.5, 1.0, 2.0, -1.0])
def test_the_share_finds_what_is_true(truth):
    """Returns hold ``truth`` times what attention adds, and noise: the share settles there, less what the margin takes."""
    rng, gate, shares, std = np.random.default_rng(0), ValueGate(), [], 0.5
    for _ in range(200):
        added = rng.normal(size=(256, 8))
        gate.judge(added, (truth - float(gate.share)) * added + std * rng.normal(size=(256, 8)))
        shares.append(float(gate.share))
    expected = truth - MARGIN * (truth**2 + std**2)
    assert abs(np.mean(shares[100:]) - np.clip(expected, 0, 1)) < 0.02


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_less_than_the_margin_is_chance(constant):
    """What explains less than the margin of the advantages' variance stays out, and so does a constant."""
    rng, gate = np.random.default_rng(0), ValueGate()
    for _ in range(50):
        added = constant + rng.normal(size=(256, 8))
        gate.judge(added, added + 6 * rng.normal(size=(256, 8)))
        assert float(gate.share) == 0.0


def test_nothing_added_is_no_evidence():
    gate = ValueGate()
    gate.judge(np.zeros((4, 2)), np.ones((4, 2)))
    assert float(gate.share) == 0.0


def test_the_share_is_saved(tmp_path):
    ours, _ = trained_on_one_rollout(1, None)
    ours.policy.value_gate.share.fill_(0.4)
    ours.save(tmp_path / "model")
    assert float(AAC.load(tmp_path / "model", device="cpu").policy.value_gate.share) == pytest.approx(0.4)


def test_a_memory_actor_has_no_gate():
    model = AAC("MlpPolicy", "CartPole-v1", policy_kwargs={"memory_actor": True}, device="cpu")
    assert model.policy.value_gate is None


@pytest.mark.parametrize(("share", "options", "n_steps"), [(0.0, {}, 1), (0.5, {}, 2), (0.0, {"attention_q": True}, 2)])
def test_attention_that_is_not_heard_learns_half_as_often(share, options, n_steps):
    """Unless something else than a value is learned with it"""
    env, settings = make_vec_env("CartPole-v1", 4, seed=0), {**SMALL, "n_epochs": 1}
    model = AAC("MlpPolicy", env, policy_kwargs=options, **settings).learn(256)
    model.policy.value_gate.share.fill_(share)
    kinds = [type(batch).__name__ for batch in model._minibatches(model._attention_windows())]
    assert kinds.count("TransitionSamples") == 16 and kinds.count("WindowSamples") == n_steps
