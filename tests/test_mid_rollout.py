"""What a callback may do in the middle of a rollout, and how training goes on after one has stopped it."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY, RandomEnv, random_env
from trajectories import ACTORS

from sb3_attention_ac import AAC
from sb3_attention_ac.evaluation import evaluate_actions, evaluate_transitions

SHUT, OPEN = 0.0, 3.0  # evidence


class SetEvidence(BaseCallback):
    """At one step of each rollout; by a file's parameters, as "back to the best model", or in place"""

    def __init__(self, parameters: dict[str, Any] | None, evidence: float, at_step: int):
        super().__init__()
        self.parameters, self.evidence, self.at_step = parameters, evidence, at_step

    def _on_step(self) -> bool:
        if self.locals["n_steps"] == self.at_step:
            if self.parameters is not None:
                self.model.set_parameters(self.parameters)
            self.model.policy.attention_q.evidence.fill_(self.evidence)
        return True


class MaskedEnv(RandomEnv):
    """One action of three is never allowed"""

    def action_masks(self) -> np.ndarray:
        return np.array([True, False, True])


@th.no_grad()
def check_first_ratio(model) -> None:
    policy, buffer = model.policy, model.rollout_buffer
    for batch in buffer.get_windows(8) if policy.memory_actor else buffer.get_transitions(8):
        if policy.memory_actor:
            log_prob, *_ = evaluate_actions(policy, policy.encode_windows(batch.windows, batch.actions.shape[1]), batch)
        else:
            arguments = batch.observations, batch.actions, batch.action_masks, batch.logit_offsets
            log_prob = evaluate_transitions(policy, *arguments)[1]
        assert (log_prob - batch.old_log_prob).abs().max() < 1e-4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize(("by_file", "at_step"), [(False, 9), (True, 0), (True, 12)])
@pytest.mark.parametrize(("before", "after"), [(OPEN, SHUT), (SHUT, OPEN)])
def test_the_gate_of_q_att_may_move_in_mid_rollout(before, after, by_file, actor, masked, at_step):
    """The rollout goes on as it began, the next one is as the gate then is; with ratios of one."""
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    make: Any = MaskedEnv if masked else RandomEnv
    env = DummyVecEnv([lambda: make(space, spaces.Discrete(3))] * 2)
    policy_kwargs = {**TINY, "attention_q": True, **ACTORS[actor]}
    settings = {**SMALL, "n_steps": 20, "batch_size": 20, "learning_rate": 1e-9, "policy_kwargs": policy_kwargs}
    model = AAC("MlpPolicy", env, **settings)
    with th.no_grad():
        model.policy.attention_q.head[2].weight.normal_()
    model.policy.attention_q.evidence.fill_(before)
    rollouts, train = [], model.train

    def check() -> None:
        check_first_ratio(model)
        offsets, actions = model.rollout_buffer.logit_offsets, model.rollout_buffer.actions
        rollouts.append(None if offsets is None else offsets.copy())
        assert not masked or not (actions == 1).any()
        train()

    model.train = check
    parameters = copy.deepcopy(model.get_parameters()) if by_file else None
    model.learn(40, callback=SetEvidence(parameters, after, at_step))
    model.policy.attention_q.evidence.fill_(after)
    model.learn(40, reset_num_timesteps=False)
    tilted = [offsets is not None for offsets in rollouts]
    assert tilted == [before == OPEN, after == OPEN]
    for offsets in rollouts:
        assert offsets is None or (offsets != 0).any(axis=-1).all()


# --- going on --------------------------------------------------------------------------------------------------------------


class Telling(gym.Env):
    """Observations say which environment, episode and step they are of"""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, number: int, length: int):
        self.number, self.length, self.episode, self.t = number, length, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.obs(), {}

    def obs(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.t], np.float32)

    def step(self, action):
        self.t += 1
        return self.obs(), 1.0, self.t == self.length, False, {}


class Stop(BaseCallback):
    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        return self.n_calls < self.after


def stored(model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the buffer holds of this rollout and of what is known before it: observations, numbers of episodes, ages"""
    buffer = model.rollout_buffer
    first = max(buffer.n_history - buffer.n_context, 1)
    arrays = buffer.storage.arrays
    return tuple(arrays[name][first:] for name in ("observations", "episode_ids", "ages"))


@pytest.mark.parametrize(("actor", "n_landmarks"), [("MLP actor", 0), ("memory actor", 0), ("memory actor", 2)])
@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 10, 15])
def test_training_goes_on_where_a_callback_has_stopped_it(actor, n_landmarks, stop_after):
    """
    At the end of an episode of one environment (4, 5), in the middle, and where a rollout ends (10). Steps follow one another,
    two episodes never share a number, and one episode has one.
    """
    policy_kwargs = {**TINY, **ACTORS[actor], "n_landmarks": n_landmarks, "context_length": 12}
    model = AAC("MlpPolicy", DummyVecEnv([lambda: Telling(0, 5), lambda: Telling(1, 4)]), policy_kwargs=policy_kwargs, **SMALL)
    model.learn(100, callback=Stop(stop_after))
    assert model.num_timesteps == 2 * stop_after
    buffer = model.rollout_buffer
    for _ in range(3):
        model.learn(20, reset_num_timesteps=False)
        observations, ids, ages = stored(model)
        for env, length in enumerate((5, 4)):
            known = ids[:, env] >= 0
            episodes, t = observations[known, env, 1], observations[known, env, 2]
            assert (observations[known, env, 0] == env).all()
            numbers = episodes * length + t  # each step is the next one, without a gap and without a stale one
            np.testing.assert_array_equal(np.diff(numbers), 1)
            np.testing.assert_array_equal(ages[known, env], t)
            np.testing.assert_array_equal(np.diff(ids[known, env]), np.diff(episodes))
            np.testing.assert_array_equal(buffer.episode_starts[:, env] > 0, buffer.observations[:, env, 2] == 0)


@pytest.mark.parametrize("actor", ["memory actor", "shared"])
@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_a_memory_goes_on_where_a_callback_has_stopped_it(actor, stop_after):
    """What acting remembers of the steps before is what training windows hold: the first ratio is one."""
    policy_kwargs = {**TINY, **ACTORS[actor], "context_length": 12}
    settings = {**SMALL, "learning_rate": 1e-9, "policy_kwargs": policy_kwargs}
    model = AAC("MlpPolicy", random_env(n_envs=1), **settings)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    model.learn(100, callback=Stop(stop_after))
    train = model.train
    checked = []
    model.train = lambda: (check_first_ratio(model), checked.append(True), train())
    model.learn(30, reset_num_timesteps=False)
    assert len(checked) == 3


def test_a_new_start_forgets_the_episode_that_was_left():
    """``reset_num_timesteps=True`` resets environments: nothing of before is of the new episodes"""
    model = AAC("MlpPolicy", DummyVecEnv([lambda: Telling(0, 50)]), policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
    model.learn(100, callback=Stop(7))
    model.learn(10)
    observations, ids, ages = stored(model)
    new = observations[:, 0, 1] == 1
    assert new.sum() == 10 and set(ids[new, 0]).isdisjoint(ids[~new, 0])
    np.testing.assert_array_equal(ages[new, 0], np.arange(10))


class Change(BaseCallback):
    """Changes what was collected: arrays in place, or by others"""

    def __init__(self, in_place: bool):
        super().__init__()
        self.in_place = in_place

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        for name, value in (
            ("observations", 7.0),
            ("actions", 1.0),
            ("advantages", 0.5),
            ("log_probs", -9.0),
            ("returns", 3.0),
        ):
            array = getattr(buffer, name)
            if self.in_place:
                array[:] = value
            else:
                setattr(buffer, name, np.full_like(array, value))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("options", [{}, {"memory_actor": True}, {"attention_q": True}], ids=str)
def test_what_a_callback_changes_at_the_end_of_a_rollout_is_learned_from(options, in_place):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **options}, **SMALL)
    model.learn(SMALL["n_steps"], callback=Change(in_place))
    for batch in model.rollout_buffer.get_transitions(None):
        assert (batch.observations == 7).all() and (batch.actions == 1).all()
        assert (batch.advantages == 0.5).all() and (batch.old_log_prob == -9).all() and (batch.returns == 3).all()


class Override(BaseCallback):
    """Says that other actions were executed than were sampled, every third step"""

    def __init__(self):
        super().__init__()
        self.log_ratios: list[th.Tensor] = []

    def _on_step(self) -> bool:
        if self.locals["n_steps"] % 3 == 0:
            self.locals["actions"][:] = 0
        return True

    @th.no_grad()
    def _on_rollout_end(self) -> None:
        policy, buffer = self.model.policy, self.model.rollout_buffer
        for starts, length in buffer.chunks():
            first, envs = buffer.of_each_env(starts)
            batch = buffer.window_samples(first, envs, length)
            log_prob, *_ = evaluate_actions(policy, policy.encode_windows(batch.windows, length), batch)
            was_sampled = (th.as_tensor(first).unsqueeze(1) + th.arange(length)) % 3 != 0
            self.log_ratios.append((log_prob - batch.old_log_prob)[was_sampled])


@pytest.mark.parametrize("n_landmarks", [0, 2])
@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=str)
def test_a_memory_holds_the_actions_that_are_stored(actions, n_landmarks):
    """The steps whose own action was left alone have a first ratio of one."""
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(-1.0, 1.0, (3,), np.float32), actions)] * 2)
    kwargs = {**TINY, "memory_actor": True, "n_landmarks": n_landmarks}
    model = AAC("MlpPolicy", env, policy_kwargs=kwargs, **{**SMALL, "learning_rate": 1e-2})
    callback = Override()
    model.learn(4 * SMALL["n_steps"] * 2, callback=callback)
    assert th.cat(callback.log_ratios).abs().max() < 1e-4
