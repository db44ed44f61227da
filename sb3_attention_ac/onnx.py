"""
Export to ONNX: observations in, deterministic actions out, and of an actor with a memory its state in and out.

The memory's step is that of :mod:`~sb3_attention_ac.networks.kv_cache`, with one difference. A graph does not branch on what
is in a cache: each step computes what every cache would become if it were full, and uses that where it is full.
"""

import copy
import keyword
import os
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_attention_ac.aac import AttentionActorCritic
from sb3_attention_ac.acting import SteppedNetwork
from sb3_attention_ac.networks.distributions import Categoricals
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache, Rows
from sb3_attention_ac.networks.transformer import as_real
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import Obs

N_EXAMPLES = 2  # rows that the graph is traced with; it takes any number


class _GraphEncoder(IncrementalEncoder):
    """An incremental encoder without a branch on what is in a cache, and without complex numbers, which ONNX has not."""

    def __init__(self, encoder: IncrementalEncoder):
        chunk_length = encoder.n_slots - encoder.n_before
        sizes = encoder.n_context, chunk_length, encoder.n_landmarks
        super().__init__(encoder.network, encoder.mlp, *sizes, encoder.surprise)
        self._rotary = as_real(self._rotary)

    def _next_slot(self, cache: KVCache) -> tuple[Rows, th.Tensor]:
        shifted = KVCache._make(part.clone() for part in cache)
        self._shift(shifted, slice(None))
        full = cache.position == self.n_slots  # [N]
        for part, new in zip(cache, shifted, strict=True):
            part.copy_(th.where(full.view(-1, *[1] * (part.dim() - 1)), new, part))
        return th.arange(full.shape[0], device=full.device), cache.position


class _Actor(nn.Module):
    """
    What is exported: a policy's deterministic actions, tensors in, tensors out.

    :param policy: The policy, which is changed
    :param with_masks: Whether action masks are an input
    """

    def __init__(self, policy: AttentionActorCriticPolicy, with_masks: bool):
        super().__init__()
        self.policy, self.tilts = policy, policy.tilts
        self.memory: SteppedNetwork | None = None
        self.outputs = ["action"]
        space = policy.observation_space
        if self.tilts and not policy.memory_actor and policy.actor_keys != policy.critic_keys:  # then the critic is stepped
            raise ValueError(
                f"attention_q=True with actor_keys={policy.actor_keys} and critic_keys={policy.critic_keys} cannot be "
                "exported: train with the same for both."
            )
        if isinstance(space, spaces.Dict):
            read = policy.actor_keys or ()
            policy.critic_keys = policy.actor_keys  # no others are given
            self.examples = {f"obs_{key}": _example(part) for key, part in space.spaces.items() if key in read}
        else:
            self.examples = {"obs": _example(space)}
        if policy.remembers:
            self.memory = policy.stepped_network()
            self.memory.incremental = _GraphEncoder(self.memory.incremental)
            self.outputs += [f"next_state_{name}" for name in KVCache._fields]
            self.examples["episode_start"] = th.ones(N_EXAMPLES, dtype=th.bool)
            self.examples |= {f"state_{name}": part for name, part in self.memory.empty(N_EXAMPLES)._asdict().items()}
        if with_masks:
            if not isinstance(policy.distribution, Categoricals):
                raise ValueError(
                    "action_masks=True is for Discrete, MultiDiscrete and MultiBinary actions, but this policy's are a Box: "
                    "leave it out."
                )
            self.examples["action_masks"] = th.ones((N_EXAMPLES, policy.distribution.mask_dim), dtype=th.bool)

    def forward(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param inputs: As the examples, N rows each
        :return: Actions as the environment takes them [N, *action_shape], and the next state
        """
        given = dict(zip(self.examples, inputs, strict=True))
        masks = given.get("action_masks")
        entries: Obs = {name.removeprefix("obs_"): part for name, part in given.items() if name.startswith("obs_")}
        obs = entries or given["obs"]
        policy, memory = self.policy, self.memory
        cache = output = None
        if memory is not None:
            cache = KVCache._make(given[f"state_{name}"].clone() for name in KVCache._fields)
            cache.position.clamp_(min=memory.incremental.n_before)  # zeros, at an episode's start, are a state too
            output = memory.step_tensors(obs, cache, given["episode_start"])
        parameters, _ = policy.decide(obs, output, masks, self.tilts)
        actions, _ = policy.distribution.sample(parameters, True)
        if cache is None:
            return (self._for_env(actions),)
        cache.previous_action.copy_(actions)
        return self._for_env(actions), *cache

    def _for_env(self, actions: th.Tensor) -> th.Tensor:
        """As :meth:`~sb3_attention_ac.policies.AttentionActorCriticPolicy.actions_for_env`"""
        space = self.policy.action_space
        actions = actions.reshape(-1, *(space.shape or ()))
        if not isinstance(space, spaces.Box):
            start = getattr(space, "start", 0)
            return actions + th.as_tensor(start) if np.any(start) else actions
        low, high = th.as_tensor(space.low), th.as_tensor(space.high)
        return low + 0.5 * (actions + 1.0) * (high - low) if self.policy.squash_output else actions.clamp(low, high)


def _example(space: spaces.Space[Any]) -> th.Tensor:
    """Vectors are float32, as VecNormalize and PyTorch have them; images and categories have the dtype of their space."""
    is_vector = isinstance(space, spaces.Box) and not is_image_space(space)
    return th.as_tensor(np.zeros((N_EXAMPLES, *(space.shape or ())), np.float32 if is_vector else space.dtype))


def export_onnx(
    model: AttentionActorCritic, path: str | os.PathLike[str], action_masks: bool | None = None, **kwargs: Any
) -> None:
    """
    Write a model's actor to an ONNX file: what ``predict(..., deterministic=True)`` does, for any number N of environments.

    Inputs, in this order:

    - ``obs`` [N, \\*obs_shape], or ``obs_<key>`` for each entry of Dict observations that the actor reads; float32, but images
      uint8 and discrete observations as in their space
    - with a memory ``episode_start`` [N], and the state: ``state_<name>`` for each field of
      :class:`~sb3_attention_ac.networks.kv_cache.KVCache`. Begin with zeros (``episode_start`` True) or ``predict``'s state
    - with action masks ``action_masks`` [N, mask_dim], True where an action is allowed

    Outputs: ``action`` [N, \\*action_shape], as the environment takes it, and with a memory ``next_state_<name>``.

    :param model: The model
    :param path: Where to write the file
    :param action_masks: Whether action masks are an input; None: if the model was trained with masks
    :param kwargs: For :func:`torch.onnx.export`, e.g. ``opset_version``
    :raises ImportError: If the packages that PyTorch needs to export are not installed
    :raises ValueError: If masks are asked for and the action space knows none; or if ``attention_q`` changes actions and reads
        other entries of Dict observations than the actor; or if the network fixes the number of environments, or a part of it
        that is learned has the name of a Python keyword
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"export_onnx needs {' and '.join(missing)}: pip install '.[onnx]' in the checkout.")
    policy = copy.deepcopy(model.policy).to("cpu")
    policy.set_training_mode(False)
    policy.masked_prediction = None  # acting does not need it, and its head "return" has the name of a keyword
    _require_names_of_variables(policy)
    actor = _Actor(policy, bool(model.use_masking if action_masks is None else action_masks))
    n_envs = th.export.Dim("n_envs")
    with th.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        th.onnx.export(
            actor.eval(),
            tuple(actor.examples.values()),
            path,
            input_names=list(actor.examples),
            output_names=actor.outputs,
            dynamic_shapes=(tuple({0: n_envs} for _ in actor.examples),),
            **{"dynamo": True, "external_data": False, "verbose": False, **kwargs},
        )
    _require_any_number_of_environments(path)


def _require_names_of_variables(policy: nn.Module) -> None:
    """:raises ValueError: If PyTorch's exporter cannot write the network as a program, which calls its parts by their names"""
    keywords = {name: part for name in policy.state_dict() for part in name.split(".") if keyword.iskeyword(part)}
    for name, part in keywords.items():
        raise ValueError(
            f"The network's {name} cannot be exported: PyTorch writes the network as a program, in which a variable cannot be "
            f"called '{part}', a keyword of Python. Rename the entry of the observation, or the module, and train again."
        )


def _require_any_number_of_environments(path: str | os.PathLike[str]) -> None:
    """:raises ValueError: If the first axis of an input has the length of the examples"""
    from onnx import load

    fixed = [given.name for given in load(path).graph.input if not given.type.tensor_type.shape.dim[0].dim_param]
    if fixed:
        os.remove(path)
        raise ValueError(
            f"A file for any number of environments cannot be made: {', '.join(fixed)} would have a fixed first axis. "
            "A custom network that calls len(x) causes this: use x.shape[0]."
        )
