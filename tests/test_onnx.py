"""Exported actors do what ``predict`` does, step by step, with the state passed in and out."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_run import ACTION_SPACES, OBSERVATION_SPACES, SMALL, TINY, RandomEnv, policy_for

from sb3_attention_ac import AAC
from sb3_attention_ac.networks.kv_cache import KVCache
from sb3_attention_ac.onnx import export_onnx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sb3_attention_ac[onnx]")
    pytest.importorskip("onnxscript", reason="needs sb3_attention_ac[onnx]")

N_ENVS = 3
CHUNK = 6
N_STEPS = TINY["context_length"] + 2 * CHUNK + 12
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
SPACES = {**ACTION_SPACES, "from 2": spaces.Discrete(3, start=2), "bounded": spaces.Box(-0.1, 0.3, (2,))}


def make_model(
    actions: str = "Discrete",
    observations: str = "Box",
    use_sde: bool = False,
    aux_loss: Any = "auto",
    **policy_kwargs: Any,
) -> AAC:
    env = DummyVecEnv([lambda: RandomEnv(OBSERVATION_SPACES[observations], SPACES[actions]) for _ in range(N_ENVS)])
    short = {"rollout_buffer_kwargs": {"chunk_length": CHUNK}}
    model = AAC(
        policy_for(observations),
        env,
        use_sde=use_sde,
        aux_loss=aux_loss,
        policy_kwargs={**TINY, "net_arch": [8], **policy_kwargs},
        **SMALL,
        **short,
    )
    with th.no_grad():
        for parameter in model.policy.parameters():  # what starts at zero takes part
            parameter.add_(0.3 * th.randn_like(parameter))
        model.policy.action_net.weight.normal_()  # and actions go by observations
        model.policy.action_net.bias.zero_()
    return model


class Exported:
    """Runs an ONNX file as ``predict`` does"""

    def __init__(self, model: AAC, path, **kwargs: Any):
        export_onnx(model, path / "actor.onnx", **kwargs)
        self.session = onnxruntime.InferenceSession(path / "actor.onnx")
        self.inputs = {given.name: given for given in self.session.get_inputs()}
        self.state_names = [name for name in self.inputs if name.startswith("state_")]

    def empty(self, n: int = N_ENVS) -> list[np.ndarray]:
        given = [self.inputs[name] for name in self.state_names]
        return [np.zeros([n, *part.shape[1:]], TYPES[part.type]) for part in given]

    def __call__(self, obs, state=(), episode_start=None, masks=None) -> tuple[np.ndarray, list[np.ndarray]]:
        feed = {f"obs_{key}": part for key, part in obs.items()} if isinstance(obs, dict) else {"obs": obs}
        feed |= dict(zip(self.state_names, state, strict=True))
        if self.state_names:
            feed["episode_start"] = episode_start
        if masks is not None:
            feed["action_masks"] = masks
        action, *state = self.session.run(None, {name: part for name, part in feed.items() if name in self.inputs})
        return action, state


def some_masks(rng: np.random.Generator, dim: int) -> np.ndarray:
    masks = rng.random((N_ENVS, dim)) < 0.5
    masks[:, 0] = masks[:, -1] = True  # for each distribution one of them
    return masks


def assert_same(ours, theirs) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if ours.dtype == np.float32:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(ours, theirs)


def check(model: AAC, path, mask_dim: int = 0) -> Exported:
    """Over several episodes, from an empty state on"""
    exported = Exported(model, path, **({"action_masks": True} if mask_dim else {}))
    env = model.get_env()
    assert env is not None
    obs, starts, rng = env.reset(), np.ones(N_ENVS, dtype=bool), np.random.default_rng(0)
    state, own = None, exported.empty()
    seen = []
    for _ in range(N_STEPS):
        masks = some_masks(rng, mask_dim) if mask_dim else None
        expected, state = model.predict(obs, state, starts, deterministic=True, action_masks=masks)
        action, own = exported(obs, own, starts, masks)
        assert_same(action, expected)
        if model.policy.remembers:
            for name, ours, theirs in zip(KVCache._fields, own, state, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)
        seen.append(action)
        obs, _, starts, _ = env.step(expected)
        if rng.random() < 0.5:  # episodes of any length beside those of seven steps
            obs, starts = _reset(env, obs, starts, rng.integers(N_ENVS))
    assert len(np.unique(np.concatenate(seen), axis=0)) > 1, "the actor always does the same"
    return exported


def _reset(env: DummyVecEnv, obs, starts, i):
    first, _ = env.envs[i].reset()
    parts = obs.items() if isinstance(obs, dict) else [(None, obs)]
    for key, part in parts:
        part[i] = first if key is None else first[key]
    starts = starts.copy()
    starts[i] = True
    return obs, starts


@pytest.mark.parametrize(
    ("actions", "observations", "mask_dim"),
    [
        ("from 2", "Box", 3),
        pytest.param("MultiDiscrete", "Dict", 0, marks=pytest.mark.slow),
        pytest.param("bounded", "Discrete", 0, marks=pytest.mark.slow),
    ],
)
def test_an_mlp_actor(actions, observations, mask_dim, tmp_path):
    exported = check(make_model(actions, observations), tmp_path, mask_dim)
    assert not exported.state_names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "observations", "mask_dim"),
    [("Discrete", "MultiDiscrete", 0), ("MultiDiscrete", "Box", 5), ("MultiBinary", "MultiBinary", 4)],
)
def test_other_spaces_of_an_mlp_actor(actions, observations, mask_dim, tmp_path):
    check(make_model(actions, observations), tmp_path, mask_dim)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64])
def test_what_vec_normalize_returns_can_be_passed(dtype, tmp_path):
    """It is float32, whatever the space says"""
    space = spaces.Box(0, 100, (3,), dtype)
    venv = VecNormalize(DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(3)) for _ in range(N_ENVS)]))
    model = AAC("MlpPolicy", venv, policy_kwargs=TINY, **SMALL)
    obs = venv.reset()
    action, _ = Exported(model, tmp_path)(obs, [], np.ones(N_ENVS, dtype=bool), None)
    np.testing.assert_array_equal(action, model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("memory_actor", [False, True])
def test_images(memory_actor, tmp_path):
    """Channels first, as the model's observation space has them"""
    model = make_model("MultiBinary", "image", memory_actor=memory_actor)
    exported = Exported(model, tmp_path)
    assert exported.inputs["obs"].shape[1:] == [1, 36, 36] and exported.inputs["obs"].type == "tensor(uint8)"
    rng, state, own, actions = np.random.default_rng(0), None, exported.empty(), []
    for step in range(8):
        obs = (rng.integers(0, 256, (N_ENVS, 1, 36, 36)) * rng.random((N_ENVS, 1, 1, 1))).astype(np.uint8)
        starts = np.full(N_ENVS, step == 0)
        expected, state = model.predict(obs, state, starts, deterministic=True)
        action, own = exported(obs, own, starts)
        assert_same(action, expected)
        actions.append(action)
    assert len(np.unique(np.concatenate(actions), axis=0)) > 1


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A model with all that a memory may have, and its file"""
    landmarks = {"n_landmarks": 3, "landmark_rule": "surprise"}
    model = make_model("MultiDiscrete", memory_actor=True, age_input="sinusoidal", n_layers=2, **landmarks)
    return model, check(model, tmp_path_factory.mktemp("memory"), mask_dim=5)


@pytest.mark.slow
def test_a_memory_actor_over_several_chunks(memory):
    """The check is in the fixture"""
    _, exported = memory
    assert len(exported.state_names) == len(KVCache._fields)
    assert exported.inputs["state_position"].shape == ["n_envs"]


@pytest.mark.slow
def test_landmarks_of_the_first_steps(tmp_path):
    check(make_model("MultiDiscrete", memory_actor=True, n_landmarks=3), tmp_path)


@pytest.mark.slow
def test_environments_at_different_places_in_their_chunks(memory):
    """A state of ``predict`` can be gone on with, and only those caches that are full are made anew."""
    model, exported = memory
    rng, nobody = np.random.default_rng(2), np.zeros(N_ENVS, dtype=bool)
    obs = rng.uniform(-1, 1, (30, N_ENVS, 3)).astype(np.float32)
    states: list[Any] = [None]
    for step in range(12):
        states.append(model.predict(obs[step], states[-1], nobody, deterministic=True)[1])
    ages = (3, 11, 5)
    parts = zip(*states[1:], strict=True)  # each field's arrays, one of each step
    state = tuple(np.stack([part[age][env] for env, age in enumerate(ages)]) for part in parts)
    assert len(set(KVCache._make(state).position)) == N_ENVS
    own, everything = list(state), np.ones((N_ENVS, 5), dtype=bool)
    for step in range(12, 30):
        expected, state = model.predict(obs[step], state, nobody, deterministic=True)
        action, own = exported(obs[step], own, nobody, everything)
        np.testing.assert_array_equal(action, expected)
        for ours, theirs in zip(own, state, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_any_number_of_environments(memory):
    model, exported = memory
    obs = np.random.default_rng(3).uniform(-1, 1, (7, 3)).astype(np.float32)
    for n in (1, 7):
        action, _ = exported(obs[:n], exported.empty(n), np.ones(n, dtype=bool), np.ones((n, 5), dtype=bool))
        np.testing.assert_array_equal(action, model.predict(obs[:n], deterministic=True)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "observations", "options"),
    [
        ("Discrete", "Dict", {"actor_keys": ["vector"]}),
        ("bounded", "Box", {"share_encoder": True, "local_window": 1}),
        ("Box", "Box", {"use_sde": True, "squash_output": True, "full_std": False}),
    ],
)
def test_other_memory_actors(actions, observations, options, tmp_path):
    exported = check(make_model(actions, observations, memory_actor=True, **options), tmp_path)
    if observations == "Dict":
        assert [name for name in exported.inputs if name.startswith("obs")] == ["obs_vector"]


@pytest.mark.slow
@pytest.mark.parametrize("actions", ["Discrete", "Box"])
def test_attention_q(actions, tmp_path):
    """An MLP actor whose actions an open Q_att tilts has a state too."""
    model = make_model(actions, attention_q=True)
    assert model.policy.attention_q is not None
    model.policy.attention_q.evidence.fill_(3.0)
    assert check(model, tmp_path).state_names


def test_attention_q_of_a_memory_actor_reads_the_actors_keys(tmp_path):
    model = make_model("Discrete", "Dict", memory_actor=True, attention_q=True, actor_keys=["vector"])
    assert model.policy.attention_q is not None
    model.policy.attention_q.evidence.fill_(3.0)
    exported = check(model, tmp_path)
    assert [name for name in exported.inputs if name.startswith("obs")] == ["obs_vector"]


def test_a_model_that_predicts_returns(tmp_path):
    """The head of that name must not be in the graph: a program cannot call a variable "return"."""
    check(make_model(aux_loss="prediction"), tmp_path)


@pytest.mark.parametrize("aux_loss", ["auto", "value"])
def test_the_model_is_left_as_it_was(aux_loss, tmp_path):
    model = make_model(aux_loss=aux_loss)
    model.policy.set_training_mode(True)
    before = {name: part.clone() for name, part in model.policy.state_dict().items()}
    export_onnx(model, tmp_path / "actor.onnx")
    assert model.policy.training
    for name, part in model.policy.state_dict().items():
        assert th.equal(part, before[name])


def test_masks_of_a_box_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"action_masks=True is for Discrete.*are a Box"):
        export_onnx(make_model("Box"), tmp_path / "actor.onnx", action_masks=True)


def test_attention_q_with_keys_of_its_own_is_refused(tmp_path):
    model = make_model("Discrete", "Dict", attention_q=True, critic_keys=["vector"])
    assert model.policy.attention_q is not None
    model.policy.attention_q.evidence.fill_(3.0)
    with pytest.raises(ValueError, match="cannot be exported: train with the same"):
        export_onnx(model, tmp_path / "actor.onnx")


def test_an_entry_with_the_name_of_a_keyword_is_refused_where_its_network_learns(tmp_path):
    def model(**entries: spaces.Space[Any]) -> AAC:
        env = DummyVecEnv([lambda: RandomEnv(spaces.Dict(entries), spaces.Discrete(2))] * N_ENVS)
        return AAC("MultiInputPolicy", env, policy_kwargs=TINY, **SMALL)

    vector = spaces.Box(-1, 1, (2,))
    with pytest.raises(ValueError, match=r"extractors\.class\..* cannot be called 'class', a keyword of Python"):
        export_onnx(model(**{"class": spaces.Box(0, 255, (3, 36, 36), np.uint8), "vector": vector}), tmp_path / "a.onnx")
    check(model(**{"class": vector, "vector": vector}), tmp_path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_attention_ac.onnx.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install '\.\[onnx\]'"):
        export_onnx(make_model(), tmp_path / "actor.onnx")


@pytest.mark.parametrize("memory_actor", [False, True])
def test_minigrids_features_extractor(memory_actor, tmp_path):
    """Of any number of environments: what a file holds of the network is not the number of the examples"""
    minigrid = pytest.importorskip("sb3_attention_ac.envs.minigrid")
    space = spaces.Box(0, 2, (3 * 7 * 7,), np.uint8)
    env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(3))])
    options = {**TINY, "memory_actor": memory_actor, "features_extractor_class": minigrid.MiniGridOneHot}
    model = AAC("MlpPolicy", env, policy_kwargs=options, **SMALL)
    export_onnx(model, tmp_path / "grid.onnx")
    inputs = onnxruntime.InferenceSession(str(tmp_path / "grid.onnx")).get_inputs()
    assert all(isinstance(given.shape[0], str) for given in inputs)


class CountsWithLen(FlattenExtractor):
    """Python's number of rows, which an exported graph takes for a constant"""

    def forward(self, observations):
        return super().forward(observations).reshape(len(observations), -1)


def test_a_fixed_number_of_environments_is_refused(tmp_path):
    model = make_model(features_extractor_class=CountsWithLen)
    with pytest.raises(ValueError, match=r"obs would have a fixed first axis.*x\.shape\[0\]"):
        export_onnx(model, tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()
