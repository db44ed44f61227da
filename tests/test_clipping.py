"""Clipping does what PyTorch's does."""

import pytest
import torch as th
from sb3_attention_ac.clipping import clip_gradients


def parameters_with_gradients(scale: float) -> list[th.Tensor]:
    generator = th.Generator().manual_seed(0)
    parameters = [th.zeros(shape, requires_grad=True) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = scale * th.randn(parameter.shape, generator=generator)
    return [*parameters, th.zeros(2, requires_grad=True)]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch(scale):
    ours, theirs = parameters_with_gradients(scale), parameters_with_gradients(scale)
    norm = clip_gradients(iter(ours), 0.5)
    assert th.allclose(norm, th.nn.utils.clip_grad_norm_(theirs, 0.5))
    for our, their in zip(ours[:-1], theirs[:-1], strict=True):
        assert th.allclose(our.grad, their.grad)
    assert ours[-1].grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(bad):
    parameters = parameters_with_gradients(1.0)
    parameters[1].grad[2] = bad
    assert not th.isfinite(clip_gradients(parameters, 0.5))
