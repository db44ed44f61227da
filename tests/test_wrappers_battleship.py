"""Battleship with masks: actions are cells, and none is shot at twice."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac.wrappers import MaskedBattleship, PreviousActionReward

pytest.importorskip("popgym")
EASY = "popgym-BattleshipEasy-v0"


def play(env, choose, seed=0):
    """:return: Actions, observations and rewards of an episode"""
    env.reset(seed=seed)
    rng, steps, done = np.random.default_rng(seed), [], False
    while not done:
        action = choose(rng, env.action_masks())
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((action, obs, reward))
        done = terminated or truncated
    return [np.array(column) for column in zip(*steps, strict=True)]


def allowed(rng, masks):
    return rng.choice(np.flatnonzero(masks))


@pytest.mark.parametrize(("level", "size"), [("Easy", 8), ("Medium", 10), ("Hard", 12)])
def test_an_action_is_a_cell_and_is_forbidden_afterwards(level, size):
    env = MaskedBattleship(gym.make(f"popgym-Battleship{level}-v0"))
    assert env.action_space.n == size**2
    assert env.action_masks().all() and env.action_masks().shape == (size**2,)  # before the first episode too
    env.reset(seed=0)
    game = env.unwrapped
    for action in (0, size - 1, size, size**2 - 2):
        row, column = divmod(action, size)
        assert env.action_masks()[action] and not game.guesses[row, column]
        obs, *_ = env.step(action)
        assert not env.action_masks()[action] and game.guesses[row, column]
        assert obs == game.board[row, column]
    assert env.action_masks().sum() == size**2 - 4
    env.reset()
    assert env.action_masks().all()


def test_masks_let_every_ship_be_sunk_and_no_cell_be_shot_twice():
    for seed in range(20):
        env = MaskedBattleship(gym.make(EASY))
        actions, observations, rewards = play(env, allowed, seed)
        assert len(set(actions)) == len(actions) <= 64
        assert observations.sum() == 12  # all of 2 + 3 + 3 + 4
        np.testing.assert_allclose(rewards.sum(), 1 - (len(actions) - 12) / 52, atol=1e-12)


def test_contrib_finds_the_masks_below_other_wrappers():
    venv = make_vec_env(lambda: PreviousActionReward(MaskedBattleship(gym.make(EASY))), n_envs=2, seed=0)
    assert is_masking_supported(venv)
    venv.reset()
    venv.step(np.array([3, 60]))
    masks = get_action_masks(venv)
    assert masks.shape == (2, 64) and masks.sum() == 126 and not masks[0, 3] and not masks[1, 60]


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice about the wrapped environment
def test_gymnasium_accepts_it():
    check_env(MaskedBattleship(gym.make(EASY).unwrapped), skip_render_check=True)


def test_other_environments_are_refused():
    for env in (gym.make("CartPole-v1"), MaskedBattleship(gym.make(EASY))):
        with pytest.raises(ValueError, match="popgym-BattleshipEasy-v0"):
            MaskedBattleship(env)
