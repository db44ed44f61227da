"""What can be wrong with the arguments, said at construction: what was given, what is allowed, what to do."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_attention_ac.architecture import Architecture
from sb3_attention_ac.argument_names import closest_names, default_arguments
from sb3_attention_ac.landmarks import check_rule
from sb3_attention_ac.networks.distributions import ActionDistribution
from sb3_attention_ac.networks.history_network import is_hooked
from sb3_attention_ac.networks.preprocessing import AGE_INPUTS

LSTM_POLICIES = {  # RecurrentPPO's, as scripts name or import them, and what to use here
    name: alias.replace("Lstm", "")
    for alias, policy in RecurrentPPO.policy_aliases.items()
    for name in (alias, policy.__name__)
}
SMALLEST_IMAGE = 36  # pixels on a side, of SB3's NatureCNN
SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


# What numbers must be, by the name of the argument
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "gamma": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "gae_lambda": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "ent_coef": (lambda x: True, "a number"),
    "vf_coef": (lambda x: x >= 0, "at least 0"),
    "max_grad_norm": (lambda x: x > 0, "greater than 0"),
    "clip_range": (lambda x: x > 0, "greater than 0"),
    "clip_range_vf": (lambda x: x > 0, "greater than 0, or None"),
    "target_kl": (lambda x: x > 0, "greater than 0, or None"),
    "aux_coef": (lambda x: x >= 0, "at least 0"),
    "mask_ratio": (lambda x: 0 < x < 1, "between 0 and 1, both excluded"),
    "temperature": (lambda x: x > 0, "greater than 0"),
    "log_barrier_coef": (lambda x: x >= 0, "at least 0"),
    "dropout": (lambda x: 0 <= x < 1, "in [0, 1)"),
}
SCHEDULES = ("clip_range", "clip_range_vf")
MAY_BE_NONE = (*SCHEDULES, "target_kl", "aux_coef")


def check_integers(given: dict[str, tuple[Any, int]]) -> None:
    """
    :param given: Name of each argument to its value and the least that is allowed
    :raises ValueError: If one is not an integer, or less
    """
    for name, (value, least) in given.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r} was given, but it must be an integer.")
        if int(value) < least:
            raise ValueError(f"{name}={value} was given, but it must be at least {least}.")


def check_numbers(given: Mapping[str, Any]) -> None:
    """
    :param given: Arguments by name, of which those in ``RANGES`` are looked at; schedules are not called
    :raises ValueError: If one is not a number, or out of its range
    """
    for name, (is_fine, must) in RANGES.items():
        value = given.get(name)
        if name not in given or (name in MAY_BE_NONE and value is None) or (name in SCHEDULES and callable(value)):
            continue
        if not isinstance(value, Real):
            raise ValueError(f"{name}={value!r} was given, but it must be a number.")
        if not is_fine(value):
            raise ValueError(f"{name}={value} was given, but it must be {must}.")


def check_flags(**given: Any) -> None:
    """:raises ValueError: If one is neither True nor False"""
    for name, value in given.items():
        if value not in (True, False):  # 1 and 0 are equal to them
            raise ValueError(f"{name}={value!r} was given, but it must be True or False.")


def check_network(architecture: Architecture) -> None:
    """
    Check the network's shape, see :class:`~sb3_attention_ac.policies.AttentionActorCriticPolicy`.

    :raises ValueError: If it cannot be built, or an option has no effect
    """
    given = architecture
    at_least = {"context_length": (given.context_length, 1), "n_layers": (given.n_layers, 0), "n_heads": (given.n_heads, 1)}
    at_least |= {"d_model": (given.d_model, 1), "local_window": (given.local_window, 1), "n_landmarks": (given.n_landmarks, 0)}
    if given.dim_feedforward is not None:
        at_least["dim_feedforward"] = (given.dim_feedforward, 1)
    check_integers(at_least)
    check_numbers(vars(given))
    if given.age_input not in AGE_INPUTS:
        raise ValueError(f"age_input={given.age_input!r} was given, but it must be one of {list(AGE_INPUTS)}.")
    if given.d_model % given.n_heads != 0:
        divisors = [n for n in range(1, given.d_model + 1) if given.d_model % n == 0]
        raise ValueError(
            f"d_model={given.d_model} is not divisible by n_heads={given.n_heads}: choose n_heads from {divisors}, "
            "or another d_model."
        )
    if given.dropout > 0 and given.memory_actor and given.share_encoder:
        raise ValueError(
            f"dropout={given.dropout} was given with share_encoder=True, but a memory actor's encoder has no dropout (the "
            "policy that learns has to be the one that acted): use dropout=0, or share_encoder=False (a critic with dropout)."
        )
    for name in ("memory_actor", "attention_q", "n_landmarks", "age_input"):
        value = getattr(given, name)
        if value and given.n_layers == 0:
            raise ValueError(f"{name}={value!r} needs attention, but n_layers=0 was given: use n_layers of at least 1.")
    if given.attention_q and given.use_sde:
        raise ValueError("attention_q=True was given with use_sde=True, but it cannot tilt gSDE: use only one of them.")


def check_landmark_rule(architecture: Architecture, targets: Sequence[str]) -> None:
    """:raises ValueError: If the rule is unknown, or what it needs is missing"""
    rule = architecture.landmark_rule
    check_rule(rule)
    if rule == "first":
        return
    needs = {
        "n_landmarks of at least 2 (one for the first step)": architecture.n_landmarks >= 2,
        "memory_actor=True": architecture.memory_actor,
        'aux_loss="next_step" (alone or with others)': "next_step" in targets,
    }
    if missing := [name for name, given in needs.items() if not given]:
        raise ValueError(
            f"landmark_rule={rule!r} needs {' and '.join(missing)}; aux_loss is given to AAC(), the others in policy_kwargs."
        )


def check_keys(space: spaces.Space[Any], **given: Sequence[str] | None) -> None:
    """:raises ValueError: If the observation space has no such entries as ``actor_keys`` and ``critic_keys``"""
    for name, keys in given.items():
        if keys is None:
            continue
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"{name}={keys!r} was given, but it is for Dict observations; the observation space is {space}.")
        if isinstance(keys, str) or not isinstance(keys, Collection) or len(keys) == 0:
            raise ValueError(f"{name}={keys!r} was given, but it must be a list of entries of {sorted(space.spaces)}.")
        for key in keys:
            if key not in space.spaces:
                offer = closest_names(str(key), space.spaces)
                raise ValueError(f"{name} has {key!r}, which the observation space does not know; {offer}.")


def check_observation(observation: Any, space: spaces.Space[Any], keys: Sequence[str] | None) -> None:
    """
    :param observation: What ``predict`` was given
    :param space: The observation space
    :param keys: Which entries of a Dict the actor reads, None for all
    :raises ValueError: If it is none; if one of these is missing, or there are others than the space knows
    """
    if isinstance(observation, tuple):  # as in SB3
        raise ValueError(
            "predict() was given a tuple instead of an array or a dictionary of arrays; this comes from mixing Gym and "
            "VecEnv API. Pass the observation alone: obs, info = env.reset() of a Gym environment; obs = vec_env.reset() and "
            "obs, rewards, dones, infos = vec_env.step(actions) of a VecEnv."
        )
    if not isinstance(space, spaces.Dict):
        return
    needed = list(space.spaces if keys is None else keys)
    if not isinstance(observation, Mapping):
        raise ValueError(f"predict() was given {type(observation).__name__}, but it must be a dictionary with {needed}.")
    if missing := [key for key in needed if key not in observation]:
        raise ValueError(f"The observation has no {missing}: predict() needs {needed}, and was given {list(observation)}.")
    for key in observation:
        if key not in space.spaces:
            raise ValueError(
                f"The observation has {key!r}, which the space does not know; {closest_names(key, space.spaces)}."
            )


def check_attention_q_keys(
    acts_by_critic: bool, actor_keys: tuple[str, ...] | None, critic_keys: tuple[str, ...] | None
) -> None:
    """
    :param acts_by_critic: Whether what the critic's encoder has seen changes the actions of an MLP actor
    :raises ValueError: If it would act on entries that are the critic's alone
    """
    alone = [key for key in critic_keys or () if key not in (actor_keys or ())]
    if acts_by_critic and alone:
        raise ValueError(
            f"attention_q=True lets what the critic has seen change actions, but the critic reads {alone}, which is not among "
            f"actor_keys={list(actor_keys or ())}. Leave attention_q out, use memory_actor=True, or pass "
            f"critic_keys={list(actor_keys or ())}."
        )


# What PPO calls and this algorithm does not, and what to use instead
NOT_CALLED = {
    "forward": "extract_features(), or the networks themselves",
    "evaluate_actions": "extract_features(), or the networks themselves",
    "predict_values": "value_net, mlp_extractor.forward_critic(), or extract_features()",
    "get_distribution": "action_net, mlp_extractor.forward_actor(), or extract_features()",
    "_get_action_dist_from_latent": "action_net",
}


def check_not_overridden(policy_class: type[Any], base: type[Any], memory_actor: bool) -> None:
    """
    :param policy_class: A subclass of the policy
    :param base: The policy
    :param memory_actor: Whether it has a memory actor
    :raises TypeError: If it overrides a method that is not called while training: nothing would come of it
    """
    if memory_actor and policy_class._predict is not base._predict:
        raise TypeError(
            f"{policy_class.__name__} overrides _predict(), which a memory actor does not call: it acts on more than one "
            "observation. Override predict(), or replace action_net."
        )
    for name, instead in NOT_CALLED.items():
        if getattr(policy_class, name) is not getattr(base, name):
            raise TypeError(
                f"{policy_class.__name__} overrides {name}(), which is not called while training: values and log "
                "probabilities of whole windows are computed at once, and the override would have no effect. Override or "
                f"replace {instead} instead."
            )


def warn_about_replaced_methods(policy: nn.Module) -> None:
    """:param policy: The policy, whose methods may have been replaced by a function, or hooked"""
    names = [name for name in NOT_CALLED if name in vars(policy)]
    found = [f"{name}()" for name in names]
    if is_hooked(policy, "forward"):
        found.append("forward hooks")
    if found:
        warnings.warn(
            f"Training does not call {' or '.join(found)} of the policy: values and log probabilities of whole windows are "
            f"computed at once. Replace or hook {NOT_CALLED[names[0]] if names else 'the networks themselves'} instead.",
            stacklevel=5,  # who called learn()
        )


def check_auxiliary(targets: Sequence[str], aux_coef: float | None, architecture: Architecture) -> None:
    """:raises ValueError: If the self-supervised losses go neither with their coefficient nor with the network"""
    if aux_coef == 0 and architecture.landmark_rule == "surprise":
        raise ValueError("landmark_rule='surprise' needs next-step prediction, which learns nothing with aux_coef=0.")
    if targets and architecture.n_layers == 0:
        raise ValueError("aux_loss needs attention, but n_layers=0 was given: use n_layers of at least 1, or aux_loss=None.")


def check_log_barrier(log_barrier_coef: float, distribution: ActionDistribution) -> None:
    """:raises ValueError: If the actions are not discrete, or of a distribution that has no log barrier"""
    if log_barrier_coef != 0 and not hasattr(distribution, "log_barrier"):
        raise ValueError(
            f"log_barrier_coef={log_barrier_coef} was given, but it is for discrete actions (Discrete, MultiDiscrete, "
            "MultiBinary). Leave it out; ent_coef works with continuous ones."
        )


def warn_about_no_effect(
    targets: tuple[str, ...], aux_coef: float | None, mask_ratio: float, temperature: float, n_trajectories: int
) -> None:
    """Say which options of the self-supervised loss change nothing; all but the targets as given to the constructor."""
    masked = set(targets) - {"next_step"}
    no_effect = {
        "aux_coef": (aux_coef, aux_coef is None or bool(targets), "an aux_loss"),
        "mask_ratio": (mask_ratio, mask_ratio == 0.25 or bool(masked), "a masked prediction"),
        "temperature": (temperature, temperature == 0.1 or "contrastive" in targets, "the target 'contrastive'"),
        "n_trajectories": (n_trajectories, n_trajectories == 0 or bool(masked), "a masked prediction"),
    }
    for name, (value, is_fine, needs) in no_effect.items():
        if not is_fine:
            chosen = f"aux_loss has the targets {list(targets)}" if targets else "there is no aux_loss"
            warnings.warn(
                f"{name}={value} has no effect: it needs {needs}, but {chosen}. Leave it out, or choose another aux_loss.",
                stacklevel=4,
            )


def check_spaces(
    policy: Any, observation_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any], own_policy: bool = False
) -> None:
    """
    :param policy: The policy's alias, or a class
    :param observation_space: The environment's
    :param policy_kwargs: Keyword arguments of the policy. With a features extractor, an alias stands for nothing
    :param own_policy: Whether the alias is of a user's own policy
    :raises ValueError: If they do not go together
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for space in parts:
        # Those of an old Gym are none of Gymnasium's; SB3 converts them later
        if isinstance(space, spaces.Space) and not isinstance(space, SUPPORTED_SPACES):
            raise ValueError(
                f"{type(space).__name__} observations are not supported; allowed are Box, Discrete, MultiDiscrete, "
                "MultiBinary and Dict: wrap the environment to return a Dict or a flat array "
                "(gymnasium.wrappers.FlattenObservation)."
            )
        check_shape(space, "observation")
    if own_policy or "features_extractor_class" in policy_kwargs:
        return
    is_dict = isinstance(observation_space, spaces.Dict)
    kind = f"the observation space is {observation_space}"
    if policy == "MultiInputPolicy" and not is_dict:
        raise ValueError(f"'MultiInputPolicy' is for Dict observations, but {kind}: use 'MlpPolicy' or 'CnnPolicy'.")
    if policy in ("MlpPolicy", "CnnPolicy") and is_dict:
        raise ValueError(f"{policy!r} is not for Dict observations, but {kind}: use 'MultiInputPolicy'.")
    if policy == "CnnPolicy" and not is_image_space(observation_space, normalized_image=True, check_channels=False):
        raise ValueError(f"'CnnPolicy' is for image observations, but {kind}: use 'MlpPolicy'.")
    keys = policy_kwargs.get("actor_keys"), policy_kwargs.get("critic_keys")
    if isinstance(observation_space, spaces.Dict) and None not in keys:
        names = [name for given in keys if isinstance(given, Sequence) for name in given]
        parts = [space for name, space in observation_space.spaces.items() if name in names]
    for space in parts if policy in ("CnnPolicy", "MultiInputPolicy") else ():
        # The smallest of the three numbers is that of the channels
        if is_image_space(space, check_channels=False) and sorted(space.shape or ())[1] < SMALLEST_IMAGE:
            flattened = ", or return it as float32: a Dict's floats are flattened" if is_dict else ""
            raise ValueError(
                f"The image {space.shape} is too small for {policy!r}, whose NatureCNN needs {SMALLEST_IMAGE} x "
                f"{SMALLEST_IMAGE} pixels: give policy_kwargs=dict(features_extractor_class=...) (docs/guide/images.md)"
                f"{flattened}."
            )


def check_shape(space: spaces.Space[Any], kind: str) -> None:
    """:raises ValueError: If a space ("observation" or "action") has a shape that SB3 does not know"""
    wrapper = "FlattenObservation" if kind == "observation" else "TransformAction"
    wrap = f"wrap the environment to flatten it (gymnasium.wrappers.{wrapper})"
    name = type(space).__name__
    one_axis = (spaces.MultiDiscrete, spaces.MultiBinary) if kind == "action" else spaces.MultiDiscrete
    if isinstance(space, one_axis) and len(space.shape) > 1:
        raise ValueError(
            f"The {kind} space is {space}, with {len(space.shape)} dimensions; {name} spaces must have one: {wrap}."
        )
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(f"The {kind} space is {space}, a single number without an axis; it must have the shape (1,): {wrap}.")
    starts = np.any(getattr(space, "start", 0))
    if kind == "observation" and starts:
        raise ValueError(
            f"The observation space {space} does not start at 0, which its one-hot encoding needs: {wrap}, or subtract "
            "the start."
        )


def check_policy_arguments(policy: Any, policy_kwargs: Any) -> None:
    """:raises ValueError: If the policy is none, or one of RecurrentPPO's, or its arguments are not a dictionary"""
    if not isinstance(policy, (str, type)):
        raise ValueError(f"policy={policy!r} is not a policy: use 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'.")
    name = policy if isinstance(policy, str) else policy.__name__
    if name in LSTM_POLICIES:
        raise ValueError(
            f"policy={name!r} is one of RecurrentPPO's: use {LSTM_POLICIES[name]!r} with "
            "policy_kwargs=dict(memory_actor=True) for an actor with a memory."
        )
    if policy_kwargs is not None and not isinstance(policy_kwargs, Mapping):
        raise ValueError(
            f"policy_kwargs={policy_kwargs!r} was given, but it must be a dictionary, or None: "
            "policy_kwargs=dict(memory_actor=True), without quotes."
        )


def check_memory_options(policy_kwargs: Mapping[str, Any], policy_class: type[Any]) -> None:
    """
    Of a policy without a memory actor. With an explicit ``memory_actor=False`` its options may stay, as in variants of one
    setting.

    :raises ValueError: If there are options for a memory actor, and nothing says that there is none
    """
    defaults = default_arguments(policy_class)
    for name, without in (("share_encoder", False), ("local_window", 1)):
        given = policy_kwargs.get(name, without)
        if "memory_actor" not in policy_kwargs and given not in (without, defaults.get(name, without)):
            raise ValueError(
                f"{name}={given} was given, but it has no effect without a memory actor: "
                f"use policy_kwargs=dict(memory_actor=True, {name}={given}), or leave it out."
            )


def check_policy(policy_class: type[Any], base: type[Any]) -> None:
    """:raises ValueError: If the policy is none of ours"""
    if not issubclass(policy_class, base):
        raise ValueError(
            f"policy={policy_class.__name__} is not a subclass of {base.__name__}: use 'MlpPolicy', 'CnnPolicy', "
            "'MultiInputPolicy' or a subclass. If it comes from a file, another algorithm saved it: load it with that one."
        )
