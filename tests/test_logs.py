"""What is logged is what happened; and nothing is set for the whole process."""

import threading
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from test_run import ACTION_SPACES, SMALL, TINY, random_env
from torch.distributions import Distribution
from trajectories import ACTORS

from sb3_attention_ac import AAC
from sb3_attention_ac.train_log import TrainLog

KINDS: dict[str, dict[str, Any]] = {"n_layers=0": {"n_layers": 0}, **ACTORS}


def learned_epochs(model, record: list[set[str]]) -> None:
    """Note which losses each step of the optimizer is of; an epoch ends where the number of updates grows."""
    optimize = model._optimize

    def noting(losses, *others):
        record.append({*losses, model._n_updates})
        optimize(losses, *others)

    model._optimize = noting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_epochs", [1, 3])
def test_every_epoch_is_an_update(kind, n_epochs):
    settings = {**SMALL, "n_epochs": n_epochs, "policy_kwargs": {**TINY, **KINDS[kind]}}
    model = AAC("MlpPolicy", random_env(), **settings)
    learned_epochs(model, steps := [])
    model.learn(60)
    assert model.logger.name_to_value["train/n_updates"] == model._n_updates == 3 * n_epochs
    numbers = [next(name for name in names if not isinstance(name, str)) for names in steps]
    assert sorted(set(numbers)) == list(range(3 * n_epochs)) and numbers == sorted(numbers)
    model.learn(20, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/n_updates"] == 4 * n_epochs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target_kl", [1e-6, 2e-3])
def test_without_attention_updates_are_counted_as_ppo_does(seed, target_kl):
    """The epoch in which the actor stops is the last one, and it counts."""
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 6, "target_kl": target_kl, "learning_rate": 3e-3, "seed": seed}
    counts = []
    for algorithm, options in ((PPO, {}), (AAC, {"policy_kwargs": {"n_layers": 0}})):
        model = algorithm("MlpPolicy", make_vec_env("CartPole-v1", 3, seed=seed), device="cpu", **settings, **options)
        # The same samples for both: PPO stores them in another order
        record: list[int] = []
        train = model.train
        model.train = lambda train=train, model=model, record=record: (train(), record.append(model._n_updates))
        model.learn(3 * 96)
        counts.append(np.diff([0, *record]))
    ppo, aac = counts
    assert (aac < 6).any() and (aac >= 1).all()
    if target_kl == 1e-6:  # the second minibatch is beyond it, whichever it is
        np.testing.assert_array_equal(aac, ppo)


@pytest.mark.parametrize("kind", ["n_layers=0", "memory actor", "shared"])
def test_nothing_is_drawn_after_the_actor_has_stopped(kind):
    settings = {**SMALL, "n_steps": 40, "batch_size": 40, "n_epochs": 8, "target_kl": 1e-9, "learning_rate": 1e-2}
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **KINDS[kind]}, **settings)
    buffer, drawn = model.rollout_buffer, []
    for name in ("get_transitions", "get_windows"):
        get = getattr(buffer, name)
        setattr(buffer, name, lambda *size, get=get: (drawn.append(1) or batch for batch in get(*size)))
    learned_epochs(model, steps := [])
    model.learn(80)
    assert len(drawn) == 2 and len(steps) == 1 and model._n_updates == 1


@pytest.mark.parametrize("target_kl", [None, 1e-3])
@pytest.mark.parametrize(
    ("kind", "gate"), [("n_layers=0", 0.0), ("MLP actor", 0.0), ("MLP actor", 1.0), ("memory actor", 0.0), ("shared", 0.0)]
)
def test_variance_explained_in_sample_is_that_of_the_last_epoch(monkeypatch, kind, target_kl, gate):
    """Of the critic that is heard: the MLP's while the gate is closed, attention's while it is open"""
    name = "attention_value_loss" if gate == 1.0 else "value_loss"
    epochs: list[list[float]] = []
    start_epoch, add = TrainLog.start_epoch, TrainLog.add

    def noting(self, key, value):
        if key == name:
            epochs[-1].append(value.item())
        add(self, key, value)

    monkeypatch.setattr(TrainLog, "start_epoch", lambda self: (epochs.append([]), start_epoch(self)))
    monkeypatch.setattr(TrainLog, "add", noting)
    settings = {**SMALL, "n_steps": 40, "batch_size": 20, "n_epochs": 5, "learning_rate": 3e-3, "target_kl": target_kl}
    options = {"policy_kwargs": {**TINY, **KINDS[kind]}, "rollout_buffer_kwargs": {"chunk_length": 5}}
    model = AAC("MlpPolicy", random_env(), **settings, **options)
    if model.policy.value_gate is not None:
        model.policy.value_gate.gate.fill_(gate)
        model.policy.value_gate.update = lambda *evidence: None
    for iteration in range(2):
        epochs.clear()
        model.learn(80, reset_num_timesteps=iteration == 0)
        learned = [losses for losses in epochs if losses]
        buffer, logged = model.rollout_buffer, model.logger.name_to_value
        in_sample = 1 - np.mean(learned[-1]) / np.var(buffer.returns)
        assert logged["train/explained_variance_in_sample"] == pytest.approx(in_sample, abs=1e-4)
        before = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
        assert logged["train/explained_variance"] == pytest.approx(before, abs=1e-4)


DIAGNOSTICS = ("attention_value_loss", "attention_grad_norm")


@pytest.mark.parametrize("gate", [0.0, 0.3])
@pytest.mark.parametrize("aux_loss", [None, "contrastive"])
def test_diagnostics_of_attention_are_logged_while_it_is_heard(monkeypatch, gate, aux_loss):
    model = AAC("MlpPolicy", random_env(), policy_kwargs=TINY, aux_loss=aux_loss, **SMALL)
    model.policy.value_gate.gate.fill_(gate)
    model.policy.value_gate.update = lambda *evidence: None
    model.set_logger(Logger(None, []))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(Logger, "record", lambda self, key, value, exclude=None: logged.update({key: value}))
    model.learn(20)
    assert [f"train/{name}" in logged for name in DIAGNOSTICS] == [gate > 0] * 2
    assert logged["rollout/attention_gate"] == pytest.approx(gate)
    assert ("train/aux_contrastive_loss" in logged) == (aux_loss is not None)
    assert {"train/value_loss", "train/explained_variance", "train/explained_variance_in_sample"} <= logged.keys()


# --- settings of the whole process ----------------------------------------------------------------------------------------


class Watching(BaseCallback):
    """Whether distributions are validated, at every step"""

    def _on_training_start(self) -> None:
        self.seen: set[bool] = set()

    def _on_step(self) -> bool:
        self.seen.add(Distribution._validate_args)
        return True

    _on_rollout_end = _on_step


@pytest.mark.parametrize("validates", [True, False])
def test_validation_of_distributions_is_nobodys_business(validates):
    """Six models in threads of one process, of all kinds: the setting is the user's before, meanwhile and after."""
    before, failed, callbacks = Distribution._validate_args, [], []
    kinds = [({"actions": name}, kind, {}) for name in ACTION_SPACES for kind in ("MLP actor", "memory actor")]
    kinds.append(({"actions": "Box"}, "MLP actor", {"use_sde": True}))

    def train(env: dict[str, Any], kind: str, options: dict[str, Any]) -> None:
        try:
            model = AAC("MlpPolicy", random_env(**env), policy_kwargs={**TINY, **KINDS[kind]}, **options, **SMALL)
            callbacks.append(callback := Watching())
            model.learn(200, callback=callback)
            model.predict(model.get_env().reset())
        except Exception as error:
            failed.append(error)

    Distribution.set_default_validate_args(validates)
    try:
        threads = [threading.Thread(target=train, args=kind) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Distribution._validate_args == validates and not failed
        assert all(callback.seen == {validates} for callback in callbacks) and len(callbacks) == len(kinds)
    finally:
        Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_of_the_process_stay(kind):
    def settings() -> list[Any]:
        return [th.is_grad_enabled(), th.is_inference_mode_enabled(), th.get_default_dtype(), th.get_num_threads()]

    before = [*settings(), th.are_deterministic_algorithms_enabled(), np.geterr()]
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, **KINDS[kind]}, **SMALL).learn(40)
    model.predict(model.get_env().reset())
    assert [*settings(), th.are_deterministic_algorithms_enabled(), np.geterr()] == before
