"""gSDE holds its noise for some steps: who knows it knows the next action's, and may be no baseline for it."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from test_own_modules import perturb
from test_run import SMALL, TINY, random_env
from trajectories import ACTION_SPACES, fill, make_buffer, make_policy, noisy

from sb3_attention_ac import AAC
from sb3_attention_ac.rollout_values import evaluate_rollout

FEW = settings(max_examples=8, deadline=None)


def filled(policy, n_steps: int, every: int, seed: int, episode_end: float):
    """Two rollouts of three environments, with noise that is sampled anew every few steps"""
    buffer, rng = make_buffer(policy, n_steps, 3), np.random.default_rng(seed)
    starts = np.ones(3, dtype=bool)
    for _ in range(2):
        starts = fill(buffer, rng, starts, episode_end, noisy(policy, every))
    return buffer


@FEW
@given(
    st.integers(1, 9), st.integers(1, 6), st.integers(2, 12), st.sampled_from([1, 2]), st.sampled_from([0.0, 0.2]), st.data()
)
@th.no_grad()
def test_values_know_nothing_of_the_noise_but_the_present_step(context_length, every, n_steps, n_layers, episode_end, data):
    """
    Observations, actions and rewards since the noise was sampled tell it. Nothing of them moves a value but the step's own
    observation, which the actor had before.
    """
    policy = make_policy(context_length, ACTION_SPACES["Box"], n_layers=n_layers, use_sde=True, age_input="sinusoidal")
    buffer = filled(policy, n_steps, every, data.draw(st.integers(0, 99)), episode_end)
    starts, length = buffer.chunks()[0]
    windows, _ = buffer.windows(np.repeat(starts, 3), np.tile(np.arange(3), len(starts)), length)
    step = windows.episode_ids.shape[1] - length + data.draw(st.integers(0, length - 1))
    same_noise = windows.noise_ids == windows.noise_ids[:, step : step + 1]
    told = windows._replace(
        previous_actions=windows.previous_actions + 1,
        previous_rewards=windows.previous_rewards - 1,
        observations=windows.observations + same_noise.unsqueeze(-1).float(),
    )
    told.observations[:, step] = windows.observations[:, step]
    values, others = (policy.critic_output(policy.encode_windows(w, length).critic).values for w in (windows, told))
    at = step - (windows.episode_ids.shape[1] - length)
    assert th.equal(values[:, at], others[:, at])


def test_what_was_before_the_noise_is_seen():
    """The counterpart: a critic that sees nothing would pass"""
    policy = make_policy(6, ACTION_SPACES["Box"], use_sde=True)
    buffer = filled(policy, 12, 3, 0, 0.0)
    windows, _ = buffer.windows(np.zeros(3, dtype=int), np.arange(3), 12)
    before = windows._replace(observations=windows.observations + (windows.noise_ids == 3).unsqueeze(-1).float())
    with th.no_grad():
        values, others = (policy.critic_output(policy.encode_windows(w, 12).critic).values for w in (windows, before))
    assert (windows.noise_ids == 3).any() and (windows.noise_ids[:, -1] > 3).all()
    assert not th.isclose(values[:, -1], others[:, -1], atol=1e-6).any()


@pytest.mark.parametrize("sample_freq", [-1, 1, 4])
def test_steps_with_the_same_noise_have_the_same_number(sample_freq):
    """As the algorithm collects them; in three rollouts no number comes twice"""
    seen: list[np.ndarray] = []

    class Noise(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.model.policy.action_dist.exploration_mat.detach().numpy().copy())
            return True

        def _on_rollout_end(self) -> None:
            numbers.append(self.model.rollout_buffer.noise_ids.copy())

    numbers: list[np.ndarray] = []
    model = AAC("MlpPolicy", random_env(actions="Box"), use_sde=True, sde_sample_freq=sample_freq, policy_kwargs=TINY, **SMALL)
    model.learn(60, callback=Noise())
    ids = np.concatenate(numbers)
    assert (ids == ids[:, :1]).all()
    changed = [not np.array_equal(*pair) for pair in zip(seen[1:], seen[:-1], strict=True)]
    np.testing.assert_array_equal(np.diff(ids[:, 0]) > 0, changed)
    assert (np.diff(ids[:, 0]) >= 0).all() and sum(changed) == {-1: 2, 1: 29, 4: 8}[sample_freq]


class Echo(gym.Env):
    """The reward is the action's, and the observation after it says which one it was"""

    observation_space, action_space = spaces.Box(-4.0, 4.0, (1,), np.float32), spaces.Box(-4.0, 4.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.ones(1, np.float32) + self.shown(action), -abs(float(action[0]) - 0.5), False, self.t >= 200, {}

    def shown(self, action) -> np.ndarray:
        return np.asarray(0.05 * np.sign(action), np.float32)  # hardly moves the actor


class Blind(Echo):
    """The same, and only the reward tells"""

    def shown(self, action) -> np.ndarray:
        return np.zeros_like(action)


class Endless(Echo):
    """No episode ends"""

    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


@pytest.mark.parametrize("sample_freq", [-1, 3])
@pytest.mark.parametrize("memory_actor", [False, True])
def test_a_rollout_ends_with_the_value_of_the_next_ones_first_step(memory_actor, sample_freq):
    """No action under the old noise follows, so all steps are seen, as by the step that follows under a new one."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    class Values(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            rollout = evaluate_rollout(self.model.policy, self.model.rollout_buffer, self.locals["new_obs"])
            pairs.append((rollout.values[0], rollout.last.values.numpy()))

    model = AAC(
        "MlpPolicy", DummyVecEnv([Endless] * 3), n_steps=8, batch_size=24, n_epochs=1, use_sde=True, seed=0, device="cpu",
        sde_sample_freq=sample_freq, learning_rate=0.0,
        policy_kwargs={**TINY, "context_length": 5, "memory_actor": memory_actor},
    )  # fmt: skip
    perturb(model.policy)
    model.learn(4 * 3 * 8, callback=Values())
    for (_, last), (first, _) in itertools.pairwise(pairs):
        np.testing.assert_allclose(last, first, atol=1e-5)
    assert np.ptp([last for _, last in pairs]) > 0.1


class Slopes(BaseCallback):
    """Regression of advantages on the actions' own rewards: 1 if an action keeps its credit, 0 if the value took it"""

    def _on_training_start(self) -> None:
        self.slopes: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        rewards, advantages = (x - x.mean() for x in (buffer.rewards, buffer.advantages))
        self.slopes.append(float((rewards * advantages).mean() / np.square(rewards).mean()))


@pytest.mark.parametrize("env", [Echo, Blind])
def test_an_action_keeps_the_credit_for_its_reward(env):
    """The value of a critic that knows the held noise explains the reward, and the gate opens."""
    model = AAC(
        "MlpPolicy", DummyVecEnv([env] * 8), n_steps=64, batch_size=64, n_epochs=4, gamma=0.0, gae_lambda=0.0, use_sde=True,
        sde_sample_freq=32, learning_rate=3e-3, policy_kwargs={**TINY, "context_length": 16}, seed=0, device="cpu",
    )  # fmt: skip
    model.learn(12 * 8 * 64, callback=(callback := Slopes()))
    assert min(callback.slopes) > 0.9
    assert model.policy.value_gate.gate < 0.2
