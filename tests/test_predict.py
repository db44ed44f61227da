"""Acting with a memory that is passed in and out."""

import pickle
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from test_run import ACTION_SPACES, SMALL, TINY, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.acting import StateUse
from sb3_attention_ac.networks.kv_cache import KVCache

SHORT_CHUNKS = {**SMALL, "rollout_buffer_kwargs": {"chunk_length": 5}}  # a cache is made anew every five steps


@pytest.fixture
def model():
    return AAC("MlpPolicy", random_env(n_envs=3), policy_kwargs={**TINY, "memory_actor": True}, **SHORT_CHUNKS).learn(30)


def observations(n_steps, n_envs=3, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n_steps, n_envs, 3)).astype(np.float32)


def states_after(model, obs, starts):
    state, states = None, []
    for o, s in zip(obs, starts, strict=True):
        _, state = model.predict(o, state, s, deterministic=True)
        states.append(state)
    return states


def test_state_is_a_value(model):
    """Calls do not change the state they are given; it is plain numpy, and goes through pickle."""
    obs = observations(8)
    _, state = model.predict(obs[0])
    kept = pickle.loads(pickle.dumps(state))
    first = model.predict(obs[1], state, deterministic=True)
    second = model.predict(obs[1], kept, deterministic=True)
    for a, b, c in zip(state, kept, first[1], strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b)
        assert len(c) == 3
    np.testing.assert_array_equal(first[0], second[0])


def test_environments_do_not_mix(model):
    """One environment cut out of a batch goes on as it would have in it, over chunk borders and resets."""
    obs, starts = observations(20), np.random.default_rng(1).random((20, 3)) < 0.15
    together = states_after(model, obs, starts)
    state = tuple(array[1:2] for array in together[6])
    for step in range(7, 20):
        _, state = model.predict(obs[step, 1:2], state, starts[step, 1:2], deterministic=True)
        for alone, batched in zip(state, together[step], strict=True):
            np.testing.assert_allclose(alone[0], batched[1], atol=1e-5)


def test_memories_of_different_ages_go_on_together(model):
    """Put together by hand, each environment goes on as it would have with its own, over chunk borders and resets."""
    obs, starts = observations(26), np.random.default_rng(1).random((26, 3)) < 0.15
    states = states_after(model, obs, starts)
    ages = [8, 2, 6]
    state = tuple(np.stack([part[age][env] for env, age in enumerate(ages)]) for part in zip(*states, strict=True))
    assert len(set(KVCache._make(state).position)) > 1
    for later in range(1, 16):
        steps = [age + later for age in ages]
        row = obs[steps, range(3)], starts[steps, range(3)]
        _, state = model.predict(row[0], state, row[1], deterministic=True)
        for env, step in enumerate(steps):
            for mixed, alone in zip(state, states[step], strict=True):
                np.testing.assert_allclose(mixed[env], alone[env], atol=1e-5)


def test_episode_start_forgets(model):
    """After a reset the past is gone; without episode_start nothing is reset."""
    past, other_past, obs = observations(7, seed=1), observations(7, seed=2), observations(1)[0]

    def keys(history, start):
        state = states_after(model, history, [None] * len(history))[-1]
        state = KVCache._make(model.predict(obs, state, start, deterministic=True)[1])
        return state.keys[:, :, :, model.policy.architecture.n_context + len(history) % 5]  # of the slot just filled

    reset, keep = np.ones(3, dtype=bool), None
    np.testing.assert_allclose(keys(past, reset), keys(other_past, reset), atol=1e-6)
    assert not np.allclose(keys(past, keep), keys(other_past, keep), atol=1e-6)


def test_single_observation(model):
    obs = observations(4)[:, 0]
    state = None
    for o in obs:
        action, state = model.predict(o, state, deterministic=True)
        assert np.shape(action) == ()
    batched = states_after(model, obs[:, None], [None] * 4)[-1]
    for a, b in zip(state, batched, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_evaluate_policy_and_eval_callback_in_mid_rollout(tmp_path, actions):
    env = random_env(actions=actions)
    model = AAC("MlpPolicy", env, policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
    callback = EvalCallback(random_env(actions=actions), eval_freq=3, n_eval_episodes=2, verbose=0, log_path=str(tmp_path))
    model.learn(20, callback=callback)
    assert callback.last_mean_reward == evaluate_policy(model, env, 2)[0] == 7.0
    assert evaluate_policy(model.policy, env, 2)[0] == 7.0


def test_evaluating_in_mid_rollout_changes_nothing():
    """Memories of training and evaluation are apart."""

    def weights(callback):
        model = AAC("MlpPolicy", "CartPole-v1", policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
        return model.learn(30, callback=callback).policy.state_dict()["action_net.weight"]

    evaluation = make_vec_env("CartPole-v1", n_envs=2)
    evaluated = weights(EvalCallback(evaluation, eval_freq=3, n_eval_episodes=2, verbose=0, deterministic=True))
    np.testing.assert_array_equal(weights(None), evaluated)


def many_calls(model, starts, restart_at=()):
    """A hundred calls; the state is dropped before some of them"""
    obs, state = observations(100), None
    for step in range(100):
        state = None if step in restart_at else state
        _, state = model.predict(obs[step], state, starts[step])


@pytest.fixture
def other_model():
    return AAC("MlpPolicy", random_env(n_envs=3), policy_kwargs={**TINY, "memory_actor": True}, **SMALL)


def test_forgetting_to_pass_the_state_is_noticed_once(model):
    with pytest.warns(UserWarning, match=r"state=None[\s\S]*model\.predict\(obs, state, episode_start\)") as caught:
        for obs in observations(100):
            model.predict(obs)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_forgetting_to_say_where_episodes_start_is_noticed_once(model):
    with pytest.warns(UserWarning, match=r"without episode_start[\s\S]*predict\(obs, state, episode_start\)") as caught:
        many_calls(model, [None] * 100)
    assert len(caught) == 1


@pytest.mark.parametrize("first", [None, np.ones(3, dtype=bool)], ids=["without", "all"])
def test_who_passes_both_is_not_warned(other_model, first):
    """Nor who asks for the first action of many episodes, or has short ones and says so by a state of None."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many_calls(other_model, [first, *np.zeros((99, 3), dtype=bool)])
        many_calls(other_model, np.ones((100, 3), dtype=bool), restart_at=range(100))
        many_calls(other_model, [None] * 100, restart_at=range(0, 100, 10))


def test_a_state_is_that_of_its_call_whoever_calls_meanwhile(other_model):
    """Two threads may ask one model"""
    policy = other_model.policy
    mine, others = (policy.stepped_network().empty(2) for _ in range(2))
    mine.age.fill_(5.0)

    class Interrupted(StateUse):
        interrupted = False

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if hasattr(self, "without_start") and not Interrupted.interrupted:  # another thread, after any assignment
                Interrupted.interrupted = True
                self.returned(others)

    for _ in range(2):
        use = Interrupted()
        Interrupted.interrupted = False
        state = use.returned(mine)
        assert state[KVCache._fields.index("age")].tolist() == [5.0, 5.0]
        found = use.cache_of(state, 2, mine.features.shape[1])
        assert found is None or found.age.tolist() == [5.0, 5.0]


def test_episode_starts_may_be_a_tensor(model):
    obs = observations(1)[0]
    _, state = model.predict(obs, episode_start=th.ones(3, dtype=th.bool), deterministic=True)
    given = [
        model.predict(obs, state, start, True)[1]
        for start in (np.array([True, False, False]), th.tensor([True, False, False]))
    ]
    for one, other in zip(*given, strict=True):
        np.testing.assert_array_equal(one, other)
