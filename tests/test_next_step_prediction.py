"""The next-step prediction: it sees no future, skips the borders of episodes, and learns a real environment."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from test_run import SMALL, TINY, random_env
from trajectories import ACTION_SPACES, ACTORS, make_policy, perturbed, random_windows

from sb3_attention_ac import AAC
from sb3_attention_ac.auxiliary.next_step_prediction import NextStepPrediction
from sb3_attention_ac.inspection import collect_trajectory, predict_next
from sb3_attention_ac.networks.preprocessing import encode_actions
from sb3_attention_ac.type_aliases import AuxiliaryLoss, TrajectoryWindows


def losses_of(policy, windows: TrajectoryWindows, n: int, skip_critic: bool = False) -> dict[str, AuxiliaryLoss]:
    encoded = policy.encode_windows(windows, n, skip_critic)
    actions = encode_actions(windows.previous_actions, policy.action_space)
    return policy.next_step_prediction.losses(windows, encoded.stepped.hidden, encoded.features, actions)


def test_expectations_do_not_change_with_what_happens_later():
    policy, windows = make_policy(4, aux_targets=("next_step",)), random_windows(0, 12, 0.3)
    actions = th.zeros(4, 12, 1)
    expected = predict_next(policy, windows, actions)
    future = (th.arange(12) > 5).expand_as(windows.episode_ids)
    later = predict_next(policy, perturbed(windows, future), actions)
    for a, b in zip(expected, later, strict=True):
        th.testing.assert_close(a[:, :6], b[:, :6], rtol=0, atol=1e-5)
        assert not th.allclose(a[:, 6:], b[:, 6:])
    other = predict_next(policy, windows, actions + 1)
    assert not th.allclose(other.rewards, expected.rewards)


def test_predictions_are_in_the_units_of_rewards_and_features():
    policy, windows = make_policy(4, aux_targets=("next_step",)), random_windows(0, 6, 0.3)
    head = policy.next_step_prediction
    head.reward_normalizer.running_mean.fill_(5.0)
    head.reward_normalizer.running_var.fill_(4.0)
    head.features_normalizer.running_mean.fill_(-1.0)
    head.features_normalizer.running_var.fill_(9.0)
    actions = th.ones(4, 3, 1)
    expected = predict_next(policy, windows, actions)
    hidden = policy.encode_windows(windows, 3).stepped.hidden
    features = windows.observations[:, -3:]
    rewards, changes = head(hidden, (features + 1) / 3, encode_actions(actions, policy.action_space))
    th.testing.assert_close(expected.rewards, 5 + 2 * rewards)
    th.testing.assert_close(expected.features, features + 3 * changes)
    assert expected.rewards.shape == (4, 3) and expected.features.shape == (4, 3, 3)


def test_it_is_a_product_of_the_past_and_the_action():
    head = NextStepPrediction(4, 2, 3)
    hidden, features, actions = th.randn(5, 6, 4), th.randn(5, 6, 3), th.randn(5, 6, 2)
    joint = th.tanh(head.fc(th.cat([hidden, features, actions], -1))) * (
        actions @ head.action_gate.weight.T + head.action_gate.bias
    )
    rewards, change = head(hidden, features, actions)
    th.testing.assert_close(rewards, head.reward(joint)[..., 0])
    th.testing.assert_close(change, head.change(joint))


@pytest.mark.parametrize(("new_episode", "same"), [(True, True), (False, False)])
def test_the_first_observation_of_the_next_episode_is_no_target(new_episode, same):
    policy, windows = make_policy(4, aux_targets=("next_step",)), random_windows(0, 6, 0.0)
    windows.episode_starts[:, -1] = new_episode
    other = windows._replace(observations=windows.observations.clone())
    other.observations[:, -1] = 5.0
    losses = [losses_of(policy, w, 4) for w in (windows, other)]
    assert th.equal(*(loss["next_observation"].loss for loss in losses)) == same


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("n", [2, 4, 6])
@pytest.mark.parametrize("episode_end", [0.0, 0.4, 1.0])
def test_errors_are_means_over_the_steps_that_go_on(episode_end, n, training):
    """A loss of the observation is the mean over steps of the mean over features; 0 where no step goes on."""
    policy, windows = make_policy(4, aux_targets=("next_step",)), random_windows(0, 6, episode_end)
    windows.episode_starts[:, 1:] |= episode_end == 1.0
    head = policy.next_step_prediction.train(training)
    losses = losses_of(policy, windows, n)
    hidden, features = policy.encode_windows(windows, n).stepped.hidden, windows.observations[:, -n:]
    rewards = windows.previous_rewards[:, -n + 1 :]
    if training:
        features = (features - features.mean((0, 1))) / features.std((0, 1), correction=0)
        rewards = (rewards - rewards.mean()) / rewards.std(correction=0)
    actions = encode_actions(windows.previous_actions[:, -n + 1 :], policy.action_space)
    expected = head(hidden[:, :-1], features[:, :-1], actions)
    changes, goes_on = features[:, 1:] - features[:, :-1], ~windows.episode_starts[:, -n + 1 :]
    loss, baseline = losses["next_observation"]
    for error, total in ((expected.features - changes, loss), (changes, baseline)):
        mean = error.square().mean(-1)[goes_on].mean() if goes_on.any() else th.tensor(0.0)
        th.testing.assert_close(total, mean)
    th.testing.assert_close(losses["next_reward"].loss, (expected.rewards - rewards).square().mean())
    th.testing.assert_close(losses["next_reward"].baseline, rewards.square().mean())


def test_a_window_of_one_step_has_no_next_one():
    policy = make_policy(4, aux_targets=("next_step",))
    assert losses_of(policy, random_windows(0, 6, 0.3), 1) == {}


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_logged_beside_their_baselines(name):
    env = random_env(actions=name)
    model = AAC("MlpPolicy", env, aux_loss=["next_step", "reward"], policy_kwargs=TINY, **SMALL).learn(40)
    logged = model.logger.name_to_value
    for key in ("next_reward", "next_observation", "reward"):
        assert np.isfinite(logged[f"train/aux_{key}_loss"]) and np.isfinite(logged[f"train/aux_{key}_baseline"])


@pytest.mark.parametrize("network", [{}, {"share_encoder": True}, {"share_features_extractor": False}])
@pytest.mark.parametrize("skip_critic", [False, True])
def test_it_teaches_the_encoder_that_the_actor_reads_and_no_head(network, skip_critic):
    policy = make_policy(4, aux_targets=("next_step",), memory_actor=True, **network)
    losses = losses_of(policy, random_windows(0, 12, 0.3), 8, skip_critic)
    sum(loss for loss, _ in losses.values()).backward()
    assert policy.actor_network.encoder.input_proj.weight.grad.abs().sum() > 0
    if not network.get("share_encoder"):
        assert all(parameter.grad is None for parameter in policy.critic_network.encoder.parameters())
    for layer in (policy.action_net, policy.value_net, policy.actor_network.output_proj):
        assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("network", "given", "aux_loss", "aux_coef"),
    [
        ({}, {}, None, None),
        ({"memory_actor": True}, {}, ["next_step"], 1.0),
        ({"memory_actor": True}, {"aux_loss": None}, None, None),
        ({"memory_actor": True}, {"aux_coef": 0.3}, ["next_step"], 0.3),
        ({"memory_actor": True}, {"aux_loss": ["next_step", "reward"]}, ["next_step", "reward"], 0.1),
        ({}, {"aux_loss": ["next_step"]}, ["next_step"], 1.0),
        ({}, {"aux_loss": "next_step"}, "next_step", 1.0),
        ({}, {"aux_loss": "live"}, "live", 1.0),
        ({}, {"aux_loss": ["live", "reward"]}, ["live", "reward"], 0.1),
    ],
)
def test_a_memory_actor_has_it_by_default(tmp_path, network, given, aux_loss, aux_coef):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **network}, **SMALL, **given)
    assert (model.aux_loss, model.aux_coef) == (aux_loss, aux_coef)
    assert (model.policy.next_step_prediction is not None) == any(name in str(aux_loss) for name in ("next_step", "live"))
    model.save(tmp_path / "model")
    again = AAC.load(tmp_path / "model", aux_loss="auto", aux_coef=None)  # as in the file, and by default
    assert again.aux_loss == aux_loss and again.aux_coef == {None: None, 0.3: 1.0}.get(aux_coef, aux_coef)


@pytest.mark.parametrize("network", [{}, {"memory_actor": True}])
def test_a_model_loads_as_it_was_saved_without_advice(tmp_path, network):
    """Warnings are errors here: what was chosen by default is nothing to warn about."""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **network}, **SMALL)
    model.save(tmp_path / "model")
    again = AAC.load(tmp_path / "model")
    assert (again.aux_loss, again.aux_coef) == (model.aux_loss, model.aux_coef)


@pytest.mark.parametrize("actor", ACTORS)
def test_the_width_of_what_it_reads_is_that_of_the_network_that_acts(actor):
    policy = make_policy(4, aux_targets=("next_step",), **ACTORS[actor])
    assert policy.next_step_prediction.fc.in_features == 8 + 3 + 3  # hidden states, features, encoded actions


def test_a_policy_without_it_says_so():
    policy, windows = make_policy(4, aux_targets=("reward",)), random_windows(0, 12, 0.3)
    with pytest.raises(ValueError, match=r"no next-step prediction \(targets: reward\): train with aux_loss='next_step'"):
        predict_next(policy, windows, th.zeros(4, 12, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:An episode of 200 steps is longer")
def test_predicts_episodes_it_has_not_learned_from():
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    options = {"n_steps": 256, "batch_size": 64, "learning_rate": 1e-3, "gamma": 0.9, "seed": 0, "device": "cpu"}
    model = AAC("MlpPolicy", env, aux_loss="next_step", aux_coef=1.0, **options).learn(20_480)
    # Several, by the policy as it acts in training: one that keeps upright has hardly any variance to explain
    envs = [make_vec_env("Pendulum-v1", seed=1000 + i) for i in range(5)]
    episodes = [collect_trajectory(model, env, n_steps=200, deterministic=False) for env in envs]
    windows = episodes[0].map(lambda *parts: th.cat(parts), *episodes[1:])
    actions = windows.previous_actions[:, 1:]
    before = windows.first(199)
    expected = predict_next(model.policy, before, actions)
    rewards, observations = windows.previous_rewards[:, 1:], windows.observations[:, 1:]
    assert (expected.rewards - rewards).square().mean() < 0.1 * rewards.var()
    std = observations.std((0, 1))  # each feature in its own units, as it is learned
    copied = ((windows.observations[:, :-1] - observations) / std).square().mean()
    assert ((expected.features - observations) / std).square().mean() < 0.7 * copied
