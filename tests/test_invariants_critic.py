"""What must hold for the critic whatever the episodes look like. Each test is shown to fail on a broken critic."""

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from trajectories import (
    ACTORS,
    OBSERVATION_SPACE,
    fill,
    make_buffer,
    make_policy,
    next_observations,
    perturbed,
    random_windows,
    rollouts,
)

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.networks import transformer
from sb3_attention_ac.networks.transformer import attention_mask
from sb3_attention_ac.rollout_values import evaluate_rollout
from sb3_attention_ac.type_aliases import TrajectoryWindows

FEW = settings(max_examples=12, deadline=None)
LONG = {"seed": 0, "n_steps": 13, "n_envs": 2, "context_length": 3, "chunk_length": 4, "episode_end": 0.15}


def values_of(policy, windows: TrajectoryWindows, n: int) -> th.Tensor:
    """The critic's values of the last n steps, [N, n]"""
    return policy.critic_output(policy.encode_windows(windows, n).critic).values


def check_causal(policy, windows: TrajectoryWindows, step: int) -> None:
    """V_t depends on nothing after s_t (a_t and r_t are read by token t + 1), and on no other episode."""
    width = windows.episode_ids.shape[1]
    values = values_of(policy, windows, width)
    future = (th.arange(width) > step).expand_as(windows.episode_ids)
    after = values_of(policy, perturbed(windows, future), width)
    th.testing.assert_close(after[:, : step + 1], values[:, : step + 1], rtol=0, atol=1e-6)
    other_episode = windows.episode_ids != windows.episode_ids[:, step : step + 1]
    elsewhere = values_of(policy, perturbed(windows, other_episode), width)
    th.testing.assert_close(elsewhere[:, step], values[:, step], rtol=0, atol=1e-6)


@FEW
@given(st.integers(0, 2**16), st.integers(1, 12), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from([1, 2]), st.data())
@pytest.mark.parametrize("kwargs", [*ACTORS.values(), {"age_input": "sinusoidal"}], ids=[*ACTORS, "ages"])
def test_value_ignores_future_and_other_episodes(kwargs, seed, width, episode_end, n_layers, data):
    policy = make_policy(4, seed=seed, n_layers=n_layers, **kwargs)
    check_causal(policy, random_windows(seed, width, episode_end), data.draw(st.integers(0, width - 1)))


@pytest.mark.parametrize("broken", ["bidirectional", "across episodes"])
def test_a_leaking_critic_is_found(monkeypatch, broken):
    def leaking_mask(episode_ids, n_queries, causal=True, noise_ids=None):
        one_episode = th.zeros_like(episode_ids)
        return (
            attention_mask(episode_ids, n_queries, False)
            if broken == "bidirectional"
            else attention_mask(one_episode, n_queries)
        )

    monkeypatch.setattr(transformer, "attention_mask", leaking_mask)
    with pytest.raises(AssertionError):
        check_causal(make_policy(4), random_windows(0, 12, 0.3), 5)


def test_past_of_the_episode_is_seen():
    """The counterpart: a critic that looks at nothing would pass the tests above."""
    policy, windows = make_policy(4), random_windows(0, 12, 0.0)
    first = th.zeros_like(windows.episode_starts)
    first[:, 0] = True
    values, other = (policy.encode_windows(w, 12).critic.latent for w in (windows, perturbed(windows, first)))
    assert ((values - other).abs().amax(dim=(0, 2)) > 1e-5).all()


def one_by_one(policy, buffer) -> np.ndarray:
    """The value of every step computed alone: its window cut out by hand, its own episode's steps only"""
    data, history = buffer.tensors(), buffer.n_history
    values = np.zeros((buffer.buffer_size, buffer.n_envs))
    for step in range(buffer.buffer_size):
        chunk_start = step // buffer.chunk_length * buffer.chunk_length
        for env in range(buffer.n_envs):
            rows = range(history + chunk_start - buffer.n_context, history + step + 1)
            rows = [row for row in rows if data.episode_ids[row, env] == data.episode_ids[history + step, env]]
            window = data.windows(th.tensor([rows]), th.tensor([[env]]))
            values[step, env] = values_of(policy, window, 1)
    return values


@th.no_grad()
def check_one_by_one(rollout) -> None:
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], seed=rollout["seed"], chunk_length=rollout["chunk_length"])
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = np.ones(rollout["n_envs"], dtype=bool)
    for _ in range(3):  # the second and third rollout have a context
        starts = fill(buffer, rng, starts, rollout["episode_end"])
        batched = evaluate_rollout(policy, buffer, next_observations(buffer, rng)).values
        np.testing.assert_allclose(batched, one_by_one(policy, buffer), atol=1e-5)


@FEW
@given(rollouts)
def test_batched_values_equal_values_one_by_one(rollout):
    check_one_by_one(rollout)


def test_a_critic_that_sees_its_place_in_the_window_is_found(monkeypatch):
    """With absolute positions the value of a step depends on how much of other episodes is in front of it."""
    check_one_by_one(LONG)
    monkeypatch.setattr(transformer, "apply_rotary", lambda x, turns: x + th.cat([turns.real, turns.imag], dim=-1))
    with pytest.raises(AssertionError):
        check_one_by_one(LONG)


@FEW
@given(rollouts)
@th.no_grad()
def test_bootstrap_values_see_their_own_episode(rollout):
    """A terminal observation is worth what it would be worth as the next step of its episode."""
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"], seed=rollout["seed"], chunk_length=rollout["chunk_length"])
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"])
    starts = fill(buffer, rng, np.ones(rollout["n_envs"], dtype=bool), rollout["episode_end"])
    starts = fill(buffer, rng, starts, rollout["episode_end"])
    last_obs = next_observations(buffer, rng)
    rollout_values, data = evaluate_rollout(policy, buffer, last_obs), buffer.tensors()
    last_values, terminal_values = rollout_values.last.values, rollout_values.terminal.values
    asked = [((buffer.buffer_size - 1, env), last_obs[env], last_values[env]) for env in range(buffer.n_envs)]
    asked += [(k, o, v) for (k, o), v in zip(buffer.terminal_observations.items(), terminal_values, strict=True)]
    for (step, env), obs, value in asked:
        last = buffer.n_history + step
        rows = range(last - buffer.n_context + 1, last + 1)
        rows = [row for row in rows if data.episode_ids[row, env] == data.episode_ids[last, env]]
        window = data.windows(th.tensor([[*rows, last]]), th.tensor([[env]]))
        window.observations[0, -1] = th.as_tensor(obs)
        window.previous_actions[0, -1], window.previous_rewards[0, -1] = data.actions[last, env], data.rewards[last, env]
        window.episode_starts[0, -1], window.ages[0, -1] = False, data.ages[last, env] + 1
        alone = values_of(policy, window, 1)
        np.testing.assert_allclose(float(value), float(alone), atol=1e-5)


def as_sb3s(policy) -> dict[str, th.Tensor]:
    """The weights of SB3's policy; a memory actor's first layers read more, with weights of zero"""
    weights, n_features = policy.state_dict(), OBSERVATION_SPACE.shape[0]
    for name in ("policy_net", "value_net") if policy.memory_actor else ():
        name = f"mlp_extractor.{name}.0.weight"
        first, weights[name] = weights[name], weights[name][:, :n_features]
        assert first.shape[1] == 4 * n_features and not first[:, n_features:].any()
        if len(policy.mlp_extractor.policy_net) == 1:  # net_arch=[]: a layer of its own, which changes nothing
            assert th.equal(weights.pop(name), th.eye(n_features)) and not weights.pop(name.replace("weight", "bias")).any()
    return weights


def check_start(net_arch, memory_actor) -> None:
    ours = make_policy(4, perturb=False, net_arch=net_arch, memory_actor=memory_actor, n_layers=2)
    sb3 = ActorCriticPolicy(OBSERVATION_SPACE, ours.action_space, lambda _: 1e-3, net_arch=net_arch)
    sb3.load_state_dict({name: value for name, value in as_sb3s(ours).items() if name in sb3.state_dict()})  # strict
    if ours.value_gate is not None:
        ours.value_gate.gate.fill_(1.0)  # also where attention is heard
    windows = random_windows(0, 9, 0.2)
    flat = windows.observations.flatten(0, 1)
    actor, critic, _ = ours.encode_windows(windows, 9)
    th.testing.assert_close(ours.critic_output(critic).values.flatten(), sb3.predict_values(flat).flatten())
    if actor is not None:
        logits = ours.action_net(actor.latent).flatten(0, 1).log_softmax(-1)
        th.testing.assert_close(logits, sb3.get_distribution(flat).distribution.logits)
    actions = th.arange(len(flat)) % 3
    for a, b in zip(ours.evaluate_actions(flat, actions), sb3.evaluate_actions(flat, actions), strict=True):
        th.testing.assert_close(a, b)
    th.testing.assert_close(ours.predict_values(flat), sb3.predict_values(flat))
    a, b = (policy.predict(flat.numpy(), deterministic=True)[0] for policy in (ours, sb3))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("net_arch", [None, [], [5], {"pi": [4], "vf": [8, 7]}])
@pytest.mark.parametrize("memory_actor", [False, True])
def test_starts_as_sb3s_actor_critic(net_arch, memory_actor):
    check_start(net_arch, memory_actor)


def test_a_residual_that_does_not_start_at_zero_is_found(monkeypatch):
    monkeypatch.setattr(th.nn.init, "zeros_", th.nn.init.uniform_)
    with pytest.raises(AssertionError):
        check_start(None, False)


def naive_gae(buffer, values, last_values, terminal_values, dones) -> np.ndarray:
    """Every advantage as a sum over the rest of its own episode, step by step"""
    gamma, lam = buffer.gamma, buffer.gae_lambda
    terminal = dict(zip(buffer.terminal_observations, terminal_values, strict=True))
    advantages = np.zeros_like(values)
    for env in range(buffer.n_envs):
        for t in range(buffer.buffer_size):
            weight = 1.0
            for k in range(t, buffer.buffer_size):
                last = k == buffer.buffer_size - 1
                ended = dones[env] if last else buffer.episode_starts[k + 1, env]
                if ended:
                    next_value = terminal.get((k, env), 0.0)
                else:
                    next_value = last_values[env] if last else values[k + 1, env]
                advantages[t, env] += weight * (buffer.rewards[k, env] + gamma * next_value - values[k, env])
                weight *= gamma * lam
                if ended:
                    break
    return advantages


def check_gae(rollout, gae_lambda) -> None:
    rng = np.random.default_rng(rollout["seed"])
    policy = make_policy(rollout["context_length"])
    buffer = make_buffer(policy, rollout["n_steps"], rollout["n_envs"], gae_lambda)
    dones = fill(buffer, rng, np.ones(rollout["n_envs"], dtype=bool), rollout["episode_end"])
    values = rng.normal(size=buffer.values.shape).astype(np.float32)
    last_values = rng.normal(size=rollout["n_envs"]).astype(np.float32)
    terminal_values = rng.normal(size=len(buffer.terminal_observations)).astype(np.float32)
    rewards = buffer.rewards.copy()
    buffer.set_values(values, terminal_values=terminal_values)
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)

    expected = naive_gae(buffer, values, last_values, terminal_values, dones)
    np.testing.assert_allclose(buffer.advantages, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(buffer.returns, expected + values, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(buffer.rewards, rewards)

    sb3 = RolloutBuffer(buffer.buffer_size, OBSERVATION_SPACE, policy.action_space, "cpu", gae_lambda, 0.97, buffer.n_envs)
    terminal = dict(zip(buffer.terminal_observations, terminal_values, strict=True))
    for t in range(buffer.buffer_size):
        bonus = np.array([0.97 * terminal.get((t, env), 0.0) for env in range(buffer.n_envs)])
        args = (buffer.observations[t], buffer.actions[t], rewards[t] + bonus, buffer.episode_starts[t])
        sb3.add(*args, th.as_tensor(values[t]), th.zeros(buffer.n_envs))
    sb3.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    np.testing.assert_allclose(buffer.advantages, sb3.advantages, rtol=1e-5, atol=1e-5)


@FEW
@given(rollouts, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_gae_equals_a_naive_loop_and_sb3s(rollout, gae_lambda):
    check_gae(rollout, gae_lambda)


def test_advantages_that_forget_time_limits_are_found(monkeypatch):
    rollout = {**LONG, "episode_end": 0.5}
    check_gae(rollout, 0.95)
    set_values = TrajectoryRolloutBuffer.set_values
    monkeypatch.setattr(TrajectoryRolloutBuffer, "set_values", lambda self, values, terminal_values: set_values(self, values))
    with pytest.raises(AssertionError):
        check_gae(rollout, 0.95)
