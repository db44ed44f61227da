"""Action masks by sb3-contrib's protocol, with and without memory."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_attention_ac import AAC
from sb3_attention_ac.evaluation import evaluate_actions, evaluate_transitions

SPACES = {
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([2, 4, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}
SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


class Guarded(gym.Env):
    """Raises where an action is not allowed; the mask is drawn anew in each step."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, kind: str = "Discrete", length: int = 11):
        self.action_space, self.length = SPACES[kind], length
        self.sizes = {"Discrete": [5], "MultiDiscrete": [2, 4, 3], "MultiBinary": [2] * 3}[kind]

    def _next(self) -> np.ndarray:
        parts = []
        for n in self.sizes:
            part = self.np_random.random(n) < 0.4
            part[self.np_random.integers(n)] = True
            parts.append(part)
        self.mask = np.concatenate(parts)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def action_masks(self) -> np.ndarray:
        return self.mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        parts = np.split(self.mask, np.cumsum(self.sizes)[:-1])
        allowed = all(part[int(a)] for part, a in zip(parts, np.atleast_1d(action), strict=True))
        if not allowed:
            raise RuntimeError(f"{action} is not allowed by {self.mask}")
        self.t += 1
        return self._next(), float(self.t), False, self.t >= self.length, {}


def make_model(kind: str, memory_actor: bool, **kwargs) -> AAC:
    env = DummyVecEnv([lambda: Guarded(kind)] * 3)
    policy_kwargs = {"memory_actor": memory_actor, "context_length": 4, "net_arch": [8], "d_model": 8, "n_heads": 2}
    return AAC("MlpPolicy", env, policy_kwargs={**policy_kwargs, **kwargs.pop("policy_kwargs", {})}, **{**SMALL, **kwargs})


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize("kind", SPACES)
def test_an_action_that_is_not_allowed_is_never_taken(kind, memory_actor):
    model = make_model(kind, memory_actor)
    model.learn(3 * 32 * 3)  # the environment raises
    for deterministic in (True, False):
        evaluate_policy(model, Monitor(Guarded(kind)), n_eval_episodes=3, deterministic=deterministic, warn=False)


def test_without_masks_such_actions_are_taken():
    """The counterpart: the environment of the test above does notice."""
    with pytest.raises(RuntimeError, match="is not allowed"):
        make_model("Discrete", False).learn(96, use_masking=False)


@pytest.mark.parametrize(
    "options", [{}, {"share_encoder": True}, {"n_landmarks": 2, "age_input": True}, {"attention_q": True}]
)
@pytest.mark.parametrize("kind", SPACES)
def test_the_first_ratio_is_one_with_masks_and_memory(kind, options):
    model = make_model(kind, True, policy_kwargs=options, aux_loss=None if "attention_q" in options else "auto")
    differences = []

    def check() -> None:
        with th.no_grad():
            for batch in model.rollout_buffer.get_windows(None):
                assert batch.action_masks is not None and not batch.action_masks.all()
                log_prob, *_ = evaluate_actions(
                    model.policy, model.policy.encode_windows(batch.windows, batch.actions.shape[1]), batch
                )
                differences.append((log_prob - batch.old_log_prob).abs().max())
        train()

    train, model.train = model.train, check
    model.learn(3 * 32 * 2)
    assert len(differences) == 2 and max(differences) < 1e-5


def test_the_first_ratio_is_one_with_masks_and_an_mlp_actor():
    model = make_model("MultiDiscrete", False)
    train = model.train

    def check() -> None:
        with th.no_grad():
            (samples,) = model.rollout_buffer.get_transitions(None)
            outputs = evaluate_transitions(model.policy, samples.observations, samples.actions, samples.action_masks)
        th.testing.assert_close(outputs[1], samples.old_log_prob, rtol=0, atol=1e-5)
        train()

    model.train = check
    model.learn(96)


def test_without_attention_a_run_is_that_of_maskable_ppo():
    runs = []
    for algorithm, policy_kwargs in ((MaskablePPO, {}), (AAC, {"n_layers": 0}), (AAC, {})):
        env = InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10)
        model = algorithm(
            "MlpPolicy", env, n_steps=64, n_epochs=2, gamma=0.1, seed=32, policy_kwargs=policy_kwargs, device="cpu"
        )
        model.learn(192)
        runs.append(model.policy.mlp_extractor.policy_net[0].weight.detach())
    for run in runs[1:]:  # the gate of the second is closed
        th.testing.assert_close(run, runs[0], rtol=0, atol=1e-5)


def test_contribs_identity_task_is_learned():
    """A model that has not learned, or knows no masks, is far from this return with so few steps."""
    env = InvalidActionEnvDiscrete(dim=70, n_invalid_actions=55)
    model = AAC("MlpPolicy", env, gamma=0.1, seed=32, clip_range=0.4, n_epochs=2, device="cpu")
    model.learn(2048)
    assert evaluate_policy(model, env, n_eval_episodes=20, warn=False)[0] > 90


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize(
    "env",
    [
        InvalidActionEnvDiscrete(dim=20, n_invalid_actions=19),
        InvalidActionEnvMultiDiscrete(dims=[2, 3], n_invalid_actions=3),
        InvalidActionEnvMultiBinary(dims=3, n_invalid_actions=3),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_with_one_action_allowed_an_untrained_model_is_perfect(env, memory_actor):
    model = AAC(
        "MlpPolicy", env, policy_kwargs={"memory_actor": memory_actor}, n_steps=64, seed=8, batch_size=64, device="cpu"
    )
    evaluate_policy(model, env, reward_threshold=99, warn=False)
    assert evaluate_policy(model, env, warn=False, use_masking=False)[0] < 99


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, pytest.param(SubprocVecEnv, marks=pytest.mark.slow)])
def test_vectorized_environments(vec_env_cls):
    env = make_vec_env(Guarded, 2, vec_env_cls=vec_env_cls)
    AAC("MlpPolicy", env, **SMALL).learn(64)
    env.close()


def test_masks_are_used_where_there_are_some_and_insisted_on_where_asked_for():
    model = AAC("MlpPolicy", gym.make("CartPole-v1"), **SMALL)
    model.learn(32)  # no masks, no error: as PPO
    assert model.rollout_buffer.action_masks is None
    with pytest.raises(ValueError, match="ActionMasker"):
        model.learn(32, use_masking=True)


def test_action_masker_and_the_evaluation_callback(tmp_path):
    def env() -> gym.Env:
        return ActionMasker(gym.make("CartPole-v1"), lambda env: np.array([True, False]))

    model = AAC("MlpPolicy", env(), policy_kwargs={"memory_actor": True}, **SMALL)
    callback = MaskableEvalCallback(
        Monitor(env()), eval_freq=32, n_eval_episodes=2, warn=False, verbose=0, log_path=str(tmp_path)
    )
    model.learn(64, callback=callback)
    assert (model.rollout_buffer.actions == 0).all()
    assert len(callback.evaluations_results) == 2


def test_contribs_evaluation_keeps_the_memory():
    """It drops the state where it uses masks."""
    model = make_model("Discrete", True, policy_kwargs={"age_input": "sinusoidal"})
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(th.randn_like(parameter))
    env, states, taken = DummyVecEnv([lambda: Guarded("Discrete", 7), lambda: Guarded("Discrete", 11)]), None, ([], [])

    def record(local_values, global_values) -> None:
        if local_values["i"] == 1:  # whose episodes last longer
            taken[0].append(local_values["actions"].copy())

    env.seed(3)
    evaluate_policy(model, env, n_eval_episodes=6, warn=False, callback=record)
    env.seed(3)
    obs, starts = env.reset(), np.ones(2, bool)
    for _ in range(len(taken[0])):
        masks = np.stack(env.env_method("action_masks"))
        actions, states = model.predict(obs, states, starts, deterministic=True, action_masks=masks)
        taken[1].append(actions)
        obs, _, starts, _ = env.step(actions)
    assert len(taken[0]) == 33 and np.array_equal(np.array(taken[0])[:, 1], np.array(taken[1])[:, 1])


@pytest.mark.parametrize("memory_actor", [False, True])
def test_predict_takes_masks_of_one_and_of_many(memory_actor):
    model = make_model("Discrete", memory_actor)
    one_hot = np.eye(5, dtype=bool)
    for action in range(5):
        actions, _ = model.predict(np.zeros((3, 3), np.float32), action_masks=np.stack([one_hot[action]] * 3))
        assert (actions == action).all()
        single, _ = model.predict(np.zeros(3, np.float32), action_masks=one_hot[action])
        assert single == action


@pytest.mark.parametrize("memory_actor", [False, True])
def test_wrong_masks_are_refused_in_words(memory_actor):
    model = make_model("Discrete", memory_actor)
    obs = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), but 3 observation\(s\) with 5 possible actions need \(3, 5\)"):
        model.predict(obs, action_masks=np.ones((3, 4), bool))
    nothing = np.ones((3, 5), bool)
    nothing[1] = False
    with pytest.raises(ValueError, match="mask of environment 1 allows no action"):
        model.predict(obs, action_masks=nothing)
    box = AAC("MlpPolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="masks are for Discrete"):
        box.predict(np.zeros(3, np.float32), action_masks=np.ones(1))


def test_a_group_without_an_allowed_action_is_refused():
    model = make_model("MultiDiscrete", False)
    mask = np.ones(9, bool)
    mask[2:6] = False
    with pytest.raises(ValueError, match="allows no action"):
        model.predict(np.zeros(3, np.float32), action_masks=mask)


def test_the_policys_own_methods_take_masks():
    model = make_model("Discrete", False)
    obs, mask = th.zeros(4, 3), np.tile([False, True, True, False, False], (4, 1))
    actions, _, log_prob = model.policy(obs, action_masks=mask)
    assert ((actions == 1) | (actions == 2)).all()
    _, again, entropy = model.policy.evaluate_actions(obs, actions, action_masks=mask)
    th.testing.assert_close(again, log_prob)
    distribution = model.policy.get_distribution(obs, action_masks=mask).distribution
    th.testing.assert_close(distribution.log_prob(actions), log_prob)
    assert entropy is not None
    th.testing.assert_close(distribution.entropy(), entropy)


def test_continuous_actions_have_no_masks():
    """An attribute of that name is something else, unless masks are asked for"""
    env = Guarded()
    env.action_space = spaces.Box(-1, 1, (1,), np.float32)
    env.step = lambda action: (np.zeros(3, np.float32), 0.0, False, False, {})
    model = AAC("MlpPolicy", env, **SMALL).learn(32)
    assert model.use_masking is False
    with pytest.raises(ValueError, match="this policy's are a Box"):
        model.learn(32, use_masking=True)


def test_predict_without_masks_after_training_with_some_warns(tmp_path):
    model = make_model("Discrete", memory_actor=False)
    model.learn(96)
    model.save(tmp_path / "agent")
    loaded = AAC.load(tmp_path / "agent")
    with pytest.warns(UserWarning, match="trained with action masks, and predict.* got none.*get_action_masks"):
        loaded.predict(np.zeros(3, np.float32))


def test_an_attribute_of_that_name_is_no_mask():
    """PPO takes no notice of it"""

    class Attribute(Guarded):
        action_masks = np.ones(5, dtype=bool)

        def step(self, action):
            return self._next(), 0.0, False, False, {}

    model = AAC("MlpPolicy", DummyVecEnv([Attribute]), **SMALL)
    model.learn(SMALL["n_steps"])
    assert model.use_masking is False and model.rollout_buffer.action_masks is None
