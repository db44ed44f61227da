"""
Stand-ins for networks that are called with a handful of rows, one step of every environment at a time: half of what a small
layer then takes is its call, which looks for hooks and modes and looks up modules and parameters one by one. A stand-in has
done so once, and does the same.
"""

from collections.abc import Callable
from functools import reduce
from types import FunctionType, MethodType
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_plain(module: nn.Module) -> bool:
    """:return: Whether calling the module does what its class says: no hooks, no ``forward`` of its own, not compiled"""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    is_as_made = "forward" not in vars(module) and module._compiled_call_impl is None
    return is_as_made and not any(hooks) and not _has_any_global_hook()


def as_function(layer: nn.Module) -> Callable[[th.Tensor], th.Tensor]:
    """
    :param layer: A layer, in evaluation mode
    :return: A function that does the same, whatever happens to the layer's parameters; the layer itself if it is not plain or
        of a kind that is not known
    """
    if not is_plain(layer):
        return layer
    parameters: dict[str, Any] = layer._parameters  # a new one may take the place of an old one
    if type(layer) is nn.Linear:
        return lambda x: F.linear(x, parameters["weight"], parameters["bias"])
    if type(layer) is nn.LayerNorm:
        shape, eps = list(layer.normalized_shape), layer.eps
        return lambda x: th.layer_norm(x, shape, parameters["weight"], parameters["bias"], eps)
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
        layers = module._modules.items()  # some may be None
        vars(self).update({name: None if layer is None else as_function(layer) for name, layer in layers})

    def __call__(self, *args: Any) -> Any:
        return self._forward(self, *args)


def stand_in(module: nn.Module) -> Any:
    """
    :param module: A module made of layers, in evaluation mode
    :return: What can be used in its place, with layers that are functions (:func:`as_function`); the module itself if it is
        not plain or its class not of this package
    """
    is_ours = type(module).__module__.partition(".")[0] == __name__.partition(".")[0]
    return _StandIn(module) if is_ours and is_plain(module) else module
