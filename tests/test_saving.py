"""Files, copies and states: what is in them, and that reading parameters runs no code."""

import base64
import copy
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import ACTION_SPACES, SMALL, TINY, RandomEnv, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.networks.kv_cache import KVCache


class Payload:
    """What a file may hold: it leaves a trace where it is read"""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def with_payload(source: Path, target: Path, where: str, payload: Payload) -> None:
    """A copy of a saved model with code in one of its places"""
    serialized = {":type:": "<x>", ":serialized:": base64.b64encode(cloudpickle.dumps(payload)).decode()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data" and where != "policy.pth":
                data = json.loads(content)
                if where == "net_arch":
                    data["policy_kwargs"]["net_arch"] = serialized
                else:
                    data[where] = serialized
                content = json.dumps(data).encode()
            if name == where == "policy.pth":
                buffer = io.BytesIO()
                th.save({"action_net.weight": payload}, buffer)
                content = buffer.getvalue()
            new.writestr(name, content)


@pytest.mark.parametrize("where", ["policy_kwargs", "observation_space", "learning_rate", "anything"])
@pytest.mark.parametrize("opened", [False, True])
def test_setting_parameters_runs_no_code(tmp_path, where, opened):
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL).learn(20)
    model.save(tmp_path / "good.zip")
    with_payload(tmp_path / "good.zip", tmp_path / "bad.zip", where, Payload(tmp_path / "trace"))
    other = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **{**SMALL, "seed": 1})
    assert not th.equal(other.policy.action_net.weight, model.policy.action_net.weight)
    if opened:
        with open(tmp_path / "bad.zip", "rb") as file:
            other.set_parameters(file)
    else:
        other.set_parameters(tmp_path / "bad")  # with or without the suffix, as in SB3
    assert not (tmp_path / "trace").exists()
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, other.policy.state_dict()[name])


@pytest.mark.parametrize("where", ["net_arch", "aux_loss"])
def test_code_where_plain_arguments_stand_is_another_network(tmp_path, where):
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    model.save(tmp_path / "good.zip")
    with_payload(tmp_path / "good.zip", tmp_path / "bad.zip", where, Payload(tmp_path / "trace"))
    with pytest.raises(ValueError, match=where):
        model.set_parameters(tmp_path / "bad.zip")
    assert not (tmp_path / "trace").exists()


def test_code_among_the_weights_is_refused(tmp_path):
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    model.save(tmp_path / "good.zip")
    with_payload(tmp_path / "good.zip", tmp_path / "bad.zip", "policy.pth", Payload(tmp_path / "trace"))
    with pytest.raises(pickle.UnpicklingError):
        model.set_parameters(tmp_path / "bad.zip")
    assert not (tmp_path / "trace").exists()


def test_the_trace_of_a_payload_would_be_found(tmp_path):
    """Loading a whole model reads objects, as SB3's does: files that are trusted alone"""
    AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL).save(tmp_path / "good.zip")
    with_payload(tmp_path / "good.zip", tmp_path / "bad.zip", "anything", Payload(tmp_path / "trace"))
    AAC.load(tmp_path / "bad.zip")
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"not a zip-file", b""])
def test_what_is_no_model_is_said_to_be_none(tmp_path, content):
    (tmp_path / "model.zip").write_bytes(content)
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        model.set_parameters(tmp_path / "model.zip")


def test_parameters_of_another_network_are_named(tmp_path):
    """Where the arguments cannot be read, shapes tell; parameters stay what they were"""
    AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "d_model": 16}, **SMALL).save(tmp_path / "good.zip")
    with_payload(tmp_path / "good.zip", tmp_path / "model.zip", "policy_kwargs", Payload(tmp_path / "trace"))
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(ValueError, match=r"another network: .*\[\d+.*\] in the file, .* here.*and \d+ more.*policy_kwargs"):
        model.set_parameters(tmp_path / "model.zip")
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize(
    "same",
    [
        {"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        {"net_arch": [64, 64]},
        {"dim_feedforward": 16},
        {"memory_actor": False, "local_window": 2},
    ],
    ids=str,
)
def test_one_network_may_be_written_in_several_ways(tmp_path, same):
    plain = {name: value for name, value in TINY.items() if name not in ("net_arch", "dim_feedforward", "local_window")}
    plain["d_model"] = 8
    AAC("MlpPolicy", random_env(), policy_kwargs=plain, **SMALL).save(tmp_path / "model.zip")
    AAC("MlpPolicy", random_env(), policy_kwargs={**plain, **same}, **SMALL).set_parameters(tmp_path / "model.zip")


def test_other_heads_are_named_though_the_arguments_hold_a_class(tmp_path):
    kwargs = {**TINY, "memory_actor": True, "activation_fn": th.nn.ReLU}
    AAC("MlpPolicy", random_env(), aux_loss=None, policy_kwargs=kwargs, **SMALL).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="The network arguments differ: aux_loss: None in the file, 'next_step' here"):
        AAC.load(tmp_path / "model.zip", aux_loss="next_step")


@pytest.mark.parametrize("network", [{}, {"memory_actor": True}])
def test_another_algorithms_file_is_said_to_be_one(tmp_path, network):
    """Nothing is said of arguments that it does not hold"""
    PPO("MlpPolicy", random_env(), n_steps=8, batch_size=8).save(tmp_path / "ppo.zip")
    with pytest.raises(ValueError, match="another algorithm saved it: load it with that one"):
        AAC.load(tmp_path / "ppo.zip")
    model = AAC("MlpPolicy", random_env(), policy_kwargs=network, **SMALL)
    with pytest.raises(ValueError, match=r"The parameters are those of another network: .* missing in the file"):
        model.set_parameters(tmp_path / "ppo.zip")


def test_goes_on_from_an_agent_of_ppo(tmp_path):
    """``exact_match=False``: same actions and values as PPO's, a new optimizer, and what PPO lacks stays as it was"""
    ppo = PPO("MlpPolicy", random_env(), n_steps=8, batch_size=8).learn(16)
    ppo.save(tmp_path / "ppo.zip")
    obs = th.randn(5, *ppo.observation_space.shape)
    for given in (tmp_path / "ppo.zip", ppo.get_parameters()):
        model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
        attention = [p.clone() for p in model.policy.critic_network.encoder.parameters()]
        with pytest.warns(UserWarning, match="policy.optimizer is another network's and was not loaded"):
            model.set_parameters(given, exact_match=False)
        th.testing.assert_close(model.policy.predict_values(obs), ppo.policy.predict_values(obs))
        latents = [agent.policy.get_distribution(obs).distribution.logits for agent in (model, ppo)]
        th.testing.assert_close(*latents)
        assert all(map(th.equal, model.policy.critic_network.encoder.parameters(), attention))
        model.learn(16)


def test_gsde_is_named_where_it_differs(tmp_path):
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))])
    AAC("MlpPolicy", env, policy_kwargs=TINY, **SMALL).save(tmp_path / "model.zip")
    wanted = "The network arguments differ: use_sde: False in the file, True here"
    with pytest.raises(ValueError, match=wanted):
        AAC.load(tmp_path / "model.zip", use_sde=True)
    with pytest.raises(ValueError, match=wanted):
        AAC("MlpPolicy", env, use_sde=True, policy_kwargs=TINY, **SMALL).set_parameters(tmp_path / "model.zip")


def test_some_parameters_of_another_shape_are_named(tmp_path):
    PPO("MlpPolicy", random_env(), n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}).save(tmp_path / "ppo.zip")
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL)
    with pytest.raises(ValueError, match=r"policy_net.0.weight: \[4, "):
        model.set_parameters(tmp_path / "ppo.zip", exact_match=False)


def test_parameters_in_a_dictionary_are_checked_as_those_of_a_file():
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "d_model": 16}, **SMALL)
    with pytest.raises(ValueError, match="The parameters are those of another network"):
        AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL).set_parameters(model.get_parameters())


def test_what_is_loaded_warns_of_nothing(tmp_path):
    """Values that were resolved at construction are in the file; nobody gave them."""
    for policy_kwargs in (TINY, {**TINY, "memory_actor": True}, {"n_layers": 0}):
        model = AAC("MlpPolicy", random_env(), policy_kwargs=policy_kwargs, **SMALL)
        model.save(tmp_path / "model")
        loaded = AAC.load(tmp_path / "model", env=random_env())
        for name in ("aux_loss", "aux_coef", "batch_size", "mask_ratio", "temperature", "n_trajectories", "log_barrier_coef"):
            assert getattr(loaded, name) == getattr(model, name)


# --- copies --------------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "MLP actor": {},
    "memory actor": {"memory_actor": True},
    "Q_att": {"attention_q": True, "memory_actor": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", [*ACTION_SPACES, "gSDE", "squashed gSDE"])
def test_a_trained_policy_can_be_copied(kind, actions):
    """Distributions keep tensors of the last pass, whose graph cannot be copied."""
    if "gSDE" in actions and kind == "Q_att":
        return
    policy_kwargs = {**TINY, **KINDS[kind], "squash_output": "squashed" in actions}
    space = "Box" if "gSDE" in actions else actions
    env = random_env(actions=space)
    model = AAC("MlpPolicy", env, use_sde="gSDE" in actions, policy_kwargs=policy_kwargs, aux_loss="contrastive", **SMALL)
    model.learn(40)
    obs = env.reset()
    # As SB3's distributions are after evaluate_actions() with gradients
    actions_ = th.as_tensor(np.stack([env.action_space.sample()] * 2)).float()
    model.policy.get_distribution(th.as_tensor(obs)).log_prob(actions_)
    policy, copied = model.policy, copy.deepcopy(model.policy)
    for name, value in policy.state_dict().items():
        assert th.equal(value, copied.state_dict()[name])
    np.testing.assert_array_equal(*(p.predict(obs, deterministic=True)[0] for p in (policy, copied)))
    assert copied.action_dist is not policy.action_dist
    if "gSDE" in actions:
        assert copied.distribution.noise is copied.action_dist
        noise = policy.action_dist.exploration_mat.clone()
        copied.reset_noise(3)
        assert th.equal(policy.action_dist.exploration_mat, noise)
    if copied.attention_q is not None:
        assert copied.attention_q.distribution is copied.distribution is not policy.distribution
    with th.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    assert not any(th.equal(*pair) for pair in zip(policy.parameters(), copied.parameters(), strict=True))
    again = copy.deepcopy(copied)
    assert all(th.equal(*pair) for pair in zip(again.parameters(), copied.parameters(), strict=True))
    model.policy = again
    model.learn(20, reset_num_timesteps=False)  # it can be learned with


def test_a_copys_optimizer_is_its_own():
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, **SMALL).learn(20)
    copied = copy.deepcopy(model.policy)
    own = {id(parameter) for parameter in copied.parameters()}
    assert {id(parameter) for group in copied.optimizer.param_groups for parameter in group["params"]} == own


# --- states ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [np.float64, np.float16, "list"])
def test_a_state_of_another_type_is_as_good(as_type):
    """As it comes out of JSON, or of arithmetic; positions stay whole numbers"""
    env = random_env(n_envs=3)
    model = AAC("MlpPolicy", env, policy_kwargs={**TINY, "memory_actor": True}, **SMALL).learn(30)
    obs, starts = np.random.default_rng(0).uniform(-1, 1, (25, 3, 3)).astype(np.float32), np.zeros(3, dtype=bool)
    state = other = None
    for step in range(25):
        action, state = model.predict(obs[step], state, starts, deterministic=True)
        other_action, other = model.predict(obs[step], other, starts, deterministic=True)
        np.testing.assert_array_equal(action, other_action)
        for ours, theirs in zip(state, other, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=1e-6 if as_type != np.float16 else 0.02)
        other = tuple(array.tolist() if as_type == "list" else array.astype(as_type) for array in other)
    assert KVCache._make(state).position.dtype == np.int64


def test_networks_that_are_the_same_are_taken_for_the_same(tmp_path):
    """Said in another way: the default of images spelled out, targets in another order"""
    images = random_env("image")
    AAC("CnnPolicy", images, policy_kwargs={**TINY, "net_arch": []}, **SMALL).save(tmp_path / "images")
    AAC("CnnPolicy", images, policy_kwargs=TINY, **SMALL).set_parameters(tmp_path / "images")
    AAC("MlpPolicy", random_env(), aux_loss=["contrastive", "return"], policy_kwargs=TINY, **SMALL).save(tmp_path / "targets")
    other = AAC("MlpPolicy", random_env(), aux_loss=["return", "contrastive"], policy_kwargs=TINY, **SMALL)
    other.set_parameters(tmp_path / "targets")
