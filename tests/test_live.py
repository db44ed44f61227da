"""The live prediction: it sees no future, skips the borders of episodes, and learns a real environment."""

import numpy as np
import pytest
import torch as th
from sb3_attention_ac.live import predict_next
from stable_baselines3.common.env_util import make_vec_env
from test_invariants_critic import perturbed, random_windows
from test_run import SMALL, TINY, random_env
from trajectories import ACTION_SPACES, make_policy

from sb3_attention_ac import AAC
from sb3_attention_ac.auxiliary import normalized
from sb3_attention_ac.inspection import collect_trajectory
from sb3_attention_ac.trajectory import TrajectoryWindows, encode_actions


def test_expectations_do_not_change_with_what_happens_later():
    policy, windows = make_policy(4, aux_targets=("live",)), random_windows(0, 12, 0.3)
    actions = th.zeros(4, 12, 1)
    expected = predict_next(policy, windows, actions)
    future = (th.arange(12) > 5).expand_as(windows.episode_ids)
    later = predict_next(policy, perturbed(windows, future), actions)
    for a, b in zip(expected, later, strict=True):
        th.testing.assert_close(a[:, :6], b[:, :6], rtol=0, atol=1e-5)
        assert not th.allclose(a[:, 6:], b[:, 6:])
    other = predict_next(policy, windows, actions + 1)
    assert not th.allclose(other.rewards, expected.rewards)


@pytest.mark.parametrize(("new_episode", "same"), [(True, True), (False, False)])
def test_the_first_observation_of_the_next_episode_is_no_target(new_episode, same):
    policy, windows = make_policy(4, aux_targets=("live",)), random_windows(0, 6, 0.0)
    policy.live.eval()
    windows.episode_starts[:, -1] = new_episode
    other = windows._replace(observations=windows.observations.clone())
    other.observations[:, -1] = 5.0
    losses = [policy.live.losses(w, policy.window_latents(w, 4).remembered, policy.action_space) for w in (windows, other)]
    assert th.equal(*(loss["live_observation"].loss for loss in losses)) == same


@pytest.mark.parametrize("episode_end", [0.0, 0.4, 1.0])
def test_errors_are_means_over_the_steps_that_go_on(episode_end):
    """A loss of the observation is the mean over steps of the mean over features; 0 where no step goes on."""
    policy, windows = make_policy(4, aux_targets=("live",)), random_windows(0, 6, episode_end)
    windows.episode_starts[:, 1:] |= episode_end == 1.0
    live, remembered = policy.live.eval(), policy.window_latents(windows, 6).remembered
    loss, baseline = live.losses(windows, remembered, policy.action_space)["live_observation"]
    features = normalized(live.features_scale, remembered.features)
    actions = encode_actions(windows.previous_actions[:, 1:], policy.action_space)
    expected = live(remembered.gathered[:, :-1], features[:, :-1], actions)
    changes, goes_on = features[:, 1:] - features[:, :-1], ~windows.episode_starts[:, 1:]
    for error, total in ((expected.features - changes, loss), (changes, baseline)):
        mean = error.square().mean(-1)[goes_on].mean() if goes_on.any() else th.tensor(0.0)
        th.testing.assert_close(total, mean)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_logged_beside_their_baselines(name):
    env = random_env(actions=name)
    model = AAC("MlpPolicy", env, aux_loss=["live", "reward"], policy_kwargs=TINY, **SMALL).learn(40)
    logged = model.logger.name_to_value
    for key in ("live_reward", "live_observation", "reward"):
        assert np.isfinite(logged[f"train/aux_{key}_loss"]) and np.isfinite(logged[f"train/aux_{key}_baseline"])


@pytest.mark.parametrize("network", [{}, {"share_encoder": True}, {"share_features_extractor": False}])
def test_it_teaches_the_encoder_that_the_actor_reads_and_no_head(network):
    policy = make_policy(4, aux_targets=("live",), memory_actor=True, **network)
    windows = random_windows(0, 12, 0.3)
    for latents in (policy.window_latents(windows, 8), policy.evaluate_memory_actor(windows, th.zeros(4, 8, 1))):
        losses = policy.live.losses(windows, latents.remembered, policy.action_space)
        policy.zero_grad()
        sum(loss for loss, _ in losses.values()).backward()
        reads = policy.actor_trunk.encoder.read
        assert reads.weight.grad.abs().sum() > 0
        if not network.get("share_encoder"):
            assert all(parameter.grad is None for parameter in policy.critic_trunk.encoder.parameters())
        for layer in (policy.action_net, policy.value_net, policy.actor_trunk.write):
            assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("network", "given", "aux_loss", "aux_coef"),
    [
        ({}, {}, None, 0.1),
        ({"memory_actor": True}, {}, "live", 1.0),
        ({"memory_actor": True}, {"aux_loss": None}, None, 0.1),
        ({"memory_actor": True}, {"aux_coef": 0.3}, "live", 0.3),
        ({"memory_actor": True}, {"aux_loss": ["live", "reward"]}, ["live", "reward"], 0.1),
        ({}, {"aux_loss": ["live"]}, ["live"], 1.0),
    ],
)
def test_a_memory_actor_has_it_by_default(tmp_path, network, given, aux_loss, aux_coef):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **network}, **SMALL, **given)
    assert (model.aux_loss, model.aux_coef) == (aux_loss, aux_coef)
    assert (model.policy.live is not None) == ("live" in (aux_loss or ()))
    model.save(tmp_path / "model")
    again = AAC.load(tmp_path / "model", aux_loss="auto", aux_coef=None)  # as in the file, and by default
    assert again.aux_loss == aux_loss and again.aux_coef == (1.0 if again.policy.aux_targets == ("live",) else 0.1)


def test_a_policy_without_it_says_so():
    policy, windows = make_policy(4, aux_targets=("reward",)), random_windows(0, 12, 0.3)
    with pytest.raises(ValueError, match=r"has the targets \['reward'\]: train with aux_loss=\['live'\]"):
        predict_next(policy, windows, th.zeros(4, 12, 1))


@pytest.mark.slow
def test_predicts_episodes_it_has_not_learned_from():
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    options = {"n_steps": 256, "batch_size": 64, "learning_rate": 1e-3, "gamma": 0.9, "seed": 0, "device": "cpu"}
    model = AAC("MlpPolicy", env, aux_loss="live", aux_coef=1.0, **options).learn(20_480)
    # Several: one that starts upright has hardly any variance to explain
    episodes = [collect_trajectory(model, make_vec_env("Pendulum-v1", seed=1000 + i), n_steps=200) for i in range(5)]
    windows = TrajectoryWindows(*(th.cat(parts) for parts in zip(*episodes, strict=True)))
    actions = windows.previous_actions[:, 1:]
    before = windows._replace(
        **{name: getattr(windows, name)[:, :-1] for name in windows._fields},
    )
    expected = predict_next(model.policy, before, actions)
    rewards, observations = windows.previous_rewards[:, 1:], windows.observations[:, 1:]
    assert (expected.rewards - rewards).square().mean() < 0.1 * rewards.var()
    copied = (windows.observations[:, :-1] - observations).square().mean()
    assert (expected.features - observations).square().mean() < 0.9 * copied  # as for the masked prediction
