"""
Stand-ins for networks that are called with a handful of rows, one step of every environment at a time: half of what a small
layer then takes is its call, which looks up parameters, hooks and modes. A stand-in looks them up once, and does the same.
"""

from collections.abc import Callable
from functools import reduce
from types import FunctionType, MethodType
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """:return: Whether calling the module does more than its ``forward``"""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def as_function(layer: nn.Module) -> Callable[[th.Tensor], th.Tensor]:
    """
    :param layer: A layer, in evaluation mode
    :return: A function that does the same for as long as the layer has these parameters, whose values may change; the layer
        itself if it has hooks or is of a kind that is not known
    """
    if has_hooks(layer):
        return layer
    if type(layer) is nn.Linear:
        weight, bias = layer.weight, layer.bias
        return lambda x: F.linear(x, weight, bias)
    if type(layer) is nn.LayerNorm:
        shape, scale, shift, eps = list(layer.normalized_shape), layer.weight, layer.bias, layer.eps
        return lambda x: th.layer_norm(x, shape, scale, shift, eps)
    if type(layer) is nn.Sequential:
        functions = [as_function(inner) for inner in layer]
        return lambda x: reduce(lambda x, function: function(x), functions, x)
    return layer.forward if type(layer) in (nn.Tanh, nn.ReLU, nn.Identity) else layer


class _StandIn:
    """What a module of this package has and can, but for what every module has."""

    def __init__(self, module: nn.Module):
        members: Any = vars(type(module)).items()
        methods = {name: member for name, member in members if isinstance(member, FunctionType)}
        self._forward = methods.pop("forward")
        vars(self).update({name: MethodType(method, self) for name, method in methods.items()})
        vars(self).update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        vars(self).update({name: as_function(layer) for name, layer in module.named_children()})

    def __call__(self, *args: Any) -> Any:
        return self._forward(self, *args)


def stand_in(module: nn.Module) -> Any:
    """
    :param module: A module made of layers, in evaluation mode
    :return: What can be used in its place, with layers that are functions (:func:`as_function`); the module itself if it has
        hooks or its class is not of this package
    """
    is_ours = type(module).__module__.partition(".")[0] == __name__.partition(".")[0]
    return _StandIn(module) if is_ours and not has_hooks(module) else module
