"""MinAtar's games as images with channels first, and the network of its paper."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from rl_zoo3 import exp_manager
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor

pytest.importorskip("minatar", exc_type=ImportError)
from sb3_attention_ac.envs import minatar
from sb3_attention_ac.envs.minatar import MinAtarCNN, MinAtarImage

GAMES = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


@pytest.mark.parametrize(("game", "n_channels"), GAMES.items())
def test_the_image_is_the_games_with_channels_first(game, n_channels):
    plain, env = gym.make(f"MinAtar/{game}-v1"), MinAtarImage(gym.make(f"MinAtar/{game}-v1"))
    assert env.observation_space == spaces.Box(0, 1, (n_channels, 10, 10), dtype=np.uint8)
    assert not is_image_space(env.observation_space)  # SB3 would divide it by 255
    expected, image = plain.reset(seed=1)[0], env.reset(seed=1)[0]
    plain.action_space.seed(0)
    for _ in range(50):
        np.testing.assert_array_equal(np.moveaxis(image, 0, 2), expected)
        assert env.observation_space.contains(image)
        action = plain.action_space.sample()
        (image, reward, terminated, *_), (expected, other_reward, *_) = env.step(action), plain.step(action)
        assert reward == other_reward
        if terminated:
            break
    assert image.any()


@pytest.mark.parametrize("game", GAMES)
def test_the_network_tells_every_entry_apart(game):
    space = MinAtarImage(gym.make(f"MinAtar/{game}-v1")).observation_space
    network = MinAtarCNN(space, features_dim=8)
    network.requires_grad_(False)
    assert [tuple(p.shape) for p in network.parameters()] == [(16, space.shape[0], 3, 3), (16,), (8, 1024), (8,)]
    for parameter in network.parameters():
        parameter.abs_()  # nothing is lost in a ReLU
    size = int(np.prod(space.shape))
    images = th.cat([th.eye(size), th.zeros(1, size)]).reshape(-1, *space.shape)
    features = network(images)
    assert features.shape == (size + 1, 8) and len(th.unique(features, dim=0)) == size + 1


def test_sb3_leaves_it_untouched():
    venv = make_vec_env("MinAtar/Seaquest-v1", n_envs=2, seed=0, wrapper_class=MinAtarImage)
    observations = venv.reset()
    images = preprocess_obs(obs_as_tensor(observations, "cpu"), venv.observation_space)
    assert images.dtype == th.float32
    np.testing.assert_array_equal(images, observations)
    assert MinAtarCNN(venv.observation_space)(images).shape == (2, 128)


@pytest.mark.slow
def test_ppo_and_a2c_learn_with_it():
    venv = make_vec_env("MinAtar/Breakout-v1", n_envs=2, seed=0, wrapper_class=MinAtarImage)
    for algorithm, policy in ((PPO, "CnnPolicy"), (A2C, "MlpPolicy")):
        policy_kwargs = {"features_extractor_class": MinAtarCNN, "net_arch": []}
        model = algorithm(policy, venv, n_steps=32, policy_kwargs=policy_kwargs, device="cpu")
        before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
        model.learn(64)
        after = model.policy.features_extractor.parameters()
        assert all(not th.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_documented_configuration_is_one():
    entries = yaml.safe_load(minatar.__doc__.split("::\n")[1].split("\n\nIt needs")[0])
    (task, entry), *_ = entries.items()
    env = get_wrapper_class(entry)(gym.make(task))
    # As RL Zoo does it
    kwargs = eval(entry["policy_kwargs"], vars(exp_manager))
    assert kwargs["features_extractor_class"](env.observation_space).features_dim == 128


def test_other_observations_are_refused():
    with pytest.raises(ValueError, match="truth values"):
        MinAtarImage(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="MinAtarImage"):
        MinAtarCNN(spaces.Box(0, 1, (10,)))
