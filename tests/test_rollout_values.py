"""Values of a finished rollout are those of its windows, in however many passes."""

import copy

import numpy as np
import pytest
import torch as th
from trajectories import ACTORS, OBSERVATION_SPACE, fill, make_buffer, make_policy, next_observations

from sb3_attention_ac import rollout_values
from sb3_attention_ac.evaluation import evaluate_transitions
from sb3_attention_ac.rollout_values import MAX_STEPS_PER_PASS, evaluate_rollout, update_gates

NETWORKS = {**ACTORS, "no attention": {"n_layers": 0}}


def evaluated(network: str, n_steps=9, n_envs=3, chunk_length=4):
    policy = make_policy(3, chunk_length=chunk_length, **NETWORKS[network])
    buffer, rng = make_buffer(policy, n_steps, n_envs), np.random.default_rng(0)
    starts = fill(buffer, rng, np.ones(n_envs, dtype=bool), 0.3)
    fill(buffer, rng, starts, 0.3)
    last_obs = next_observations(buffer, rng)
    return policy, buffer, last_obs, evaluate_rollout(policy, buffer, last_obs)


@pytest.mark.parametrize("network", NETWORKS)
def test_values_are_those_of_the_windows(network):
    policy, buffer, _, found = evaluated(network)
    assert [length for _, length in buffer.chunks()] == [3] and buffer.n_context == (0 if network == "no attention" else 3)
    assert all(array.dtype == np.float32 and array.shape == (9, 3) for array in found[:3])
    for start in (0, 3, 6):
        batch = buffer.window_samples(np.full(3, start), np.arange(3), 3)
        with th.no_grad():
            critic = policy.critic_output(policy.encode_windows(batch.windows, 3).critic)
        np.testing.assert_allclose(found.values[start : start + 3].T, critic.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.mlp_values[start : start + 3].T, critic.mlp_values, rtol=1e-5, atol=1e-6)
        if critic.residual is not None:
            np.testing.assert_allclose(found.residual[start : start + 3].T, critic.residual, rtol=1e-5, atol=1e-6)
    if network == "MLP actor":
        np.testing.assert_allclose(found.values, found.mlp_values + 0.7 * found.residual, rtol=1e-5, atol=1e-6)
        assert np.abs(found.residual).min() > 0
        flat = th.as_tensor(buffer.observations).flatten(0, 1)
        mlp = evaluate_transitions(policy, flat, th.zeros(len(flat), 1))[0].detach()
        np.testing.assert_allclose(found.mlp_values.ravel(), mlp, rtol=1e-5, atol=1e-6)
    else:
        assert np.array_equal(found.values, found.mlp_values) and not found.residual.any()


def test_while_attention_is_skipped_values_are_the_mlps():
    """Of the rollout, of the observations after it and at time limits"""
    policy, buffer, last_obs, awake = evaluated("MLP actor")
    policy.value_gate.n_negligible.fill_(7)
    resting = evaluate_rollout(policy, buffer, last_obs)
    assert np.array_equal(resting.values, resting.mlp_values) and not resting.residual.any()
    np.testing.assert_allclose(resting.mlp_values, awake.mlp_values, rtol=1e-5, atol=1e-6)
    for rested, attended in ((resting.last, awake.last), (resting.terminal, awake.terminal)):
        assert len(rested.values) > 1 and not th.equal(attended.values, attended.mlp_values)
        th.testing.assert_close(rested.values, attended.mlp_values)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("limit", [1, 13, 1024])
def test_in_however_many_passes(monkeypatch, network, limit):
    _, _, _, whole = evaluated(network)
    bootstrap, asked = rollout_values._bootstrap, []
    monkeypatch.setattr(rollout_values, "MAX_STEPS_PER_PASS", limit)
    monkeypatch.setattr(rollout_values, "_bootstrap", lambda *args: asked.append(len(args[1].ages)) or bootstrap(*args))
    _, buffer, _, parts = evaluated(network)
    for ours, theirs in zip(parts[:3], whole[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(parts.terminal.values) > 2
    for ours, theirs in ((parts.terminal, whole.terminal), (parts.last, whole.last)):
        th.testing.assert_close((ours.values, ours.mlp_values), (theirs.values, theirs.mlp_values))
    width = buffer.n_context + 3
    sizes = [len(batch.returns) for batch, _ in rollout_values._passes(buffer)]
    per_pass = max(limit // width, 1)
    assert sizes == [per_pass] * (9 // per_pass) + [9 % per_pass] * (9 % per_pass > 0)
    # One pass for the last observations, then those of time limits, whose windows have n_context + 1 steps
    n, per_pass = len(parts.terminal.values), max(limit // (buffer.n_context + 1), 1)
    assert asked == [3] + [per_pass] * (n // per_pass) + [n % per_pass] * (n % per_pass > 0)


def test_windows_of_a_pass_fit_the_limit():
    assert MAX_STEPS_PER_PASS == 1024
    slices = list(rollout_values._split(70, 32))
    assert [(part.start, part.stop) for part in slices] == [(0, 32), (32, 64), (64, 96)]
    assert list(rollout_values._split(2, 2000)) == [slice(0, 1), slice(1, 2)]
    assert list(rollout_values._split(32, 32)) == [slice(0, 32)]


def test_chunks_of_two_lengths():
    policy = make_policy(3, chunk_length=4)
    buffer = make_buffer(policy, 10, 2)
    assert buffer.chunks()[1][1] == 2
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), 0.3)
    last_obs = next_observations(buffer, np.random.default_rng(1))
    found = evaluate_rollout(policy, buffer, last_obs)
    batch = buffer.window_samples(np.array([8, 8]), np.arange(2), 2)
    with th.no_grad():
        values = policy.critic_output(policy.encode_windows(batch.windows, 2).critic).values
    np.testing.assert_allclose(found.values[8:].T, values, rtol=1e-5, atol=1e-6)
    assert (found.values != 0).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_observations_that_were_not_acted_upon(network):
    """The last ones, and those of time limits in the buffer's order"""
    policy, buffer, last_obs, found = evaluated(network)
    asked = [((8, env), last_obs[env]) for env in range(3)] + list(buffer.terminal_observations.items())
    values = [*found.last.values.tolist(), *found.terminal.values.tolist()]
    mlp_values = [*found.last.mlp_values.tolist(), *found.terminal.mlp_values.tolist()]
    assert len(asked) == len(values) == len(mlp_values) > 5
    for ((step, env), obs), value, mlp_value in zip(asked, values, mlp_values, strict=True):
        windows = buffer.bootstrap_windows(np.array([step]), np.array([env]), obs[None])
        with th.no_grad():
            critic = policy.critic_output(policy.encode_windows(windows, 1).critic)
        assert value == pytest.approx(critic.values.item(), rel=1e-4, abs=1e-5)
        assert mlp_value == pytest.approx(critic.mlp_values.item(), rel=1e-4, abs=1e-5)
    assert found.last.residual is None and found.terminal.residual is None
    assert found.last.values.shape == (3,)
    assert not found.last.values.requires_grad and not found.terminal.values.requires_grad


def test_a_rollout_without_time_limits():
    policy = make_policy(3)
    buffer = make_buffer(policy, 4, 2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), 0.0)
    found = evaluate_rollout(policy, buffer, np.zeros((2, *OBSERVATION_SPACE.shape), dtype=np.float32))
    assert found.terminal.values.shape == found.terminal.mlp_values.shape == (0,)
    buffer.set_values(found.values, found.mlp_values, found.terminal.values.numpy())
    buffer.compute_returns_and_advantage(found.last.values, np.zeros(2))
    assert np.isfinite(buffer.returns).all()


@pytest.mark.parametrize("rule", ["first", "surprise"])
def test_a_bootstrap_sees_what_the_next_step_will_see(rule):
    """In an episode that goes on for rollouts, the value at a rollout's end is that of the next one's first step"""
    policy = make_policy(3, chunk_length=4, memory_actor=True, n_landmarks=2, landmark_rule=rule)
    buffer, rng, starts = make_buffer(policy, 10, 2), np.random.default_rng(0), np.ones(2, dtype=bool)
    last = None
    for _ in range(4):
        starts = fill(buffer, rng, starts, 0.0, policy.start_acting)
        first = evaluate_rollout(policy, buffer, buffer.observations[0]).values[0]
        if last is not None:
            np.testing.assert_allclose(last, first, rtol=1e-5, atol=1e-6)
        upcoming = copy.deepcopy(rng)  # fill() draws the next observation first
        last = evaluate_rollout(policy, buffer, next_observations(buffer, upcoming)).last.values.numpy()


def gates(monkeypatch, is_closed, **network):
    """A policy with an MLP actor, a rollout with advantages, what it is evaluated as, and what the gate is given"""
    policy, seen = make_policy(3, chunk_length=4, **network), []
    buffer, rng = make_buffer(policy, 9, 3), np.random.default_rng(0)
    fill(buffer, rng, np.ones(3, dtype=bool), 0.3)
    found = evaluate_rollout(policy, buffer, next_observations(buffer, rng))
    buffer.set_values(found.values, found.mlp_values, found.terminal.values.numpy())
    buffer.compute_returns_and_advantage(found.last.values, np.zeros(3))
    monkeypatch.setattr(type(policy.value_gate), "is_closed", is_closed)
    monkeypatch.setattr(policy.value_gate, "update", lambda *given: seen.extend(given))
    monkeypatch.setattr(policy.value_gate, "skip", lambda: seen.append("skipped"))
    return policy, buffer, found, seen


@pytest.mark.parametrize("is_closed", [False, True])
def test_the_gate_is_told_what_attention_adds_and_what_the_mlp_leaves(monkeypatch, is_closed):
    policy, buffer, found, seen = gates(monkeypatch, is_closed)
    monkeypatch.setattr(type(policy), "skips_attention", False)
    logged = update_gates(policy, buffer, found, np.zeros(3))
    assert logged == {"attention_gate": pytest.approx(0.7)}
    np.testing.assert_array_equal(seen[0], found.residual)
    expected = buffer.advantages
    if not is_closed:
        last, terminal = found.last.mlp_values.numpy(), found.terminal.mlp_values.numpy()
        expected = buffer.advantages_under(found.mlp_values, last, np.zeros(3), terminal)
        assert np.abs(expected - buffer.advantages).max() > 1e-3
    np.testing.assert_array_equal(seen[1], expected)


def test_a_gate_whose_attention_is_skipped_is_told_so(monkeypatch):
    policy, buffer, found, seen = gates(monkeypatch, is_closed=True)
    monkeypatch.setattr(type(policy), "skips_attention", True)
    assert update_gates(policy, buffer, found, np.zeros(3)) == {"attention_gate": pytest.approx(0.7)}
    assert seen == ["skipped"]


def test_both_gates_are_logged(monkeypatch):
    policy, buffer, found, _ = gates(monkeypatch, is_closed=True, attention_q=True)
    logged = update_gates(policy, buffer, found, np.zeros(3))
    names = {f"attention_q_{name}" for name in ("beta", "kl", "evidence", "open")}
    assert set(logged) == {"attention_gate", *names} and logged["attention_q_evidence"] == float(policy.attention_q.evidence)
    assert update_gates(make_policy(3, memory_actor=True), buffer, found, np.zeros(3)) == {}
