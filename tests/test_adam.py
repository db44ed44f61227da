"""Quick steps of Adam are PyTorch's, to the last bit."""

import copy
import pickle
from typing import Any

import pytest
import torch as th
from sb3_attention_ac.adam import QuickSteps
from torch.optim.optimizer import register_optimizer_step_post_hook

SHAPES = ((3, 4), (4,), (), (2, 2, 2))


def two_optimizers(kind: Any = th.optim.Adam, seed: int = 0, **options: Any) -> list[Any]:
    """Of the same parameters, in two groups"""
    optimizers = []
    for _ in range(2):
        generator = th.Generator().manual_seed(seed)
        parameters = [th.nn.Parameter(th.randn(shape, generator=generator)) for shape in SHAPES]
        optimizers.append(kind([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], **options))
    return optimizers


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def give_gradients(optimizer: th.optim.Optimizer, seed: int, without: tuple[int, ...] = ()) -> None:
    generator = th.Generator().manual_seed(seed)
    for i, parameter in enumerate(parameters_of(optimizer)):
        parameter.grad = None if i in without else th.randn(parameter.shape, generator=generator)


def step_both(quick: QuickSteps, theirs: th.optim.Optimizer, seed: int, without: tuple[int, ...] = ()) -> None:
    """Parameters and states are the same afterwards."""
    for optimizer, step in ((quick.optimizer, quick.step), (theirs, theirs.step)):
        give_gradients(optimizer, seed, without)
        step()
    for mine, its in zip(parameters_of(quick.optimizer), parameters_of(theirs), strict=True):
        assert mine.equal(its)
        assert quick.optimizer.state[mine].keys() == theirs.state[its].keys()
        states = (quick.optimizer.state[mine], theirs.state[its])
        assert all(value is None or value.equal(states[1][name]) for name, value in states[0].items())


FUSED = [{"fused": True, **more} for more in ({}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True})]


@pytest.mark.parametrize("options", [{}, *FUSED])
def test_steps_are_those_of_torch(options):
    ours, theirs = two_optimizers(eps=1e-5, **options)
    for update in range(2):
        quick = QuickSteps(ours)
        # All, one group alone (MLPs and attention learn in turns), a part of a group, and all again
        for seed, without in enumerate([(), (), (2, 3), (2, 3), (0, 1), (1,), (), (0, 3), (1,), (1,), ()]):
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] = 0.01 * (seed + update + 1)
            step_both(quick, theirs, seed, without)


@pytest.mark.parametrize("kind", [th.optim.AdamW, th.optim.SGD])
def test_another_optimizer_takes_its_own_steps(kind):
    ours, theirs = two_optimizers(kind, lr=0.1)
    quick = QuickSteps(ours)
    for seed in range(3):
        step_both(quick, theirs, seed)


def test_what_is_collected_is_used(monkeypatch):
    optimizer, _ = two_optimizers(fused=True)
    quick = QuickSteps(optimizer)
    for seed in range(3):
        give_gradients(optimizer, seed, without=(1,) if seed == 1 else ())
        quick.step()
        monkeypatch.setattr(th.optim.Adam, "step", None)  # PyTorch takes the first step
    assert optimizer.state[parameters_of(optimizer)[0]]["step"].item() == 3


def copied(optimizer: th.optim.Adam) -> th.optim.Adam:
    return copy.deepcopy(optimizer)


def pickled(optimizer: th.optim.Adam) -> th.optim.Adam:
    return pickle.loads(pickle.dumps(optimizer))


def loaded(optimizer: th.optim.Adam) -> th.optim.Adam:
    """A state dict in an optimizer that has taken other steps"""
    other, _ = two_optimizers(seed=1, fused=True)
    quick = QuickSteps(other)
    for seed in range(10, 13):
        give_gradients(other, seed)
        quick.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, its in zip(parameters_of(other), parameters_of(optimizer), strict=True):
        mine.data.copy_(its.data)
    return other


def partly_reset(optimizer: th.optim.Adam) -> th.optim.Adam:
    _, second, third, fourth = parameters_of(optimizer)
    optimizer.state[second] = {}
    del optimizer.state[third]
    optimizer.state[fourth]["exp_avg"] = th.zeros_like(fourth)
    return optimizer


@pytest.mark.parametrize("change", [copied, pickled, loaded, partly_reset])
def test_goes_on_after(change):
    """Between two updates"""
    ours, theirs = two_optimizers(fused=True)
    for update in range(2):
        quick = QuickSteps(ours)
        for seed in range(3):
            step_both(quick, theirs, seed)
        if update == 0:
            ours = change(ours)
            theirs = partly_reset(theirs) if change is partly_reset else theirs


def test_hooks_and_schedulers_see_every_step():
    ours, theirs = two_optimizers(fused=True)
    seen = []
    handles = [
        ours.register_step_post_hook(lambda *_: seen.append("own")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global")),
    ]
    quick = QuickSteps(ours)
    for seed in range(3):
        step_both(quick, theirs, seed)
    assert (seen.count("own"), seen.count("global")) == (3, 6)
    for handle in handles:
        handle.remove()
    scheduler, quick = th.optim.lr_scheduler.StepLR(ours, 1), QuickSteps(ours)
    give_gradients(ours, 0)
    quick.step()
    scheduler.step()  # it warns where it has not seen the optimizer's step


def test_gradients_that_a_scaler_has_scaled():
    ours, theirs = two_optimizers(fused=True)
    for seed in range(4):
        for optimizer in (ours, theirs):
            optimizer.grad_scale = th.tensor(8.0) if seed == 2 else None
        step_both(QuickSteps(ours), theirs, seed)


@pytest.mark.parametrize("kind", [th.optim.Adam, th.optim.SGD])
def test_gradients_are_cleared_by_who_has_to(monkeypatch, kind):
    """Those of an optimizer of one's own by its own function"""
    optimizer, _ = two_optimizers(kind, lr=0.1)
    monkeypatch.setattr(kind, "zero_grad", lambda self: give_gradients(self, 1))
    give_gradients(optimizer, 0)
    quick = QuickSteps(optimizer)
    quick.zero_grad()
    assert [parameter.grad is None for parameter in quick.parameters] == [kind is th.optim.Adam] * len(SHAPES)
