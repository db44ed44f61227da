"""What scripts written for SB3's PPO do to a model from outside."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from test_run import SMALL, TINY, random_env

from sb3_attention_ac import AAC


@pytest.mark.parametrize("memory_actor", [False, True])
def test_critic_learns_through_evaluate_actions(memory_actor):
    """Supervised pretraining: the values have a gradient, and are those of predict_values."""
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    obs = th.rand(64, 3)
    targets = obs.sum(dim=1, keepdim=True)
    optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-2)
    for _ in range(200):
        values, _, _ = model.policy.evaluate_actions(obs, th.zeros(64))
        loss = th.nn.functional.mse_loss(values, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * targets.var()
    with th.no_grad():
        assert th.equal(model.policy.predict_values(obs), model.policy.evaluate_actions(obs, th.zeros(64))[0])


class AdvantagesAgain(BaseCallback):
    """As after an intrinsic reward, here of zero"""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        before = buffer.advantages.copy()
        assert buffer.terminal_observations
        buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
        np.testing.assert_array_equal(buffer.advantages, before)


@pytest.mark.parametrize("memory_actor", [False, True])
def test_a_callback_computes_advantages_again(memory_actor):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **{**SMALL, "n_steps": 20})
    model.learn(80, callback=AdvantagesAgain())


@pytest.mark.parametrize("memory_actor", [False, True])
def test_another_optimizer_takes_its_place(memory_actor):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    model.policy.optimizer = th.optim.RMSprop(model.policy.parameters(), lr=1.0)
    model.learn(20)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [model.learning_rate]


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(("n_steps", "context_length", "memory_actor"), [(12, 5, False), (12, 5, True), (11, 5, True)])
def test_a_last_chunk_of_two_steps_or_one(n_steps, context_length, memory_actor):
    """One environment, the live prediction: a single pair of steps has no variance to normalize by."""
    policy_kwargs = {**TINY, "context_length": context_length, "memory_actor": memory_actor}
    settings = {**SMALL, "n_steps": n_steps, "aux_loss": "live", "policy_kwargs": policy_kwargs}
    model = AAC("MlpPolicy", random_env(n_envs=1), **settings)
    model.learn(2 * n_steps)
