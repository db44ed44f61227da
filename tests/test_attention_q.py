"""Q_att: the tilt of the action distribution, its bound, its replay in training, and the gate that keeps it shut."""

import numpy as np
import pytest
import torch as th
from sb3_attention_ac.estimates import estimate_rollout
from stable_baselines3.common.evaluation import evaluate_policy
from test_run import ACTION_SPACES as RUN_SPACES
from test_run import SMALL, TINY, random_env
from torch.distributions import kl_divergence
from trajectories import ACTION_SPACES, fill, make_buffer, make_policy, next_observations

from sb3_attention_ac import AAC
from sb3_attention_ac.attention_q import BLOCK, KL_BOUND, OPEN_ABOVE, AttentionQ

ACTORS = {"MLP actor": {}, "memory actor": {"memory_actor": True}, "shared": {"memory_actor": True, "share_encoder": True}}


def opened(policy):
    policy.attention_q.evidence.fill_(OPEN_ABOVE + 1)
    return policy


def tilted_rollout(policy, n_steps=13, n_envs=2, n_rollouts=2):
    """Rollouts acted out step by step, as in ``collect_rollouts``; returns the last one's buffer, tilts and estimates"""
    rng, buffer = np.random.default_rng(0), make_buffer(policy, n_steps, n_envs)
    starts = np.ones(n_envs, dtype=bool)
    for _ in range(n_rollouts):
        actor, tilts = [], []

        def act(obs, episode_starts, actor=actor, tilts=tilts):
            actor[:] = actor or [policy.start_acting(buffer)]
            with th.no_grad():
                decision = actor[0](obs, episode_starts)
            tilts.append(decision.tilt)
            return decision.actions.numpy()

        starts = fill(buffer, rng, starts, 0.15, act)
    buffer.set_offsets(th.stack([tilt.offsets for tilt in tilts]).numpy())
    return buffer, tilts, estimate_rollout(policy, buffer, next_observations(buffer, rng))


@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("actor", ACTORS)
def test_first_ratio_is_one(name, actor):
    policy = opened(make_policy(3, ACTION_SPACES[name], attention_q=True, **ACTORS[actor]))
    buffer, tilts, estimates = tilted_rollout(policy)
    assert min(float(tilt.offsets.abs().max()) for tilt in tilts) > 1e-3
    buffer.set_estimates(estimates.values, estimates.log_probs)
    policy.set_training_mode(True)
    for samples in buffer.get_windows(4):
        evaluation = policy.evaluate_windows(samples.windows, samples.actions, samples.offsets)
        if actor != "MLP actor":
            assert (th.exp(evaluation.log_prob - samples.old_log_prob) - 1).abs().max() < 1e-4
    for transitions, offsets in buffer.get_transitions(4):
        if actor == "MLP actor":
            log_prob = policy.evaluate_actor(transitions.observations, transitions.actions, offsets)[0]
            assert (th.exp(log_prob - transitions.old_log_prob) - 1).abs().max() < 1e-4
            untilted = policy.evaluate_actor(transitions.observations, transitions.actions)[0]
            assert not th.allclose(log_prob, untilted, atol=1e-3)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_predictions_while_acting_are_those_of_the_batched_pass(name):
    """The offsets that were added step by step are those that one pass over the windows gives."""
    policy = opened(make_policy(3, ACTION_SPACES[name], attention_q=True))
    buffer, tilts, _ = tilted_rollout(policy)
    for first, length in buffer.chunks():
        for start in first:
            windows, _ = buffer.windows(np.full(buffer.n_envs, start), np.arange(buffer.n_envs), length)
            with th.no_grad():
                latent_vf = policy.window_latents(windows, length).critic.latents
                for step in range(length):
                    latent_pi = policy.mlp_actor_latent(windows.observations[:, step - length])
                    batched = policy.tilt(latent_vf[:, step], latent_pi)
                    th.testing.assert_close(batched.offsets, tilts[start + step].offsets, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_advantage_is_centred_and_divergence_bounded(name, scale):
    space = ACTION_SPACES[name]
    policy = make_policy(3, space, attention_q=True)
    attention_q, log_std = policy.attention_q, policy.fixed_log_std()
    with th.no_grad():
        attention_q.head[-1].weight.mul_(scale)
        latents, latent_pi = th.randn(1, 6).expand(5_000, 6), th.randn(1, 6).expand(5_000, 6)
        parameters = policy.action_parameters(latent_pi)
        actions = policy.sample_actions(latent_pi).reshape(5_000, -1)
        advantages = attention_q.advantages(latents, actions, parameters, log_std)
        assert advantages.mean().abs() < 5 * advantages.std() / 5_000**0.5
        weights = attention_q.head(latents)
        variance = attention_q._variance(weights, parameters)[0]
        assert advantages.var() == pytest.approx(float(variance), rel=0.1)
        tilt = attention_q.tilt(latents[:1], parameters[:1], log_std)
        divergence = attention_q.divergence(tilt, log_std)
        assert divergence <= 1.5 * KL_BOUND
        exact = [policy.action_distribution(latent_pi[:1], offsets).distribution for offsets in (tilt.offsets, None)]
        if name == "MultiDiscrete":
            expected = sum(kl_divergence(new, old) for new, old in zip(*exact, strict=True))
        else:
            expected = kl_divergence(*exact).sum()
        th.testing.assert_close(divergence.sum(), expected.sum())
        assert tilt.beta <= 1
        # log pi' - log pi = beta * A + const: what remains after the tilted preference does not depend on the action
        action = policy.action_distribution(latent_pi, tilt.offsets.expand(5_000, -1)).sample()
        new, old = (policy.action_distribution(latent_pi, o).log_prob(action) for o in (tilt.offsets.expand(5_000, -1), None))
        preferred = attention_q.advantages(latents, action.reshape(5_000, -1), parameters, log_std)
        assert (new - old - tilt.beta * preferred).std() < 1e-3


def gate_of(expected_of) -> AttentionQ:
    """Sixty rollouts of advantages, correlated over ten steps or so, beside predictions"""
    rng, attention_q = np.random.default_rng(0), AttentionQ(6, ACTION_SPACES["Discrete"], 3)
    opened_once = False
    for _ in range(60):
        noise = rng.normal(size=(20 * BLOCK, 1))
        advantages = sum(0.9**k * np.roll(noise, k, axis=0) for k in range(30))
        attention_q.judge(expected_of(rng, advantages), advantages)
        opened_once |= attention_q.is_open
    attention_q.opened_once = opened_once
    return attention_q


def test_gate_stays_shut_for_random_predictions():
    assert not gate_of(lambda rng, advantages: rng.normal(size=advantages.shape)).opened_once
    assert not gate_of(lambda rng, advantages: np.zeros(advantages.shape)).opened_once
    assert not gate_of(lambda rng, advantages: -advantages).opened_once


def test_gate_opens_for_good_predictions():
    assert gate_of(lambda rng, advantages: 0.2 * advantages + rng.normal(size=advantages.shape)).is_open


@pytest.mark.parametrize("actor", ACTORS)
def test_shut_gate_changes_nothing(actor):
    policy = make_policy(3, attention_q=True, **ACTORS[actor])
    assert policy.remembers == (actor != "MLP actor")
    buffer = make_buffer(policy, 5, 2)
    fill(buffer, np.random.default_rng(0), np.ones(2, dtype=bool), 0.2)
    decision = policy.start_acting(buffer)(th.zeros(2, 3), np.zeros(2, dtype=bool))
    assert decision.tilt is None


@pytest.mark.parametrize(
    ("name", "actor"), [*((name, "MLP actor") for name in RUN_SPACES), ("Box", "memory actor"), ("Discrete", "shared")]
)
def test_runs_and_is_logged(name, actor, tmp_path):
    model = AAC(
        "MlpPolicy", random_env(actions=name), policy_kwargs={**TINY, **ACTORS[actor], "attention_q": True}, **SMALL
    ).learn(20)
    assert not model.policy.tilts
    opened(model.policy)
    model.learn(20)
    logged = model.logger.name_to_value
    assert logged["rollout/attention_q_kl"] <= 1.5 * KL_BOUND
    for key in ("rollout/attention_q_beta", "rollout/attention_q_evidence", "train/attention_q_loss"):
        assert np.isfinite(logged[key])
    opened(model.policy)
    model.save(tmp_path / "model.zip")
    loaded = AAC.load(tmp_path / "model.zip", env=random_env(actions=name))
    assert loaded.policy.tilts
    obs = loaded.env.reset()
    actions, state = model.predict(obs, deterministic=True)
    others, _ = loaded.predict(obs, deterministic=True)
    assert state is not None
    np.testing.assert_array_equal(actions, others)
    evaluate_policy(loaded, random_env(actions=name), n_eval_episodes=2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="attention_q=True needs attention, but n_layers=0"):
        make_policy(3, attention_q=True, n_layers=0)
    with pytest.raises(ValueError, match="attention_q=True was given with use_sde=True"):
        make_policy(3, ACTION_SPACES["Box"], attention_q=True, use_sde=True)
