"""Wrong input fails at construction with a sentence; a bad number while training loses nothing."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from sb3_contrib.ppo_recurrent.policies import CnnLstmPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY, RandomEnv, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.landmarks import RULES
from sb3_attention_ac.policies import AttentionActorCriticPolicy


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"aux_loss": "contrastve"}, ["'contrastve'", "'contrastive'", "'value'", "'prediction'"]),
        ({"aux_loss": ["return", "rewards"]}, ["rewards", "'reward'", "'observation'"]),
        ({"aux_loss": []}, ["no targets"]),
        ({"gamma": 2}, ["gamma=2", "in [0, 1]"]),
        ({"gamma": float("nan")}, ["gamma=nan", "in [0, 1]"]),
        ({"gae_lambda": -1.0}, ["gae_lambda=-1.0", "in [0, 1]"]),
        ({"ent_coef": "auto"}, ["ent_coef='auto'", "must be a number"]),
        ({"vf_coef": -1.0}, ["vf_coef=-1.0", "at least 0"]),
        ({"max_grad_norm": None}, ["max_grad_norm=None", "must be a number"]),
        ({"max_grad_norm": 0.0}, ["max_grad_norm=0.0", "greater than 0"]),
        ({"clip_range": 0.0}, ["clip_range=0.0", "greater than 0"]),
        ({"target_kl": 0.0}, ["target_kl=0.0", "greater than 0"]),
        ({"sde_sample_freq": 0}, ["sde_sample_freq=0", "at least 1"]),
        ({"aux_coef": -1.0}, ["aux_coef=-1.0", "at least 0"]),
        ({"mask_ratio": 0.0}, ["mask_ratio=0.0", "between 0 and 1"]),
        ({"mask_ratio": 1.0}, ["mask_ratio=1.0", "between 0 and 1"]),
        ({"temperature": 0.0}, ["temperature=0.0", "greater than 0"]),
        ({"n_trajectories": -1}, ["n_trajectories=-1", "at least 0"]),
        ({"log_barrier_coef": -0.1}, ["log_barrier_coef=-0.1", "at least 0"]),
        ({"env": "Pendulum-v1", "log_barrier_coef": 0.1}, ["log_barrier_coef=0.1", "discrete actions", "ent_coef"]),
        ({"batch_size": 1}, ["batch_size=1", "at least 2"]),
        ({"n_steps": 1, "batch_size": 2}, ["n_steps=1", "n_envs=1"]),
        ({"n_steps": 0}, ["n_steps=0", "at least 1"]),
        ({"n_epochs": 0}, ["n_epochs=0", "at least 1"]),
        ({"n_epochs": -1}, ["n_epochs=-1", "at least 1"]),
        ({"n_epochs": 10.0}, ["n_epochs=10.0", "integer"]),
        ({"n_steps": "64"}, ["n_steps='64'", "integer"]),
        ({"batch_size": "64"}, ["batch_size='64'", "integer"]),
        ({"n_trajectories": 1.5}, ["n_trajectories=1.5", "integer"]),
        ({"aux_coef": "1"}, ["aux_coef='1'", "number"]),
        ({"aux_coef": float("nan")}, ["aux_coef=nan", "at least 0"]),
        ({"aux_loss": True}, ["aux_loss=True", "'next_step'"]),
        ({"aux_loss": 5}, ["aux_loss=5", "'next_step'"]),
        ({"clip_range_vf": -0.1}, ["clip_range_vf=-0.1", "None"]),
        ({"rollout_buffer_class": RolloutBuffer}, ["RolloutBuffer", "TrajectoryRolloutBuffer"]),
        ({"rollout_buffer_kwargs": {"n_context": 9}}, ["n_context=9", "needs 32", "context_length"]),
        ({"rollout_buffer_kwargs": {"n_landmarks": 4}}, ["n_landmarks=4", "needs 0", "dict(n_landmarks=...)"]),
        ({"rollout_buffer_kwargs": {"landmark_rule": "surprise"}}, ["'surprise'", "needs 'first'", "dict(landmark_rule=...)"]),
        ({"rollout_buffer_kwargs": {"held_noise": True}}, ["held_noise=True", "use_sde"]),
        (
            {"policy_kwargs": {"lstm_hidden_size": 64}},
            ["'lstm_hidden_size'", "RecurrentPPO's: use memory_actor", "d_model"],
        ),
        ({"policy_kwargs": {"landmark_rule": "last"}}, ["landmark_rule='last'", str(list(RULES))]),
        (
            {"policy_kwargs": {"landmark_rule": "surprise"}},
            ["landmark_rule='surprise' needs n_landmarks of at least 2", 'and memory_actor=True and aux_loss="next_step"'],
        ),
        (
            {"aux_coef": 0.0, "policy_kwargs": {"landmark_rule": "surprise", "n_landmarks": 2, "memory_actor": True}},
            ["landmark_rule='surprise' needs next-step prediction", "aux_coef=0"],
        ),
        (
            {"aux_loss": None, "policy_kwargs": {"landmark_rule": "surprise", "n_landmarks": 4, "memory_actor": True}},
            ["landmark_rule='surprise' needs aux_loss=\"next_step\""],
        ),
        ({"policy": type("OfPPO", (ActorCriticPolicy,), {})}, ["policy=OfPPO", "'MlpPolicy'"]),
        ({"policy": "MultiInputPolicy"}, ["'MultiInputPolicy'", "Dict", "'MlpPolicy'"]),
        ({"policy": "CnnPolicy"}, ["'CnnPolicy'", "image", "'MlpPolicy'"]),
        ({"policy_kwargs": {"horizon": 64}}, ["'horizon'", "known names: activation_fn", "memory_actor"]),
        ({"policy": "MlpLstmPolicy"}, ["'MlpLstmPolicy'", "RecurrentPPO", "'MlpPolicy'", "dict(memory_actor=True)"]),
        ({"policy": CnnLstmPolicy}, ["'RecurrentActorCriticCnnPolicy'", "RecurrentPPO", "'CnnPolicy'"]),
        ({"policy": ["MlpPolicy"]}, ["['MlpPolicy']", "is not a policy", "'MlpPolicy', 'CnnPolicy'"]),
        ({"policy_kwargs": "dict(memory_actor=True)"}, ["policy_kwargs='dict(memory_actor=True)'", "dictionary", "quotes"]),
        ({"policy_kwargs": {"memory_actr": True}}, ["'memory_actr'", "the closest known names are: memory_actor"]),
        ({"policy_kwargs": {"features_extractor": None}}, ["names are: share_features_extractor, features_"]),
        ({"policy_kwargs": {"aux_loss": "live"}}, ["'aux_loss'", "constructor", "AAC(..., aux_loss=...)"]),
        ({"policy_kwargs": {"n_steps": 64}}, ["'n_steps'", "AAC(..., n_steps=...)"]),
        ({"policy_kwargs": {"temperature": 0.2}}, ["'temperature'", "AAC(..., temperature=...)"]),
        ({"policy_kwargs": {"chunk_length": -3}}, ["chunk_length=-3", "at least 1"]),
        ({"policy_kwargs": {"chunk_length": 2.5}}, ["chunk_length=2.5", "integer"]),
        (
            {"policy_kwargs": {"memory_actor": True}, "rollout_buffer_kwargs": {"chunk_length": 0}},
            ["chunk_length=0", "at least 1"],
        ),
        ({"rollout_buffer_kwargs": {"chunk_length": 2.5}}, ["chunk_length=2.5", "integer"]),
        ({"policy_kwargs": {"age_input": "sine"}}, ["age_input='sine'", "[False, True, 'sinusoidal']"]),
        ({"policy_kwargs": {"memory_actor": "False"}}, ["memory_actor='False'", "True or False"]),
        ({"policy_kwargs": {"context_length": 3.5}}, ["context_length=3.5", "integer"]),
        ({"policy_kwargs": {"context_length": "8"}}, ["context_length='8'", "integer"]),
        ({"policy_kwargs": {"d_model": 64.0}}, ["d_model=64.0", "integer"]),
        ({"policy_kwargs": {"n_heads": "4"}}, ["n_heads='4'", "integer"]),
        ({"policy_kwargs": {"n_layers": 1.0}}, ["n_layers=1.0", "integer"]),
        ({"policy_kwargs": {"dropout": "0.1"}}, ["dropout='0.1'", "number"]),
        ({"policy_kwargs": {"share_encoder": True}}, ["share_encoder=True", "dict(memory_actor=True, share_encoder=True)"]),
        ({"policy_kwargs": {"local_window": 8}}, ["local_window=8", "dict(memory_actor=True, local_window=8)"]),
        ({"policy_kwargs": {"d_model": 10, "n_heads": 4}}, ["d_model=10", "n_heads=4", "[1, 2, 5, 10]"]),
        ({"policy_kwargs": {"context_length": 0}}, ["context_length=0", "at least 1"]),
        ({"policy_kwargs": {"n_layers": -1}}, ["n_layers=-1", "at least 0"]),
        ({"policy_kwargs": {"dropout": 1.0}}, ["dropout=1.0", "[0, 1)"]),
        ({"policy_kwargs": {"n_layers": 0, "memory_actor": True}}, ["memory_actor=True", "n_layers=0"]),
        (
            {"policy_kwargs": {"n_layers": 0, "age_input": "sinusoidal"}},
            ["age_input='sinusoidal' needs attention", "n_layers=0"],
        ),
        ({"policy_kwargs": {"n_layers": 0}, "aux_loss": "value"}, ["aux_loss", "n_layers=0"]),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, words):
    with pytest.raises(ValueError) as error:
        AAC(**{"policy": "MlpPolicy", "env": "CartPole-v1", **kwargs})
    for word in words:
        assert word in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("memory_actor", [np.False_, np.True_])
def test_integers_and_flags_of_numpy(memory_actor):
    network = {"context_length": np.int64(5), "d_model": np.int32(8), "n_heads": np.int64(2), "memory_actor": memory_actor}
    settings = {**SMALL, "n_steps": np.int64(10), "batch_size": np.int64(10), "n_epochs": np.int32(1)}
    AAC("MlpPolicy", random_env(), policy_kwargs=network, **settings).learn(20)


class PolicyOfOnesOwn(AttentionActorCriticPolicy):
    """Takes arguments that its signature does not have, and has other defaults."""

    def __init__(self, *args, **kwargs):
        self.mine = kwargs.pop("mine", None)
        super().__init__(*args, **{"memory_actor": True, **kwargs})


def test_arguments_of_a_policy_of_ones_own():
    model = AAC(PolicyOfOnesOwn, random_env(), policy_kwargs={**TINY, "mine": 1, "share_encoder": True}, **SMALL)
    assert model.policy.mine == 1 and model.policy.memory_actor
    with pytest.raises(ValueError, match=r"'context_lenght', which PolicyOfOnesOwn does not know.*: context_length"):
        AAC(PolicyOfOnesOwn, random_env(), policy_kwargs={"context_lenght": 8}, **SMALL)
    with pytest.raises(TypeError, match=r"FlattenExtractor.*'mine'"):
        AAC(PolicyOfOnesOwn, random_env(), policy_kwargs={"features_extractor_kwargs": {"mine": 1}, "mine": 1}, **SMALL)


def test_memory_is_switched_off_by_name(tmp_path):
    """As variants of one setting do; and a model that was saved with options that have no effect can be read."""
    options = {**TINY, "share_encoder": True, "local_window": 2}
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**options, "memory_actor": False}, **SMALL)
    model.policy_kwargs = options
    model.save(tmp_path / "model")
    AAC.load(tmp_path / "model", env=random_env())


def test_dict_and_tuple_observations():
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        AAC("MlpPolicy", random_env("Dict"))
    tuple_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))
    for env in (RandomEnv(tuple_space, spaces.Discrete(2)), DummyVecEnv([lambda: RandomEnv(tuple_space, spaces.Discrete(2))])):
        with pytest.raises(ValueError, match=r"Tuple observations are not supported.*Dict"):
            AAC("MlpPolicy", env)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MultiInputPolicy"])
def test_text_observations(policy, monkeypatch):
    space = spaces.Text(5) if policy == "MlpPolicy" else spaces.Dict(text=spaces.Text(5))
    monkeypatch.setitem(gym.registry, "Text-v0", EnvSpec("Text-v0", lambda **_: RandomEnv(space, spaces.Discrete(2))))
    for env in (RandomEnv(space, spaces.Discrete(2)), "Text-v0"):
        with pytest.raises(ValueError, match=r"Text observations are not supported.*Dict"):
            AAC(policy, env)


def test_rounded_minibatches_are_announced_once():
    with pytest.warns(UserWarning, match="whole chunks of 10 steps, so 10 transitions") as caught:
        model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": True}, **{**SMALL, "batch_size": 12})
        model.learn(40)
    assert len(caught) == 1


class BrokenEnv(gym.Wrapper):
    """Gives a reward that is not a number after 30 steps."""

    def __init__(self, env, bad):
        super().__init__(env)
        self.n, self.bad = 0, bad

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.n += 1
        return obs, self.bad if self.n == 31 else reward, terminated, truncated, info


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("memory_actor", "aux_loss"), [(False, None), (True, None), (True, ["live", "return"])])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_stops_before_the_step(tmp_path, bad, memory_actor, aux_loss):
    env = BrokenEnv(gym.make("CartPole-v1"), bad)
    model = AAC("MlpPolicy", env, policy_kwargs={**TINY, "memory_actor": memory_actor}, aux_loss=aux_loss, **SMALL)
    model.learn(30)
    good = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"loss is not finite at iteration 4 \(40 timesteps\)") as raised:
        model.learn(10, reset_num_timesteps=False)
    assert isinstance(raised.value, ValueError)  # RL Zoo's search prunes such a trial
    for name, value in model.policy.state_dict().items():
        statistics = "normalizer" in name
        assert th.isfinite(value).all() if statistics else th.equal(value, good[name]), name
    model.save(tmp_path / "model")
    AAC.load(tmp_path / "model", env=gym.make("CartPole-v1"), device="cpu").learn(10)


@pytest.mark.parametrize("memory_actor", [False, True])
def test_an_observation_that_is_not_finite_is_not_acted_on(memory_actor):
    """As SB3's PPO: the action would look valid, and a memory would keep it beyond the episode."""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    with pytest.raises(ValueError, match=r"not finite|invalid values"):
        model.predict(np.full((2, 3), np.nan, dtype=np.float32))
    model._last_obs = np.full((2, 3), np.nan, dtype=np.float32)
    model._last_episode_starts = np.ones(2, dtype=bool)
    with pytest.raises(ValueError, match="not finite"):
        model.learn(20, reset_num_timesteps=False)


def test_other_network_arguments_at_load(tmp_path):
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="d_model: 8 in the file, 16 here"):
        AAC.load(tmp_path / "model", env=random_env(), policy_kwargs={**TINY, "d_model": 16})
    with pytest.raises(ValueError, match="aux_loss: None in the file, 'value' here"):
        AAC.load(tmp_path / "model", env=random_env(), aux_loss="value")
    assert AAC.load(tmp_path / "model", env=random_env(), policy_kwargs=TINY, learning_rate=1e-4).learning_rate == 1e-4
    other = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "d_model": 16}, **SMALL)
    with pytest.raises(ValueError, match="d_model: 8 in the file, 16 here"):
        other.set_parameters(tmp_path / "model")


@pytest.mark.filterwarnings("ignore:batch_size")
def test_the_same_network_said_in_other_words(tmp_path):
    """What a file keeps as a list, what is a default, and what only the first values depend on"""
    policy_kwargs = {**TINY, "net_arch": (8, 8), "optimizer_kwargs": {"betas": (0.8, 0.99)}}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, aux_loss=("return",), **SMALL)
    model.save(tmp_path / "model")
    model.set_parameters(tmp_path / "model")
    policy_kwargs = {**TINY, "net_arch": [8, 8], "ortho_init": True, "n_layers": 1, "log_std_init": -1.0}
    other = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, aux_loss="value", **{**SMALL, "seed": 1})
    other.set_parameters(tmp_path / "model")
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name])
    assert AAC.load(tmp_path / "model", aux_loss=["return"], batch_size=None).batch_size == 64


class Extractor(FlattenExtractor):
    def __init__(self, observation_space, mean):
        super().__init__(observation_space)
        self.mean = mean


def test_a_model_takes_its_own_file(tmp_path):
    """Objects that are not equal to what they are read back as, and a class that another script knows by another module"""
    policy_kwargs = {**TINY, "activation_fn": partial(th.nn.LeakyReLU, 0.1), "features_extractor_class": Extractor}
    policy_kwargs["features_extractor_kwargs"] = {"mean": np.zeros(3)}
    model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **SMALL)
    model.save(tmp_path / "model")
    model.set_parameters(tmp_path / "model")
    here = type("Extractor", (Extractor,), {"__module__": "__main__"})
    policy_kwargs = {**policy_kwargs, "features_extractor_class": here}
    AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **SMALL).set_parameters(tmp_path / "model")


def test_set_parameters_round_trip():
    model, other = (AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **{**SMALL, "seed": s}).learn(20) for s in (0, 1))
    other.set_parameters(model.get_parameters())
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name])
    stored = [m.policy.optimizer.state_dict()["state"] for m in (model, other)]
    assert all(th.equal(stored[0][i]["exp_avg"], stored[1][i]["exp_avg"]) for i in stored[0])


@pytest.mark.parametrize("memory_actor", [False, True])
def test_what_reset_returns_is_not_an_observation(memory_actor):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    with pytest.raises(ValueError, match="tuple"):
        model.predict((np.zeros(3, dtype=np.float32), {}))


def test_wrong_state_is_named():
    model = AAC("MlpPolicy", random_env(n_envs=2), policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
    _, state = model.predict(np.zeros((2, 3), dtype=np.float32))
    obs = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"is for 2 environment\(s\), but there are 3 observation\(s\): pass .*None"):
        model.predict(np.zeros((3, 3), dtype=np.float32), state)
    with pytest.raises(ValueError, match="state is 5: pass"):
        model.predict(obs, 5)
    with pytest.raises(ValueError, match=f"state has 1 arrays, but a state of this policy has {len(state)}: pass"):
        model.predict(obs, state[:1])
    wider = AAC("MlpPolicy", random_env(n_envs=2), policy_kwargs={**TINY, "memory_actor": True, "d_model": 24}, **SMALL)
    with pytest.raises(ValueError, match=r"not one of this policy: its keys have the shape \(.*\), expected is \(.*\): pass"):
        model.predict(obs, wider.predict(obs)[1])


def test_wrong_episode_start_is_named():
    model = AAC("MlpPolicy", random_env(n_envs=2), policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
    _, state = model.predict(obs := np.zeros((3, 3), dtype=np.float32))
    for given in (state, None):
        with pytest.raises(ValueError, match=r"episode_start has 2 value\(s\), but there are 3 observation\(s\): pass"):
            model.predict(obs, given, np.zeros(2, dtype=bool))
