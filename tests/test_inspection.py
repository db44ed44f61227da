"""The attention that is shown is the attention that is computed."""

import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY, RandomEnv, policy_for, random_env
from trajectories import ACTION_SPACES, OBSERVATION_SPACE

from sb3_attention_ac import AAC
from sb3_attention_ac.inspection import attention_weights, collect_trajectory, plot_attention, trajectory_values
from sb3_attention_ac.networks import transformer

WIDTH = 17  # Two whole episodes of RandomEnv and three steps of a third


def make_model(observations="Box", actions="Discrete", **policy_kwargs):
    env = random_env(observations, actions, n_envs=1)
    model = AAC(policy_for(observations), env, policy_kwargs={**TINY, **policy_kwargs}, **SMALL)
    with th.no_grad():  # What starts at zero takes part
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return model


def seen_whole(model) -> int:
    """Steps from a reset of which each sees all before it: chunks, until one begins more than the context after the reset"""
    n_context, chunk_length = model.policy.architecture.n_context, model.policy.chunk_length
    return next(end for end in itertools.count(chunk_length, chunk_length) if end > n_context)


@pytest.mark.parametrize("share_encoder", [False, True])
@pytest.mark.parametrize("network", ["critic", "actor"])
def test_weights_are_those_of_the_encoder(monkeypatch, network, share_encoder):
    model = make_model(n_layers=2, memory_actor=True, share_encoder=share_encoder)
    windows = collect_trajectory(model, model.get_env(), WIDTH)
    attended = []
    attention = th.nn.functional.scaled_dot_product_attention

    def record(query, keys, values, attn_mask):
        attended.append((values, attention(query, keys, values, attn_mask=attn_mask)))
        return attended[-1][1]

    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", record)
    weights = attention_weights(model.policy, windows, network)
    assert weights.shape == (2, 2, WIDTH, WIDTH)
    # The actor's two blocks run before the critic's two
    of_network = attended[-2:] if network == "critic" else attended[:2]
    for layer, (values, output) in zip(weights, of_network, strict=True):
        th.testing.assert_close(th.as_tensor(layer) @ values[0], output[0], rtol=1e-5, atol=1e-6)

    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    ids = windows.episode_ids[0].numpy()
    forbidden = (ids[:, None] != ids) | np.triu(np.ones((WIDTH, WIDTH), dtype=bool), 1)
    assert len(np.unique(ids)) == 3
    assert (weights[:, :, forbidden] == 0).all()
    assert (weights[:, :, ~forbidden] > 0).all()
    # Nothing stays behind
    assert not any(block._forward_pre_hooks for block in model.policy.modules())


@pytest.mark.parametrize("actions", ACTION_SPACES)
@pytest.mark.parametrize("memory_actor", [False, True])
def test_trajectory_is_what_predict_does(actions, memory_actor):
    model = make_model("Dict", actions, memory_actor=memory_actor)
    windows = collect_trajectory(model, model.get_env())
    width = seen_whole(model)
    assert windows.episode_ids.shape == (1, width)
    assert windows.episode_starts[0].nonzero().flatten().tolist() == list(range(0, width, 7))
    assert (windows.previous_rewards[0, 1:] == 1).all()
    state = None
    for step in range(width - 1):
        obs = {key: value[0, step : step + 1].numpy() for key, value in windows.observations.items()}
        action, state = model.predict(obs, state, windows.episode_starts[:, step].numpy(), deterministic=True)
        expected = model.policy.actions_for_env(windows.previous_actions[:, step + 1].numpy())
        np.testing.assert_allclose(action.reshape(1, -1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_equal(trajectory_values(model.policy, windows).shape, (width,))


class RedEnv(RandomEnv):
    """Images whose first channel is full; channels come last here, and first in the model"""

    def __init__(self):
        super().__init__(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2))

    def step(self, action):
        _, *others = super().step(action)
        return self.reset()[0], *others

    def reset(self, *, seed=None, options=None):
        return np.full((36, 36, 3), [255, 0, 0], np.uint8), {}


@pytest.mark.parametrize("make_env", [RedEnv, lambda: DummyVecEnv([RedEnv])])
def test_images_are_transposed(make_env):
    windows = collect_trajectory(AAC("CnnPolicy", RedEnv(), policy_kwargs=TINY, **SMALL), make_env(), n_steps=4)
    assert windows.observations.shape == (1, 4, 3, 36, 36)
    assert windows.observations.float().mean(dim=(3, 4)).unique(dim=1).tolist() == [[[255.0, 0.0, 0.0]]]


def test_values_of_single_steps():
    """At the first step of an episode, the critic knows as much as ``predict_values`` of a lone observation."""
    model = make_model()
    windows = collect_trajectory(model, RandomEnv(OBSERVATION_SPACE, ACTION_SPACES["Discrete"]), WIDTH)
    starts = windows.episode_starts[0]
    with th.no_grad():
        alone = model.policy.predict_values(windows.observations[0, starts]).flatten()
    np.testing.assert_allclose(trajectory_values(model.policy, windows)[starts], alone, rtol=1e-4, atol=1e-6)


def test_plot(tmp_path):
    starts = np.zeros(6, dtype=bool)
    starts[[0, 4]] = True
    figure = plot_attention(np.full((2, 3, 6, 6), 1 / 6), starts)
    maps = figure.axes[:-1]  # the last one is the colour bar
    assert len(maps) == 6
    for axis in maps:
        assert sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines) == [(0, 3.5), (3.5, 0)]
    figure.savefig(tmp_path / "attention.png")


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize(("context_length", "chunk_length"), [(5, 10), (5, 5), (7, 2)])
def test_an_episode_longer_than_acting_sees_warns(memory_actor, context_length, chunk_length):
    network = {**TINY, "context_length": context_length, "chunk_length": chunk_length, "memory_actor": memory_actor}
    model = AAC("MlpPolicy", "Pendulum-v1", policy_kwargs=network, **SMALL)
    assert model.policy.chunk_length == chunk_length
    seen = seen_whole(model)
    with pytest.warns(UserWarning, match=rf"episode of {seen + 1} steps is longer than the {seen} steps that this model sees"):
        collect_trajectory(model, model.get_env(), seen + 1)
    collect_trajectory(model, model.get_env(), seen)


@pytest.mark.parametrize("context_length", [2, 5, 12])
def test_what_is_collected_is_seen_when_acting(context_length):
    """The latents of a memory actor while it acts are those of the whole window"""
    network = {**TINY, "context_length": context_length, "memory_actor": True, "local_window": 1}
    model = AAC("MlpPolicy", "Pendulum-v1", policy_kwargs=network, **{**SMALL, "n_steps": 20, "batch_size": 20})
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    windows = collect_trajectory(model, model.get_env())
    length = windows.episode_ids.shape[1]
    assert length == seen_whole(model)
    with th.no_grad():
        latent = model.policy.encode_windows(windows, length).stepped.latent
        whole = model.policy.action_parameters(latent[0]).parameters.clamp(-2, 2).numpy()
    state = None
    for step in range(length):
        obs, start = windows.observations[:, step].numpy(), windows.episode_starts[:, step].numpy()
        action, state = model.predict(obs, state, start, deterministic=True)
        np.testing.assert_allclose(action[0], whole[step], rtol=1e-4, atol=1e-5)


def test_nothing_to_inspect():
    model = make_model()
    windows = collect_trajectory(model, model.get_env(), 3)
    with pytest.raises(ValueError, match="actor is an MLP"):
        attention_weights(model.policy, windows, "actor")
    with pytest.raises(ValueError, match="'critic' and 'actor'"):
        attention_weights(model.policy, windows, "policy")
    with pytest.raises(ValueError, match="n_layers=0"):
        attention_weights(make_model(n_layers=0).policy, windows)
    several = DummyVecEnv([lambda: RandomEnv(OBSERVATION_SPACE, ACTION_SPACES["Discrete"])] * 2)
    with pytest.raises(ValueError, match="2 were given"):
        collect_trajectory(model, several)


def test_looking_leaves_the_log_of_the_next_rollout_alone(monkeypatch):
    """What Q_att has done on the way is no rollout's"""
    model = make_model(memory_actor=True, attention_q=True)
    attention_q = model.policy.attention_q
    monkeypatch.setattr(type(attention_q), "is_open", property(lambda self: True))
    collect_trajectory(model, random_env(n_envs=1), WIDTH)
    assert attention_q._tilted == []


@pytest.mark.parametrize(
    "options", [{"memory_actor": True}, {"memory_actor": True, "landmark_rule": "surprise"}, {"attention_q": True}]
)
def test_landmarks_do_not_get_in_the_way(options):
    model = make_model(n_landmarks=3, **options)
    if model.policy.attention_q is not None:
        model.policy.attention_q.evidence.fill_(5.0)
    windows = collect_trajectory(model, model.get_env(), WIDTH)
    assert windows.episode_ids.shape == (1, WIDTH) and windows.n_landmarks == 0
    assert trajectory_values(model.policy, windows).shape == (WIDTH,)


@pytest.mark.parametrize(("sde_sample_freq", "noise"), [(3, [1, 1, 1, 2, 2, 2, 3]), (-1, [1] * 7)])
def test_gsde_shows_the_steps_that_training_sees(sde_sample_freq, noise):
    """Those from before the noise that a step was sampled with"""
    env = random_env("Box", "Box", n_envs=1)
    model = AAC("MlpPolicy", env, policy_kwargs=TINY, use_sde=True, sde_sample_freq=sde_sample_freq, **SMALL)
    windows = collect_trajectory(model, model.get_env(), 7)
    ids = windows.noise_ids[0]
    assert (ids - ids[0] + 1).tolist() == noise
    allowed = (ids[:, None] > ids[None, :]) | th.eye(7, dtype=th.bool)
    assert ((attention_weights(model.policy, windows)[0, 0] > 0) == (allowed & allowed.tril()).numpy()).all()
