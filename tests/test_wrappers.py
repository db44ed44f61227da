"""The last action and reward in the observation: what each step shows, and that a memory actor can use it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_attention_ac import AAC
from sb3_attention_ac.wrappers import PreviousActionReward, VecPreviousActionReward

ACTION_SPACES = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (2,))]
OBSERVATION_SPACES = [
    spaces.Box(-1.0, 1.0, (2,)),
    spaces.Discrete(4),
    spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1.0, 1.0, (2,))}),
]


class Anything(gym.Env):
    """Random observations and rewards, episodes of five steps"""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(self.t), False, self.t == 5, {}


class Bandit(gym.Env):
    """Two arms, one of them good: which one is new in each episode of ten pulls, and only the reward tells"""

    observation_space, action_space = spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.good, self.t = int(self.np_random.integers(2)), 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, dtype=np.float32), float(int(action) == self.good), self.t == 10, False, {}


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=lambda s: type(s).__name__)
def test_each_step_shows_the_last_action_and_reward(observation_space, action_space):
    env = PreviousActionReward(Anything(observation_space, action_space))
    check_env(env)
    obs, _ = env.reset()
    assert not obs["previous_action"].any() and obs["previous_reward"] == 0
    action = action_space.sample()
    obs, reward, *_ = env.step(action)
    np.testing.assert_allclose(obs["previous_action"], spaces.flatten(action_space, action))
    assert obs["previous_reward"] == reward == 1


def test_a_first_observation_is_the_callers_own():
    env = PreviousActionReward(gym.make("CartPole-v1"))
    for _ in range(2):
        obs, _ = env.reset(seed=0)
        assert not obs["previous_action"].any()
        obs["previous_action"] += 0.5
    assert "previous_action" in gym.make(env.spec).observation_space.spaces


def test_the_vec_wrapper_shows_the_same_as_the_wrapper():
    def make():
        return Anything(spaces.Discrete(1), spaces.Discrete(3))  # its observations are all the same

    vec = VecPreviousActionReward(DummyVecEnv([make, make]))
    single = DummyVecEnv([lambda: PreviousActionReward(make()), lambda: PreviousActionReward(make())])
    assert vec.observation_space == single.observation_space
    observations = vec.reset(), single.reset()
    for step in range(12):
        for key in observations[1]:
            np.testing.assert_array_equal(observations[0][key].reshape(-1), observations[1][key].reshape(-1))
        actions = np.array([step % 3, (step + 1) % 3])
        (*first, infos), (*second, other_infos) = vec.step(actions), single.step(actions)
        observations = first[0], second[0]
        np.testing.assert_array_equal(first[1], second[1])
        for info, other in zip(infos, other_infos, strict=True):
            assert ("terminal_observation" in info) == ("terminal_observation" in other)
            for key, value in other.get("terminal_observation", {}).items():
                np.testing.assert_array_equal(info["terminal_observation"][key], value)


class Records(Anything):
    """Which actions it was given"""

    def __init__(self, action_space):
        super().__init__(spaces.Box(-1.0, 1.0, (2,)), action_space)
        self.given = []

    def step(self, action):
        assert self.action_space.contains(action), action
        self.given.append(np.array(action))
        return super().step(action)


@pytest.mark.parametrize(
    ("action_space", "actions"),
    [
        (spaces.Discrete(3, start=5), [0, 2, 1]),
        (spaces.Discrete(2, start=-1), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3], start=[4, -2]), [[0, 2], [1, 0], [1, 1]]),
    ],
    ids=str,
)
def test_discrete_actions_with_a_start(action_space, actions):
    """Behind the vec wrapper actions begin at zero, as any algorithm of SB3 gives them; environments get theirs."""
    env = Records(action_space)
    vec = VecPreviousActionReward(DummyVecEnv([lambda: env]))
    assert not np.any(vec.action_space.start)
    vec.reset()
    from_zero = type(action_space)(action_space.n if isinstance(action_space, spaces.Discrete) else action_space.nvec)
    for action in np.array(actions):
        obs = vec.step(action[None])[0]
        np.testing.assert_array_equal(obs["previous_action"][0], spaces.flatten(from_zero, action))
    np.testing.assert_array_equal(env.given, np.array(actions) + action_space.start)


class TakesTheArray(Records):
    """An environment that works in the array it is given, and whose rewards are arrays"""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        action *= 0
        return obs, np.array([0.5]), terminated, truncated, info


def test_the_previous_action_is_the_one_that_was_given():
    env = PreviousActionReward(TakesTheArray(spaces.Box(-1.0, 1.0, (2,))))
    env.reset()
    obs = env.step(np.full(2, 0.5, np.float32))[0]
    assert env.observation_space.contains(obs)
    assert obs["previous_action"].tolist() == [0.5, 0.5] and obs["previous_reward"].tolist() == [0.5]


@pytest.mark.parametrize("wrap", [VecPreviousActionReward, lambda vec: vec], ids=["vec", "single"])
def test_a_memory_actor_acts_from_the_start_on(wrap):
    space = spaces.Discrete(3, start=5)
    env = Records(space)
    inner = env if wrap is VecPreviousActionReward else PreviousActionReward(env)
    vec = wrap(DummyVecEnv([lambda: inner]))
    settings = {"n_steps": 60, "batch_size": 60, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = AAC("MultiInputPolicy", vec, policy_kwargs={"memory_actor": True, "context_length": 8}, **settings).learn(60)
    assert {int(action) for action in env.given} == {5, 6, 7}
    obs, state = vec.reset(), None
    for _ in range(12):
        action, state = model.predict(obs, state, np.zeros(1, dtype=bool))
        obs = vec.step(action)[0]
        assert obs["previous_action"][0].argmax() == int(env.given[-1]) - 5 or not obs["previous_action"].any()


def test_wrapping_twice_is_refused():
    env = PreviousActionReward(Bandit())
    with pytest.raises(ValueError, match="already: wrap an environment only once"):
        PreviousActionReward(env)


class Coin(Anything):
    """Rewards that nothing tells but themselves, and ten actions that make no difference"""

    def __init__(self, scale=1.0):
        super().__init__(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(10))
        self.scale = scale

    def step(self, action):
        obs, _, *others = super().step(action)
        return obs, self.scale * (1.0 if self.np_random.random() < 0.5 else -1.0), *others


def masked_losses(env, n_rollouts, **settings):
    """What the masked prediction makes of rewards and actions, beside the guess that knows nothing"""
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    settings = {"n_steps": 64, "batch_size": 128, "n_epochs": 6, "learning_rate": 3e-3, "seed": 0, "device": "cpu", **settings}
    model = AAC(policy, env, aux_loss=["reward", "action"], aux_coef=1.0, **settings)
    model.learn(n_rollouts * 64 * 8)
    logged = model.logger.name_to_value
    return {name: (logged[f"train/aux_{name}_loss"], logged[f"train/aux_{name}_baseline"]) for name in ("reward", "action")}


@pytest.mark.parametrize(
    ("wrapper", "memory_actor"),
    [(PreviousActionReward, False), (VecPreviousActionReward, False), (VecPreviousActionReward, True)],
)
def test_masked_actions_and_rewards_do_not_stand_in_the_next_observation(wrapper, memory_actor):
    """They cannot be predicted here: who does has read them."""
    if wrapper is PreviousActionReward:
        env = DummyVecEnv([lambda: PreviousActionReward(Coin())] * 8)
    else:
        env = VecPreviousActionReward(DummyVecEnv([Coin] * 8))
    losses = masked_losses(env, 4, policy_kwargs={"context_length": 8, "d_model": 32, "memory_actor": memory_actor})
    for loss, guess in losses.values():
        assert loss > 0.9 * guess and guess == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
def test_targets_of_any_scale(scale):
    """Rewards are predicted by their own units, however small or large these are."""
    losses = masked_losses(DummyVecEnv([lambda: Coin(scale)] * 8), 1, policy_kwargs={"context_length": 8, "d_model": 32})
    assert losses["reward"][1] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_a_memory_actor_finds_the_good_arm():
    """Knowing nothing gives 5 of 10; trying one arm and keeping to the good one gives 9.5."""
    env = make_vec_env(Bandit, n_envs=8, wrapper_class=PreviousActionReward, seed=0)
    settings = {"n_steps": 64, "batch_size": 256, "n_epochs": 5, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    model = AAC("MultiInputPolicy", env, policy_kwargs={"memory_actor": True, "context_length": 16}, **settings)
    model.learn(40_000)
    mean, _ = evaluate_policy(model, make_vec_env(Bandit, wrapper_class=PreviousActionReward, seed=100), n_eval_episodes=50)
    assert mean > 9
