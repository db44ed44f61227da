"""What scripts written for SB3's PPO do to a model from outside."""

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_run import SMALL, TINY, RandomEnv, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.attention_q import AttentionQ
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.train_log import TrainLog

ACTION_SPACES = {
    "MultiBinary": spaces.MultiBinary(3),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "Box": spaces.Box(-1, 1, (2,)),
}


@pytest.mark.parametrize("memory_actor", [False, True])
def test_critic_learns_through_evaluate_actions(memory_actor):
    """Supervised pretraining: the values have a gradient, and are those of predict_values."""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    obs = th.rand(64, 3)
    targets = obs.sum(dim=1, keepdim=True)
    optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-2)
    said = pytest.warns(UserWarning, match="trains it without a memory") if memory_actor else contextlib.nullcontext()
    with said:
        for _ in range(200):
            values, _, _ = model.policy.evaluate_actions(obs, th.zeros(64))
            loss = th.nn.functional.mse_loss(values, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.1 * targets.var()
    with th.no_grad():
        assert th.equal(model.policy.predict_values(obs), model.policy.evaluate_actions(obs, th.zeros(64))[0])


def test_ppo_with_our_policy_says_that_nothing_is_remembered():
    kwargs = {**TINY, "memory_actor": True}
    model = PPO(AttentionActorCriticPolicy, random_env(), n_steps=8, batch_size=8, policy_kwargs=kwargs)
    with pytest.warns(UserWarning, match="trains it without a memory"):
        model.learn(8)


class AdvantagesAgain(BaseCallback):
    """As after an intrinsic reward, here of zero"""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        before = buffer.advantages.copy()
        assert buffer.terminal_observations and self.locals["values"].shape == (buffer.n_envs, 1)  # as PPO's
        buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
        np.testing.assert_array_equal(buffer.advantages, before)


@pytest.mark.parametrize("memory_actor", [False, True])
def test_a_callback_computes_advantages_again(memory_actor):
    settings = {**SMALL, "n_steps": 20, "batch_size": 20, "policy_kwargs": {**TINY, "memory_actor": memory_actor}}
    AAC("MlpPolicy", random_env(), **settings).learn(80, callback=AdvantagesAgain())


@pytest.mark.parametrize("memory_actor", [False, True])
def test_another_optimizer_takes_its_place(memory_actor):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    model.policy.optimizer = th.optim.RMSprop(model.policy.parameters(), lr=1.0)
    model.learn(20)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [model.learning_rate]
    assert isinstance(model.policy.optimizer, th.optim.RMSprop) and model.policy.optimizer.state


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(("n_steps", "context_length", "memory_actor"), [(12, 5, False), (12, 5, True), (11, 5, True)])
def test_a_last_chunk_of_two_steps_or_one(n_steps, context_length, memory_actor):
    """One environment, the next-step prediction: a single pair of steps has no variance to normalize by."""
    policy_kwargs = {**TINY, "context_length": context_length, "memory_actor": memory_actor}
    settings = {**SMALL, "n_steps": n_steps, "aux_loss": "next_step", "policy_kwargs": policy_kwargs}
    model = AAC("MlpPolicy", random_env(n_envs=1), **settings)
    model.learn(2 * n_steps)


class SharedMemoryVecEnv(DummyVecEnv):
    """Terminal observations lie in memory that is used again, as in vectorized simulators"""

    def step_wait(self):
        obs, rewards, dones, infos = super().step_wait()
        self.last = getattr(self, "last", np.zeros_like(obs))
        for i in np.flatnonzero(dones):
            self.last[i] = infos[i]["terminal_observation"]
            infos[i]["terminal_observation"] = self.last[i]
        return obs, rewards, dones, infos


def test_terminal_observations_are_kept():
    def values(vec_env_class):
        vec_env = vec_env_class([lambda: gym.make("Pendulum-v1", max_episode_steps=8)])
        model = AAC("MlpPolicy", vec_env, policy_kwargs=TINY, **{**SMALL, "n_steps": 40}).learn(40)
        return model.rollout_buffer.terminal_values

    assert len(values(DummyVecEnv)) == 5
    np.testing.assert_array_equal(values(SharedMemoryVecEnv), values(DummyVecEnv))


class Counting(gym.Env):
    """Integers to see and to do"""

    observation_space = spaces.Box(0, 100, (3,), np.int64)
    action_space = spaces.Box(-5, 5, (2,), np.int64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.int64), {}

    def step(self, action):
        self.t += 1
        return np.full(3, self.t), 0.0, False, self.t == 20, {}


class Sees(BaseCallback):
    def _on_rollout_start(self) -> None:
        self.seen = []

    def _on_step(self) -> bool:
        self.seen.append((self.model._last_obs, self.locals["actions"]))
        return True


def test_fractions_of_integers_are_learned_from():
    """VecNormalize makes floats of integers, and leaves the space as it is; a Gaussian policy likewise."""
    env = VecNormalize(DummyVecEnv([Counting] * 2))
    model, callback = AAC("MlpPolicy", env, policy_kwargs=TINY, **{**SMALL, "n_steps": 30}), Sees()
    model.learn(60, callback=callback)
    buffer, (observations, actions) = model.rollout_buffer, zip(*callback.seen, strict=True)
    for stored, seen in ((buffer.observations, observations), (buffer.actions, actions)):
        np.testing.assert_array_equal(stored, np.array(seen, dtype=np.float32))
        assert (stored % 1 != 0).any()


@pytest.mark.parametrize("algorithm", [AAC, PPO])
@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_an_alias_is_a_default_extractor(algorithm, policy):
    algorithm(policy, random_env(), policy_kwargs={"features_extractor_class": FlattenExtractor})


class ScalingExtractor(FlattenExtractor):
    """Makes a tensor when it is first called, as many positional encodings do, and a parameter is multiplied by it"""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.weight = th.nn.Parameter(th.ones(self.features_dim))
        self.scale = None

    def forward(self, observations):
        if self.scale is None:
            self.scale = 2 * th.ones(self.features_dim)
        return super().forward(observations) * (self.weight * self.scale)


class Scaling(th.nn.Module):
    """The same as an activation"""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = th.nn.Parameter(th.ones(())), None

    def forward(self, x):
        if self.scale is None:
            self.scale = 2 * th.ones(())
        return x * (self.weight * self.scale)


@pytest.mark.parametrize("names", [["memory_actor"], ["memory_actor", "attention_q"], ["attention_q"]])
def test_a_users_modules_may_keep_what_they_compute(monkeypatch, names):
    """And learn from it, although acting comes first"""
    monkeypatch.setattr(AttentionQ, "is_open", True)  # an MLP actor acts with a memory then
    modules = {"features_extractor_class": ScalingExtractor, "activation_fn": Scaling}
    policy_kwargs = {**TINY, **modules, **dict.fromkeys(names, True)}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **SMALL)
    model.predict(np.zeros(3, dtype=np.float32))
    model.learn(30)
    assert (model.policy.features_extractor.weight != 1).all()
    assert model.policy.mlp_extractor.policy_net[1].weight != 1


@pytest.mark.parametrize("memory_actor", [False, True])
def test_divergence_is_that_of_the_last_epoch(monkeypatch, memory_actor):
    """As PPO logs it; one minibatch in each epoch"""
    ratios, add = [], TrainLog.add_log_ratio
    monkeypatch.setattr(TrainLog, "add_log_ratio", lambda self, ratio: (ratios.append(ratio.detach()), add(self, ratio)))
    settings = {**SMALL, "n_steps": 30, "batch_size": 60, "n_epochs": 3, "learning_rate": 1e-2}
    policy_kwargs = {**TINY, "memory_actor": memory_actor}
    model = AAC("MlpPolicy", random_env(n_envs=2), policy_kwargs=policy_kwargs, **settings).learn(60)
    divergences = [float((ratio.exp() - 1 - ratio).mean()) for ratio in ratios]
    assert len(divergences) == 3 and divergences[2] > divergences[1] > 0
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(divergences[2])


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(3), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))]
)
def test_sb3s_distribution_takes_the_actions_of_forward(space, memory_actor):
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(-1, 1, (3,)), space)])
    policy = AAC("MlpPolicy", env, policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL).policy
    obs = th.rand(5, 3)
    with th.no_grad():
        actions, _, log_prob = policy(obs)
        th.testing.assert_close(policy.get_distribution(obs).log_prob(actions), log_prob)


@pytest.mark.parametrize("policy_kwargs", [{}, {"memory_actor": True, "local_window": 1}], ids=str)
def test_a_ppo_model_is_a_start(policy_kwargs):
    ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, seed=0).learn(32)
    model = AAC("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs)
    assert not model.policy.load_state_dict(ppo.policy.state_dict(), strict=False).unexpected_keys
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], ppo.predict(obs, deterministic=True)[0])
    values = [m.policy.predict_values(th.as_tensor(obs)) for m in (model, ppo)]
    th.testing.assert_close(*values)


@pytest.mark.parametrize("policy_kwargs", [{}, {"memory_actor": True}, {"attention_q": True}], ids=str)
def test_parameters_may_be_set_as_ppos(policy_kwargs):
    """Noise on a state dict, as evolution strategies have it, and PyTorch's type of error for one that lacks something"""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **policy_kwargs}, **SMALL)
    given = model.get_parameters()
    noisy = {name: th.rand_like(tensor) for name, tensor in given["policy"].items()}
    model.set_parameters({**given, "policy": noisy})
    assert all(th.equal(tensor, noisy[name]) for name, tensor in model.policy.state_dict().items())
    noisy.popitem()
    with pytest.raises(RuntimeError, match="missing in the file"):
        model.set_parameters({**given, "policy": noisy})
