"""MinAtar's games as images with channels first, and the network of its paper."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.preprocessing import is_image_space

pytest.importorskip("minatar", exc_type=ImportError)
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


def test_sb3s_policy_takes_it_untouched():
    venv = make_vec_env("MinAtar/Seaquest-v1", n_envs=2, seed=0, wrapper_class=MinAtarImage)
    observations = venv.reset()
    policy = ActorCriticCnnPolicy(
        venv.observation_space, venv.action_space, lambda _: 1e-3, net_arch=[], features_extractor_class=MinAtarCNN
    )
    seen = []
    policy.features_extractor.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    actions, _ = policy.predict(observations)
    assert actions.shape == (2,)
    np.testing.assert_array_equal(seen[0], observations)


def test_other_observations_are_refused():
    with pytest.raises(ValueError, match="truth values"):
        MinAtarImage(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="MinAtarImage"):
        MinAtarCNN(spaces.Box(0, 1, (10,)))
