"""Every observation and action space, wrapper and option that SB3's PPO takes: train two rollouts, predict, save and load."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sb3_attention_ac import AAC
from sb3_attention_ac.train_log import TrainLog
from sb3_attention_ac.type_aliases import TransitionSamples, WindowSamples
from sb3_attention_ac.updates import update_class

OBSERVATION_SPACES = {
    "Box": spaces.Box(-1.0, 1.0, (3,)),
    "Box2d": spaces.Box(-1.0, 1.0, (2, 3)),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict(
        {"vector": spaces.Box(-1.0, 1.0, (2,)), "discrete": spaces.Discrete(3), "bits": spaces.MultiBinary(2)}
    ),
    "image": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8),
    "DictImage": spaces.Dict(
        {"image": spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8), "vector": spaces.Box(-1.0, 1.0, (2,))}
    ),
}
ACTION_SPACES = {
    "Box": spaces.Box(-2.0, 2.0, (2,)),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
SMALL = {"n_steps": 10, "batch_size": 10, "n_epochs": 1, "seed": 0, "device": "cpu"}
TINY = {"context_length": 5, "d_model": 8, "n_heads": 2}


class RandomEnv(gym.Env):
    """Random observations; episodes of 7 steps, every other one cut off by a time limit."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.episode = self.step_in_episode = 0

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.step_in_episode = self.episode + 1, 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.step_in_episode += 1
        end = self.step_in_episode == 7
        cut_off = end and self.episode % 2 == 0
        return self.observation_space.sample(), 1.0, end and not cut_off, cut_off, {}


def random_env(observations="Box", actions="Discrete", n_envs=2):
    observation_space, action_space = OBSERVATION_SPACES[observations], ACTION_SPACES[actions]
    return DummyVecEnv([lambda: Monitor(RandomEnv(observation_space, action_space)) for _ in range(n_envs)])


def policy_for(observations: str) -> str:
    return "MultiInputPolicy" if observations.startswith("Dict") else "CnnPolicy" if observations == "image" else "MlpPolicy"


def check_runs(model, tmp_path):
    """Train, predict, save, load, predict the same, train on"""
    n_steps = model.n_steps * model.n_envs
    model.learn(2 * n_steps)
    assert model.num_timesteps == 2 * n_steps
    env = model.get_env()
    obs = env.reset()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=env, device="cpu")
    state = loaded_state = None
    for _ in range(3):
        action, state = model.predict(obs, state, deterministic=True)
        loaded_action, loaded_state = loaded.predict(obs, loaded_state, deterministic=True)
        np.testing.assert_array_equal(action, loaded_action)
        obs = env.step(action)[0]
    loaded.learn(n_steps, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * n_steps
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize(("memory_actor", "n_steps", "expected"), [(False, 256, 64), (True, 256, 256), (True, 64, 128)])
def test_default_minibatch(memory_actor, n_steps, expected):
    model = AAC("MlpPolicy", random_env(n_envs=2), n_steps=n_steps, policy_kwargs={"memory_actor": memory_actor}, device="cpu")
    assert model.batch_size == expected


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
def test_observation_spaces(tmp_path, observations, memory_actor):
    policy_kwargs = {**TINY, "memory_actor": memory_actor}
    if observations in ("image", "DictImage") and memory_actor:
        policy_kwargs["share_features_extractor"] = False
    env = random_env(observations)
    model = AAC(policy_for(observations), env, aux_loss="prediction", policy_kwargs=policy_kwargs, **SMALL)
    assert isinstance(model.get_env(), VecTransposeImage) == ("mage" in observations)
    check_runs(model, tmp_path)


@pytest.mark.parametrize("kwargs", [{}, {"memory_actor": True}, {"memory_actor": True, "share_encoder": True, "n_layers": 2}])
@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_action_spaces(tmp_path, actions, kwargs):
    model = AAC("MlpPolicy", random_env(actions=actions), aux_loss="contrastive", policy_kwargs={**TINY, **kwargs}, **SMALL)
    check_runs(model, tmp_path)


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(tmp_path, squash_output, memory_actor):
    policy_kwargs = {**TINY, "squash_output": squash_output, "memory_actor": memory_actor}
    env = random_env(actions="Box")
    check_runs(AAC("MlpPolicy", env, use_sde=True, sde_sample_freq=4, policy_kwargs=policy_kwargs, **SMALL), tmp_path)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"n_layers": 0},
        {"n_layers": 0, "local_window": 1},
        {"dropout": 0.1, "memory_actor": True},
        {"net_arch": [], "memory_actor": True},
        {"net_arch": {"pi": [8], "vf": [16, 16]}, "activation_fn": th.nn.ReLU, "ortho_init": False},
        {"optimizer_class": th.optim.SGD},
        {"context_length": 64, "memory_actor": True},  # longer than the rollout
        {"context_length": 1, "memory_actor": True},
        {"context_length": 4, "memory_actor": True},  # the rollout is no multiple of it
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:batch_size=:UserWarning")
def test_policy_kwargs(tmp_path, policy_kwargs):
    check_runs(AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **policy_kwargs}, **SMALL), tmp_path)


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("wrapper", ["normalize", "stack", pytest.param("subproc", marks=pytest.mark.slow)])
def test_vec_envs(tmp_path, wrapper, memory_actor):
    if wrapper == "subproc":
        env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    else:
        env = make_vec_env("Pendulum-v1", n_envs=2)
        env = VecNormalize(env) if wrapper == "normalize" else VecFrameStack(env, 3)
    check_runs(AAC("MlpPolicy", env, policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL), tmp_path)
    env.close()


@pytest.mark.parametrize(
    "options", [{"target_kl": 1e-9}, {"clip_range_vf": 0.2}, {"normalize_advantage": False, "ent_coef": 0.1}]
)
@pytest.mark.parametrize("memory_actor", [False, True])
def test_options(tmp_path, options, memory_actor):
    options = {**SMALL, "n_epochs": 2, **options}
    check_runs(AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **options), tmp_path)


def test_literal_usage():
    """As in PPO's documentation, with the environment's name and all defaults"""
    model = AAC("MlpPolicy", "CartPole-v1", n_steps=64).learn(64, progress_bar=False)
    action, state = model.predict(model.get_env().reset())
    assert action.shape == (1,) and state is None


@pytest.mark.parametrize(
    "kwargs", [{}, {"aux_loss": "prediction", "n_trajectories": 5, "policy_kwargs": {"memory_actor": True}}]
)
def test_same_seed_same_run(kwargs):
    kwargs = {**SMALL, **kwargs, "policy_kwargs": {**TINY, **kwargs.get("policy_kwargs", {})}}
    runs = [AAC("MlpPolicy", "CartPole-v1", **kwargs).learn(40).policy.state_dict() for _ in range(2)]
    for name, value in runs[0].items():
        th.testing.assert_close(value, runs[1][name], rtol=0, atol=0)
    other = AAC("MlpPolicy", "CartPole-v1", **{**kwargs, "seed": 1}).learn(40).policy.state_dict()
    assert not th.equal(other["action_net.weight"], runs[0]["action_net.weight"])


def test_number_of_envs_may_change_at_load(tmp_path):
    AAC("MlpPolicy", random_env(n_envs=1), policy_kwargs=TINY, **SMALL).learn(10).save(tmp_path / "model")
    model = AAC.load(tmp_path / "model", env=random_env(n_envs=3), device="cpu")
    assert model.learn(30, reset_num_timesteps=False).num_timesteps == 40


@pytest.mark.parametrize("memory_actor", [False, True])
def test_every_step_is_seen_once(memory_actor):
    """By the MLPs in each epoch, by attention beside them in each pass of its own, here four epochs."""
    options = {**SMALL, "n_steps": 40, "batch_size": 10, "rollout_buffer_kwargs": {"chunk_length": 5 if memory_actor else 10}}
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **options).learn(80)
    model.rollout_buffer.returns[:] = np.arange(80).reshape(40, 2)
    model.rollout_buffer._targets = {}
    update = update_class(model.policy)(
        model.policy, model.rollout_buffer, model.recent_trajectories, model._update_settings(), TrainLog(0.2)
    )
    batches = [batch for epoch in range(1 if memory_actor else 4) for batch in update.minibatches(epoch)]
    if memory_actor:
        batches = [windows for windows, _ in batches]
    mlps = [batch.returns for batch in batches if isinstance(batch, TransitionSamples)]
    attention = [batch.returns.flatten() for batch in batches if isinstance(batch, WindowSamples)]
    assert len(mlps) == (0 if memory_actor else 32) and len(attention) == (8 if memory_actor else 4)
    for parts in filter(None, (mlps[:8], mlps[24:], attention)):
        assert th.cat(parts).sort().values.tolist() == list(range(80))


def test_target_kl_stops_the_mlps_but_not_attention():
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, target_kl=1e-9, **{**SMALL, "n_epochs": 3, "n_steps": 40})
    before = model.policy.critic_network.output_proj.weight.clone()
    steps = []
    optimize = model._optimize
    model._optimize = lambda losses, *others: (steps.append(set(losses)), optimize(losses, *others))
    model.learn(80)
    # The first minibatch has a ratio of one; the second exceeds the limit, as in PPO; attention has one in each epoch
    assert sum("policy_gradient_loss" in names for names in steps) == sum("value_loss" in names for names in steps) == 1
    assert sum("attention_value_loss" in names for names in steps) == 3
    assert not th.equal(model.policy.critic_network.output_proj.weight, before)


def test_early_stopping_prints_the_divergence(capsys):
    """As PPO, word for word"""
    settings = {**SMALL, "n_epochs": 3, "n_steps": 40, "target_kl": 1e-9, "verbose": 1}
    for algorithm in (PPO, AAC):
        algorithm("MlpPolicy", random_env(), **settings).learn(80)
        assert re.search(r"Early stopping at step \d due to reaching max kl: \d\.\d\d\n", capsys.readouterr().out)


def test_the_last_rollout_does_not_unlearn():
    """25 steps are three rollouts of ten: SB3 gives schedules a negative progress for the last one."""
    seen = []

    def falling(progress_remaining: float) -> float:
        seen.append(progress_remaining)
        return 1e-3 * progress_remaining

    model = AAC("MlpPolicy", "CartPole-v1", learning_rate=falling, **SMALL).learn(25)
    assert model.num_timesteps == 30
    assert min(seen) == 0 and max(seen) == 1


class LearnedFeatures(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.scale = th.nn.Parameter(th.ones(self.features_dim))

    def forward(self, observations):
        return super().forward(observations) * self.scale


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(
    ("network", "aux_loss", "is_left_out"),
    [
        ({}, None, True),
        ({"features_extractor_class": LearnedFeatures}, None, False),
        ({"features_extractor_class": LearnedFeatures, "share_features_extractor": False}, None, True),
        ({"share_encoder": True}, None, False),
        ({}, "next_step", True),
        ({"share_features_extractor": False}, "next_step", True),
        ({}, ["reward"], False),
        ({"attention_q": True}, None, False),
    ],
)
def test_a_critic_apart_from_a_memory_actor_learns_from_every_second_minibatch(network, aux_loss, is_left_out):
    settings = {**SMALL, "n_epochs": 3, "aux_loss": aux_loss, "policy_kwargs": {**TINY, "memory_actor": True, **network}}
    model = AAC("MlpPolicy", random_env(), **settings)
    seen, optimize = [], model._optimize

    def recording(losses, *others):
        optimize(losses, *others)
        learned = [model.policy.value_net.weight.grad, model.policy.action_net.weight.grad]
        assert aux_loss != "next_step" or "aux_next_reward_loss" in losses  # also without the critic
        assert ["value_loss" in losses, "policy_gradient_loss" in losses] == [gradient is not None for gradient in learned]
        seen.append("value_loss" in losses)
        assert learned[1] is not None

    model._optimize = recording
    model.learn(20)
    if is_left_out:  # two minibatches in an epoch, in turns
        assert seen == [True, False, False, True, True, False]
    else:
        assert all(seen) and len(seen) == 6


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("actions", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_the_log_barrier_opens_a_policy_that_is_nearly_certain(actions, memory_actor):
    """Saturated, and with rewards that say nothing: an entropy bonus of the same size leaves it as it is."""
    certain = {}
    for name in ("log_barrier_coef", "ent_coef"):
        policy_kwargs = {**TINY, "memory_actor": memory_actor}
        settings = {**SMALL, "learning_rate": 0.05, "n_epochs": 10, "aux_loss": None, name: 0.1}
        model = AAC("MlpPolicy", random_env(actions=actions), policy_kwargs=policy_kwargs, **settings)
        with th.no_grad():
            model.policy.action_net.bias[0] = 40.0
        model.learn(40)
        with th.no_grad():
            certain[name] = model.policy.action_net.bias[0].item()
    assert certain["log_barrier_coef"] < 39.8 and certain["ent_coef"] == pytest.approx(40.0, abs=1e-3)
