"""What a device changes: nothing but where tensors are. On a GPU if there is one, else on the CPU alone."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_attention_ac import AAC

pytestmark = pytest.mark.slow
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU"))]
KINDS: dict[str, dict[str, Any]] = {
    "MLP actor": {"policy_kwargs": {}},
    "memory actor": {"policy_kwargs": {"memory_actor": True, "n_landmarks": 2, "age_input": "sinusoidal"}},
    "Q_att": {"policy_kwargs": {"attention_q": True}},
    "masked prediction": {"policy_kwargs": {}, "aux_loss": ["contrastive", "return"]},
}


def make_model(kind: str, device: str) -> AAC:
    env = make_vec_env("CartPole-v1", 4, seed=0)
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": device, **KINDS[kind]}
    return AAC("MlpPolicy", env, **settings)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_everything_is_on_the_device(kind, device):
    model = make_model(kind, device).learn(128)
    assert {tensor.device.type for tensor in model.policy.state_dict().values()} == {device}
    for batch in model.rollout_buffer.get_windows(128):
        assert batch.windows.episode_ids.device.type == batch.actions.device.type == device


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_model_acts_alike_on_every_device(kind, device, tmp_path):
    make_model(kind, device).learn(128).save(tmp_path / "model")
    here, cpu = (AAC.load(tmp_path / "model", device=where) for where in (device, "cpu"))
    rng, states = np.random.default_rng(0), [None, None]
    for step in range(70):
        obs, starts = rng.normal(size=(3, 4)).astype(np.float32), np.full(3, step in (0, 30))
        actions = []
        for i, model in enumerate((here, cpu)):
            action, states[i] = model.predict(obs, states[i], starts, deterministic=True)
            actions.append(action)
        np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_update_is_that_of_the_cpu(device):
    """From the same rollout: sums are in another order, nothing else"""
    here, cpu = make_model("memory actor", device), make_model("memory actor", "cpu")
    cpu.learn(256)
    here.policy.load_state_dict(cpu.policy.state_dict())
    here.learn(1)
    here.policy.load_state_dict(cpu.policy.state_dict())
    for model in (here, cpu):
        model.policy.optimizer.state.clear()
    for name, array in cpu.rollout_buffer.storage.arrays.items():
        here.rollout_buffer.storage.arrays[name] = array.copy()
    for name in ("values", "mlp_values", "log_probs", "advantages", "returns"):
        setattr(here.rollout_buffer, name, getattr(cpu.rollout_buffer, name).copy())
    here.rollout_buffer._landmarks = cpu.rollout_buffer._landmarks
    here.rollout_buffer._tensors, here.rollout_buffer._targets = None, {}
    for model in (here, cpu):
        np.random.seed(0)
        model.n_epochs = 1
        model.train()
    for (name, ours), theirs in zip(here.policy.state_dict().items(), cpu.policy.state_dict().values(), strict=True):
        th.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4, msg=name)
