"""MiniGrid's view as a vector, and the network that reads it."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from rl_zoo3 import exp_manager
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_attention_ac.envs import minigrid
from sb3_attention_ac.envs.minigrid import MiniGridOneHot, MiniGridView

pytest.importorskip("minigrid")
TASK = "MiniGrid-MemoryS7-v0"


@pytest.mark.parametrize("direction", [False, True])
def test_the_view_is_the_image_without_the_text(direction):
    plain = gym.make(TASK)
    env = MiniGridView(gym.make(TASK), direction)
    assert env.observation_space.shape == (7 * 7 * 3 + direction,) and env.action_space.n == 7
    seen, _ = env.reset(seed=3)
    expected, _ = plain.reset(seed=3)
    plain.action_space.seed(0)
    for _ in range(60):
        np.testing.assert_array_equal(seen[:147].reshape(7, 7, 3), expected["image"])
        assert not direction or seen[147] == expected["direction"]
        assert env.observation_space.contains(seen)
        action = plain.action_space.sample()
        (seen, reward, *ends, _), (expected, other_reward, *other_ends, _) = env.step(action), plain.step(action)
        assert reward == other_reward and ends == other_ends
        if any(ends):
            seen, expected = env.reset()[0], plain.reset()[0]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")  # it is a wrapper
def test_gymnasium_accepts_it():
    check_env(MiniGridView(gym.make(TASK).unwrapped), skip_render_check=True)


def test_success_is_a_reward_at_the_end():
    env = MiniGridView(gym.make("MiniGrid-Empty-5x5-v0"))
    env.reset(seed=0)
    forward, right = 2, 1
    for action in (forward, forward, right, forward):
        assert "is_success" not in env.step(action)[-1]
    assert env.step(forward)[-1]["is_success"] is True
    env.reset()
    infos = [env.step(right)[-1] for _ in range(env.unwrapped.max_steps)]
    assert infos[-1]["is_success"] is False


def test_a_step_into_lava_is_no_success():
    env = MiniGridView(gym.make("MiniGrid-LavaGapS5-v0"))
    env.action_space.seed(0)
    env.reset(seed=0)
    terminated, reward = False, 1
    while not terminated or reward > 0:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if (terminated and reward > 0) or truncated:
            env.reset()
    assert info["is_success"] is False


def test_other_observations_are_refused():
    with pytest.raises(ValueError, match="MiniGrid's Dict observation"):
        MiniGridView(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="MiniGridView's observation"):
        MiniGridOneHot(spaces.Box(0, 1, (5,)))
    with pytest.raises(ValueError, match="n_frames=2"):
        MiniGridOneHot(MiniGridView(gym.make(TASK)).observation_space, n_frames=2)


@pytest.mark.parametrize(("view", "direction", "frames"), [(7, False, 1), (3, True, 1), (5, False, 4), (7, True, 2)])
def test_the_network_tells_every_object_colour_state_direction_and_frame_apart(view, direction, frames):
    env = MiniGridView(gym.make(TASK, agent_view_size=view), direction)
    stacked = spaces.Box(
        np.tile(env.observation_space.low, frames), np.tile(env.observation_space.high, frames), dtype=np.uint8
    )
    network = MiniGridOneHot(stacked, features_dim=16, n_frames=frames)
    network.requires_grad_(False)
    for parameter in network.parameters():
        parameter.abs_()  # nothing is lost in a ReLU
    high = th.as_tensor(stacked.high.astype(np.float32))
    codes = th.diag(high)  # each entry alone at its highest value, all others 0
    features = network(th.cat([codes, th.zeros(1, len(high))]))
    assert features.shape == (len(high) + 1, 16)
    assert len(th.unique(features, dim=0)) == len(features)


def test_the_network_sees_categories_not_sizes():
    """Object 5 (key) is no farther from 6 (ball) than from 1 (empty): one-hot."""
    network = MiniGridOneHot(MiniGridView(gym.make(TASK)).observation_space, n_filters=(4, 4))
    seen = []
    network.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    views = th.zeros(3, 147)
    views[:, 72] = th.tensor([5.0, 6.0, 1.0])  # the object of the cell in the middle
    network(views)
    channels = seen[0]
    assert channels.shape == (3, 21, 7, 7)
    np.testing.assert_array_equal(channels.sum(dim=1), np.full((3, 7, 7), 3.0))  # one object, colour and state each
    assert [int(channels[i, :11, 3, 3].argmax()) for i in range(3)] == [5, 6, 1]


def test_normalized_views_are_refused_in_words():
    venv = make_vec_env(TASK, n_envs=2, wrapper_class=MiniGridView, seed=0)
    with pytest.raises(ValueError, match=r"small integers, but there is -.*: VecNormalize\(norm_obs=False\)"):
        MiniGridOneHot(venv.observation_space)(th.full((2, 147), -1.5))


def test_sb3_leaves_it_untouched():
    venv = VecFrameStack(make_vec_env(TASK, n_envs=2, wrapper_class=MiniGridView, seed=0), 2)
    venv.reset()
    observations, *_ = venv.step(np.array([0, 1]))
    views = preprocess_obs(obs_as_tensor(observations, "cpu"), venv.observation_space)
    assert views.dtype == th.float32 and views.shape == (2, 2 * 147)
    np.testing.assert_array_equal(views, observations)
    assert MiniGridOneHot(venv.observation_space, n_frames=2)(views).shape == (2, 128)


@pytest.mark.slow
def test_ppo_learns_with_it():
    venv = VecFrameStack(make_vec_env(TASK, n_envs=2, wrapper_class=MiniGridView, seed=0), 2)
    kwargs = {"features_extractor_class": MiniGridOneHot, "features_extractor_kwargs": {"n_frames": 2}, "net_arch": [8]}
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=16, n_epochs=1, policy_kwargs=kwargs, device="cpu")
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(16)
    assert model.get_env().observation_space.shape == (2 * 147,)  # neither transposed nor taken for a picture
    after = model.policy.features_extractor.parameters()
    assert all(not th.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_documented_configuration_is_one():
    entries = yaml.safe_load(minigrid.__doc__.split("::\n")[1].split("\n\nFor PPO")[0])
    (task, entry), *_ = entries.items()
    env = get_wrapper_class(entry)(gym.make(task))
    # As RL Zoo does it
    kwargs = eval(entry["policy_kwargs"], vars(exp_manager))
    assert kwargs["features_extractor_class"](env.observation_space).features_dim == 128
    assert eval(entry["normalize"]) == {"norm_obs": False, "norm_reward": True}
