"""What is logged of an update."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_attention_ac.train_log import TrainLog

VALUES, RETURNS = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[1.0, 2.0], [3.0, 6.0]])  # of variance 3.5


def logged(log: TrainLog, values: np.ndarray = VALUES, returns: np.ndarray = RETURNS) -> dict[str, float]:
    logger = Logger(None, [])
    log.record(logger, values, returns)
    assert all(key.startswith("train/") for key in logger.name_to_value)
    return {key.removeprefix("train/"): value for key, value in logger.name_to_value.items()}


def add(log: TrainLog, name: str, *values: float) -> None:
    for value in values:
        log.add(name, th.tensor(value, requires_grad=True))


def two_epochs(**options) -> TrainLog:
    log = TrainLog(0.2, **options)
    log.start_epoch()
    log.add_log_ratio(th.tensor([[math.log(1.5), 0.0]], requires_grad=True))
    add(log, "value_loss", 10.0, 20.0)
    add(log, "attention_value_loss", 5.0)
    log.start_epoch()
    log.add_log_ratio(th.tensor([math.log(1.1), 0.0]))
    log.add_log_ratio(th.tensor([math.log(0.7)]))
    add(log, "value_loss", 3.0)
    add(log, "attention_value_loss", 1.0, 2.0)
    add(log, "attention_grad_norm", 9.0)
    add(log, "attention_q_loss", 8.0)
    return log


def kl(*ratios: float) -> float:
    return float(np.mean([ratio - 1 - math.log(ratio) for ratio in ratios]))


def test_means_over_all_minibatches_and_what_is_of_the_last_epoch():
    found = logged(two_epochs())
    assert found == {
        "value_loss": 11,
        "attention_value_loss": pytest.approx(8 / 3),
        "attention_grad_norm": 9,
        "attention_q_loss": 8,
        "approx_kl": pytest.approx(kl(1.1, 1, 0.7), rel=1e-4),  # of the last epoch, over its transitions
        "clip_fraction": pytest.approx(2 / 5),  # of all: 1.5 and 0.7 are outside
        "explained_variance": pytest.approx(1 - np.var(RETURNS - VALUES) / 3.5),
        "explained_variance_in_sample": pytest.approx(1 - 1.5 / 3.5),  # of attention's last epoch
    }


def test_attention_that_is_not_heard_is_not_logged_but_q_att_is():
    found = logged(two_epochs(logs_attention=False))
    assert "attention_value_loss" not in found and "attention_grad_norm" not in found
    assert found["attention_q_loss"] == 8 and found["value_loss"] == 11
    assert found["explained_variance_in_sample"] == pytest.approx(1 - 3 / 3.5)  # of the MLP critic


def test_without_attention_the_mlp_critics_errors_count():
    log = TrainLog(0.2)
    assert log.logs_attention
    log.start_epoch()
    log.add_log_ratio(th.zeros(1))
    add(log, "value_loss", 7.0, 14.0)
    assert logged(log)["explained_variance_in_sample"] == pytest.approx(1 - 10.5 / 3.5)


def test_an_epoch_without_a_minibatch_does_not_count():
    """Attention's last epoch may be before that of the MLPs, and the other way round."""
    log = two_epochs()
    log.start_epoch()
    add(log, "attention_value_loss", 7.0)
    found = logged(log)
    assert found["approx_kl"] == pytest.approx(kl(1.1, 1, 0.7), rel=1e-4)
    assert found["explained_variance_in_sample"] == pytest.approx(1 - 7 / 3.5)


def test_returns_that_are_all_the_same_explain_nothing():
    found = logged(two_epochs(), np.zeros((2, 2)), np.ones((2, 2)))
    assert "explained_variance_in_sample" not in found and math.isnan(found["explained_variance"])


@pytest.mark.parametrize(("ratio", "outside"), [(1.19, 0), (1.21, 1), (0.81, 0), (0.79, 1)])
def test_outside_of_the_clip_range(ratio, outside):
    log = TrainLog(0.2)
    log.add_log_ratio(th.tensor([math.log(ratio)]))
    add(log, "value_loss", 0.0)
    assert logged(log)["clip_fraction"] == outside


def test_divergence_of_the_latest_minibatch():
    log = two_epochs()
    assert log.last_kl() == pytest.approx(kl(0.7), rel=1e-4)
    assert isinstance(log.last_kl(), float)


def test_nothing_that_is_collected_keeps_a_graph_alive():
    log = two_epochs()
    assert not any(value.requires_grad for collected in log._values.values() for _, value in collected)
