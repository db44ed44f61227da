"""What public scripts for PPO and MaskablePPO do: their vectorized environments, callbacks, buffers and policies."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.ppo import MlpPolicy
from test_masks import Guarded
from test_run import SMALL, TINY, RandomEnv, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.attention_q import AttentionQ
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.networks.distributions import DiagonalGaussian
from sb3_attention_ac.policies import AttentionActorCriticMultiInputPolicy, AttentionActorCriticPolicy
from sb3_attention_ac.updates import MemoryActorUpdate, MlpActorUpdate
from sb3_attention_ac.validation import warn_about_replaced_methods

BOX = spaces.Box(-1, 1, (3,))

both_actors = pytest.mark.parametrize("memory_actor", [False, True])


def make(env: Any = None, memory_actor: bool = False, algorithm: type[AAC] = AAC, policy: Any = "MlpPolicy", **options: Any):
    policy_kwargs = {**TINY, "memory_actor": memory_actor}
    return algorithm(policy, env or random_env(), **{**SMALL, "policy_kwargs": policy_kwargs, **options})


def env_of(action_space: Any, observation_space: Any = BOX) -> Callable[[], RandomEnv]:
    return lambda: RandomEnv(observation_space, action_space)


# --- vectorized environments that do not know the question for masks ---


class WithoutHasAttr(DummyVecEnv):
    """As SuperSuit's"""

    def has_attr(self, attr_name):
        raise AttributeError("'ConcatVecEnv' object has no attribute 'has_attr'")

    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)


class FewAttributes(DummyVecEnv):
    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise NotImplementedError


class NoneForAll(DummyVecEnv):
    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [None] * self.num_envs


@both_actors
@pytest.mark.parametrize("vec_env", [WithoutHasAttr, FewAttributes, NoneForAll])
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=repr)
def test_vectorized_environments_that_know_nothing_of_masks(vec_env, space, memory_actor):
    model = make(vec_env([env_of(space)] * 2), memory_actor)
    model.learn(40)
    assert model.use_masking is False and model.num_timesteps >= 40


# --- callbacks ---


class LearnsFromLocals(BaseCallback):
    """A curiosity module of one's own, and log probabilities that are changed in place"""

    def _on_training_start(self) -> None:
        self.net = th.nn.Linear(3, 1)

    def _on_step(self) -> bool:
        loss = self.net(self.locals["obs_tensor"]).sum()
        loss.backward()
        assert self.model.policy.predict_values(obs=self.locals["obs_tensor"]).requires_grad
        assert self.model.policy.get_distribution(self.locals["obs_tensor"]).log_prob(th.zeros(2)).requires_grad
        self.locals["log_probs"][0] += 0.5
        self.mine = self.locals["log_probs"].numpy().copy()
        return True

    def _on_rollout_end(self) -> None:
        np.testing.assert_array_equal(self.locals["rollout_buffer"].log_probs[-1], self.mine)


@both_actors
def test_tensors_in_a_callbacks_locals_are_ordinary_ones(memory_actor):
    make(memory_actor=memory_actor).learn(40, callback=LearnsFromLocals())


class SeesMasks(BaseCallback):
    def _on_step(self) -> bool:
        masks = self.locals["action_masks"]
        assert isinstance(masks, np.ndarray)
        self.seen = masks.shape
        return True


@both_actors
def test_masks_stand_where_maskable_ppo_has_them(memory_actor):
    env = DummyVecEnv([Guarded] * 2)
    shapes, samples = [], []
    for model in (make(env, memory_actor), MaskablePPO("MlpPolicy", env, n_steps=10, batch_size=10, n_epochs=1)):
        callback = SeesMasks()
        model.learn(20, callback=callback)
        shapes.append(callback.seen)
        samples.append(next(model.rollout_buffer.get(10)))
    assert shapes[0] == shapes[1]
    assert samples[0]._fields == samples[1]._fields
    assert samples[0].action_masks.shape == samples[1].action_masks.shape


def test_masks_are_asked_for_by_collect_rollouts_alone():
    class Managed(AAC):
        def collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps, use_masking=True):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, use_masking)

    env = DummyVecEnv([Guarded] * 2)
    model = make(env, algorithm=Managed, policy_kwargs=TINY)
    model.learn(20)
    assert model.rollout_buffer.action_masks is not None
    model = make(env)
    _, callback = model._setup_learn(20)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    assert model.rollout_buffer.action_masks is not None  # as contrib: masks are the default
    with pytest.raises(RuntimeError, match="is not allowed by"):
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps, use_masking=False)


# --- buffers ---


@both_actors
@pytest.mark.parametrize("n_steps", [7, 40])
def test_a_buffer_of_another_size(n_steps, memory_actor):
    model = make(memory_actor=memory_actor, batch_size=20)
    model.learn(40)
    model.n_steps = n_steps
    with pytest.raises(ValueError, match="are to be collected: set rollout_buffer"):
        model.learn(40)
    model.rollout_buffer.buffer_size = n_steps
    model.rollout_buffer.reset()
    model.learn(2 * n_steps * model.n_envs)
    assert model.rollout_buffer.observations.shape[:2] == (n_steps, model.n_envs)


def test_other_buffers_are_refused_in_words():
    model = make()
    arguments = model.n_steps, model.observation_space, model.action_space
    model.rollout_buffer = RolloutBuffer(*arguments, n_envs=model.n_envs)
    with pytest.raises(ValueError, match="rollout_buffer is a RolloutBuffer, but attention needs a TrajectoryRolloutBuffer"):
        model.learn(40)
    model.rollout_buffer = TrajectoryRolloutBuffer(*arguments, n_envs=model.n_envs, n_context=99)
    with pytest.raises(ValueError, match=r"n_context=99, but the policy needs \d+"):
        model.learn(40)


class Signatures(TrajectoryRolloutBuffer):
    """SB3's own"""

    calls = 0

    def add(self, obs, action, reward, episode_start, value, log_prob):
        super().add(obs, action, reward, episode_start, value, log_prob)

    def compute_returns_and_advantage(self, last_values, dones):
        super().compute_returns_and_advantage(last_values, dones)
        self.returns *= 1.0
        Signatures.calls += 1


@both_actors
def test_a_buffers_methods_may_have_sb3s_signature(memory_actor):
    Signatures.calls = 0
    make(memory_actor=memory_actor, rollout_buffer_class=Signatures).learn(40)
    assert Signatures.calls > 0


def test_an_override_that_is_not_called_is_said():
    class Reads(TrajectoryRolloutBuffer):
        def get(self, batch_size=None):
            return super().get(batch_size)

    with pytest.warns(UserWarning, match=r"Reads overrides get\(\), which is not called in training"):
        make(rollout_buffer_class=Reads)


def test_values_that_are_added_are_old_values():
    buffer = TrajectoryRolloutBuffer(2, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), n_envs=2)
    for value in (1.0, 2.0):
        zeros = np.zeros((2, 1))
        buffer.add(zeros, zeros, np.zeros(2), np.zeros(2), th.full((2, 1), value), th.zeros(2))
    assert next(buffer.get()).old_values.sort().values.tolist() == [1, 1, 2, 2]


# --- policies ---


def test_sb3s_policies_are_the_aliases():
    for policy in ("MlpPolicy", MlpPolicy, ActorCriticPolicy, MaskableActorCriticPolicy):
        assert type(make(policy=policy).policy) is AttentionActorCriticPolicy
    env = DummyVecEnv([env_of(spaces.Discrete(2), spaces.Dict({"a": BOX}))])
    model = make(env, policy=MultiInputActorCriticPolicy)
    assert type(model.policy) is AttentionActorCriticMultiInputPolicy
    with pytest.raises(ValueError, match="is not a subclass of AttentionActorCriticPolicy"):
        make(policy=type("Own", (ActorCriticPolicy,), {}))


class Positional(AttentionActorCriticPolicy):
    """As SB3's documentation once had it"""

    def __init__(self, observation_space, action_space, lr_schedule, net_arch=None, activation_fn=th.nn.Tanh, *args, **kwargs):
        super().__init__(observation_space, action_space, lr_schedule, net_arch, activation_fn, *args, **kwargs)


@both_actors
def test_sb3s_arguments_may_be_positional(memory_actor):
    policy_kwargs = {"net_arch": [7], "activation_fn": th.nn.ReLU, "context_length": 5, "memory_actor": memory_actor}
    model = make(policy=Positional, policy_kwargs=policy_kwargs)
    assert model.policy.net_arch == [7] and model.policy.activation_fn is th.nn.ReLU
    assert model.policy.architecture.context_length == 5
    model.learn(40)


class CombinedOfVectors(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

    def forward(self, observations):
        return observations["image"].flatten(2).mean(dim=-1)


class Shifted(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations) + 1.5


@both_actors
def test_a_features_extractor_that_is_put_in_is_acted_with(memory_actor, monkeypatch):
    """As that of a pretrained model: SB3 knows a shared one under three names, and reads one of them."""
    model = make(memory_actor=memory_actor, learning_rate=0.0)
    model.policy.features_extractor = Shifted(model.observation_space)
    model.learn(40)
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-9 and model.logger.name_to_value["train/clip_fraction"] == 0
    obs = model._last_obs
    before = model.predict(obs, deterministic=True)[0]
    model.policy.features_extractor = FlattenExtractor(model.observation_space)
    shifted = model.predict(obs + 1.5, deterministic=True)[0]
    np.testing.assert_array_equal(before, shifted)


def test_a_distribution_that_is_put_in_is_refused():
    model = make(DummyVecEnv([env_of(spaces.Box(-1, 1, (2,)))]))
    model.policy.action_dist = SquashedDiagGaussianDistribution(2)
    with pytest.raises(TypeError, match="SquashedDiagGaussianDistribution"):
        model.learn(40)
    model.policy.action_dist = DiagGaussianDistribution(2)
    model.learn(40)


@both_actors
def test_methods_that_are_put_in_are_said_to_have_no_effect(memory_actor):
    model = make(memory_actor=memory_actor)
    model.policy.evaluate_actions = lambda *args: pytest.fail("called")
    with pytest.warns(UserWarning, match=r"Training does not call evaluate_actions\(\) of the policy"):
        model.learn(40)
    model = make(memory_actor=memory_actor)
    model.policy.register_forward_hook(lambda *args: pytest.fail("called"))
    with pytest.warns(UserWarning, match="Training does not call forward hooks of the policy"):
        model.learn(40)


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_an_image_too_small_for_the_default_network(policy):
    def of(side: int) -> DummyVecEnv:
        image = spaces.Box(0, 255, (3, side, side), np.uint8)
        return DummyVecEnv([env_of(spaces.Discrete(2), image if policy == "CnnPolicy" else spaces.Dict({"image": image}))])

    message = r"image \(3, 35, 35\) is too small for .*, whose NatureCNN needs 36 x 36 pixels"
    with pytest.raises(ValueError, match=message) as error:
        make(of(35), policy=policy)
    assert ("return it as float32" in str(error.value)) == (policy == "MultiInputPolicy")
    make(of(36), policy=policy)
    extractor = FlattenExtractor if policy == "CnnPolicy" else CombinedOfVectors
    make(of(12), policy=policy, policy_kwargs={**TINY, "features_extractor_class": extractor})


# --- what is added by subclasses ---


class TanhGaussian(DiagonalGaussian):
    """Actions within (-1, 1): the mean and the deviation are those of their inverse hyperbolic tangent"""

    def sample(self, given, deterministic=False):
        actions = super().sample(given, deterministic)[0].tanh().clamp(-0.999, 0.999)
        return actions, self.log_prob_and_entropy(given, actions)[0]

    def log_prob_and_entropy(self, given, actions):
        log_prob, _ = super().log_prob_and_entropy(given, actions.atanh())
        return log_prob - (1 - actions.square()).log().sum(dim=-1), None


class WithFunctions(DiagGaussianDistribution):
    def as_functions(self) -> TanhGaussian:
        return TanhGaussian()


class TanhPolicy(AttentionActorCriticPolicy):
    def _build(self, lr_schedule) -> None:
        self.action_dist = WithFunctions(2)
        super()._build(lr_schedule)


@both_actors
def test_a_distribution_of_ones_own(memory_actor, tmp_path):
    env = DummyVecEnv([env_of(spaces.Box(-1, 1, (2,)))] * 2)
    model = make(env, memory_actor, policy=TanhPolicy, learning_rate=0.0)
    model.learn(60)
    actions = model.rollout_buffer.actions
    assert (np.abs(actions) < 1).all() and np.abs(actions).max() > 0.9
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6
    model.save(tmp_path / "model")
    again = AAC.load(tmp_path / "model")
    obs = model._last_obs
    np.testing.assert_array_equal(again.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    with pytest.raises(ValueError, match="tilts categorical and Gaussian actions, not Another"):
        AttentionQ(4, type("Another", (), {})(), 2)


@both_actors
def test_a_distribution_of_ones_own_may_be_put_in_later(memory_actor):
    model = make(DummyVecEnv([env_of(spaces.Box(-1, 1, (2,)))] * 2), memory_actor, learning_rate=0.0)
    model.policy.action_dist = WithFunctions(2)
    model.learn(60)
    assert isinstance(model.policy.distribution, TanhGaussian) and (np.abs(model.rollout_buffer.actions) < 1).all()
    assert abs(model.logger.name_to_value["train/approx_kl"]) < 1e-6


def test_without_pytorchs_private_names_of_hooks_there_is_no_warning():
    warn_about_replaced_methods(SimpleNamespace())


@both_actors
def test_another_term_of_the_loss(memory_actor):
    """It needs no copy of train(), and nothing else learns more often for it."""

    class Shrinks(MemoryActorUpdate if memory_actor else MlpActorUpdate):
        def losses(self, batch):
            losses = super().losses(batch)
            return losses | {"l2": 10.0 * self.policy.action_net.weight.square().sum()}

    class Own(AAC):
        def _make_update(self, settings, log):
            return Shrinks(self.policy, self.rollout_buffer, self.recent_trajectories, settings, log)

    steps, norms = [], []
    for algorithm in (AAC, Own):
        model = make(None, memory_actor, algorithm, aux_loss="contrastive", aux_coef=0.0)
        before = model.policy.action_net.weight.norm().item()
        calls: list[int] = []
        follow = model.policy.update_key_encoder
        model.policy.update_key_encoder = lambda follow=follow, calls=calls: (calls.append(1), follow())
        model.learn(60)
        steps.append(len(calls))
        norms.append(model.policy.action_net.weight.norm().item() - before)
    assert steps[0] == steps[1] > 0
    assert norms[1] < norms[0]
