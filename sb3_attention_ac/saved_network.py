"""Whether a file holds the parameters of the same network, said in words before PyTorch says it in shapes."""

import json
import warnings
import zipfile
from collections.abc import Mapping
from numbers import Number
from typing import Any

from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_attention_ac.argument_names import default_arguments
from sb3_attention_ac.auxiliary.targets import resolve_aux_loss

# What a policy only starts from: parameters from a file replace it
FIRST_VALUES = ("log_std_init", "ortho_init", "optimizer_class", "optimizer_kwargs")


class OtherNetworkError(ValueError, RuntimeError):
    """Parameters of another network: a RuntimeError as well, as PyTorch and so PPO raises for them"""


def check_same_parameters(stored: Mapping[str, Any], own: Mapping[str, Any], exact_match: bool) -> None:
    """
    :param stored: Parameters in a file
    :param own: Parameters of the policy here
    :param exact_match: Whether all have to be in both
    :raises OtherNetworkError: If they are of different networks; the message says where
    """
    names = [*own, *(name for name in stored if name not in own)] if exact_match else [name for name in own if name in stored]
    differences = [
        f"{name}: {_shape(stored, name)} in the file, {_shape(own, name)} here"
        for name in names
        if _shape(stored, name) != _shape(own, name)
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OtherNetworkError(
            f"The parameters are those of another network: {'; '.join(differences[:3])}{more}. Environments with the "
            "same spaces are needed, and the policy_kwargs, aux_loss and use_sde that the file was made with."
        )


def without_other_optimizer(parameters: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """
    What can be loaded of some parameters: moments of an optimizer with other parameters, as PPO's, are of no use.

    :param parameters: State dictionaries by name, as :meth:`get_parameters` returns them
    :param own: Those of the model here
    :return: Those without the state of another network's optimizer
    """
    name = "policy.optimizer"
    sizes = [[len(group["params"]) for group in given[name]["param_groups"]] for given in (parameters, own) if name in given]
    if len(sizes) < 2 or sizes[0] == sizes[1]:
        return dict(parameters)
    warnings.warn(f"The state of {name} is another network's and was not loaded: the optimizer keeps its own.", stacklevel=3)
    return {key: value for key, value in parameters.items() if key != name}


def _shape(parameters: Mapping[str, Any], name: str) -> str:
    return str(list(parameters[name].shape)) if name in parameters else "missing"


def stored_network(path: Any) -> dict[str, Any] | None:
    """
    Read without unpickling: a file may run code when its objects are loaded, which :meth:`set_parameters` does not need.

    :param path: A saved model: a path, or an open file, which is left where it was
    :return: The arguments that shape its network: ``aux_loss``, which adds heads, ``use_sde``, and ``policy_kwargs`` if they
        are plain. None if they cannot be read here, or are another algorithm's
    """
    position = path.tell() if hasattr(path, "tell") else None
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read("data"))
        arguments = {"aux_loss": data["aux_loss"], "use_sde": data["use_sde"]}  # another algorithm's file has no aux_loss
    except (KeyError, ValueError, zipfile.BadZipFile):
        return None
    finally:
        if position is None:
            file.close()
        else:
            path.seek(position)
    policy_kwargs = data.get("policy_kwargs")
    if isinstance(policy_kwargs, dict) and ":serialized:" not in policy_kwargs:
        arguments["policy_kwargs"] = policy_kwargs
    return arguments


def _comparable(value: Any) -> Any:
    """
    As a file keeps it: no tuples, and a class is the same by its name, whichever process or module it was defined in. Of other
    objects (arrays, functions) only the kind is compared: they need not be equal to what they are read back as.
    """
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, Number)):
        return value
    return (value if isinstance(value, type) else type(value)).__qualname__


def _resolved(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the policy makes of arguments that can be written in several ways"""
    net_arch = arguments.get("net_arch")
    if net_arch is None:
        net_arch = [] if arguments.get("features_extractor_class") is NatureCNN else [64, 64]  # as in SB3
    if not isinstance(net_arch, dict):
        net_arch = {"pi": net_arch, "vf": net_arch}
    # A policy of the user's own may decide some of them itself
    feedforward = arguments.get("dim_feedforward") or 2 * arguments.get("d_model", 0)
    frames = arguments.get("local_window") if arguments.get("memory_actor") else None  # an MLP actor stacks none
    return {**arguments, "net_arch": net_arch, "dim_feedforward": feedforward, "local_window": frames}


def check_same_network(stored: dict[str, Any] | None, given: dict[str, Any], policy_class: type[Any]) -> None:
    """
    :param stored: Network arguments in a file; None if they are not known, then nothing is checked
    :param given: Network arguments here
    :param policy_class: The policy, whose defaults those are that are not set
    :raises ValueError: If they make different networks; the message says which differ
    """
    if stored is None:
        return
    differences = []
    targets = [resolve_aux_loss(arguments["aux_loss"]) for arguments in (stored, given)]
    if len({None if names is None else frozenset(names) for names in targets}) > 1:
        differences.append(f"aux_loss: {stored['aux_loss']!r} in the file, {given['aux_loss']!r} here")
    if bool(stored["use_sde"]) != bool(given["use_sde"]):
        differences.append(f"use_sde: {stored['use_sde']!r} in the file, {given['use_sde']!r} here")
    if "policy_kwargs" in stored:
        defaults = default_arguments(policy_class)
        old, new = ({**defaults, **arguments["policy_kwargs"]} for arguments in (stored, given))
        meant_then, meant_here = (_comparable(_resolved(arguments)) for arguments in (old, new))
        for name in sorted({*stored["policy_kwargs"], *given["policy_kwargs"]} - set(FIRST_VALUES)):
            if meant_then.get(name) != meant_here.get(name):
                differences.append(f"{name}: {old.get(name)!r} in the file, {new.get(name)!r} here")
    if differences:
        raise OtherNetworkError(
            f"The network arguments differ: {'; '.join(differences)}. For load(), leave them out: those of the file "
            "are used. For set_parameters(), make the model with those of the file."
        )
