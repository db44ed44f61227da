"""
Export to ONNX: observations in, deterministic actions out, and for an actor with a memory its state in and out.

The memory's step is that of :mod:`~sb3_attention_ac.networks.kv_cache`, with one difference: a graph cannot look whether a cache
is full, so each step works out both what a full cache becomes and what it was, and takes the right one for each environment.
"""

import copy
import importlib.util
import os
from typing import Any

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_attention_ac.aac import AttentionActorCritic
from sb3_attention_ac.acting import MemoryActor
from sb3_attention_ac.networks.distributions import Categoricals
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache, Rows
from sb3_attention_ac.networks.transformer import as_real
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import Obs

N_EXAMPLES = 2  # environments to trace with; any number can be given later


class _GraphEncoder(IncrementalEncoder):
    """An incremental encoder without a branch on what is in the cache, and without complex numbers."""

    def __init__(self, encoder: IncrementalEncoder):
        arguments = encoder.network, encoder.mlp, encoder.n_context, encoder.n_slots - encoder.n_before, encoder.n_landmarks
        super().__init__(*arguments)
        self._rotary = as_real(self._rotary)

    def _next_slot(self, cache: KVCache) -> tuple[Rows, th.Tensor]:
        full = cache.position == self.n_slots  # [N]
        shifted = KVCache._make(part.clone() for part in cache)
        self._shift(shifted, slice(None))
        for part, new in zip(cache, shifted, strict=True):
            part.copy_(th.where(full.view(-1, *[1] * (part.dim() - 1)), new, part))
        return th.arange(cache.position.shape[0], device=cache.position.device), cache.position


class _GraphActor(nn.Module):
    """
    What is exported: tensors in, tensors out.

    :param policy: The policy, on the CPU
    :param with_masks: Whether action masks are an input
    """

    def __init__(self, policy: AttentionActorCriticPolicy, with_masks: bool):
        super().__init__()
        self.policy, self.with_masks = policy, with_masks
        self.memory: MemoryActor | None = None
        if policy.remembers:
            self.memory = policy._stepped()
            self.memory.incremental = _GraphEncoder(self.memory.incremental)
        self.tilts = policy.tilts

    def forward(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param inputs: As :meth:`examples` names them
        :return: Actions as the environment takes them, and the next state
        """
        given = dict(zip(self.examples(), inputs, strict=True))
        masks = given.get("action_masks")
        obs: Obs = {name.removeprefix("obs_"): tensor for name, tensor in given.items() if name.startswith("obs_")}
        obs = obs or given["obs"]
        policy, log_std = self.policy, self.policy.log_std_or_none
        if self.memory is None:
            parameters = policy.action_parameters(policy.mlp_actor_latent(obs), None, masks)
            return (self._for_env(policy.distribution.sample(parameters, log_std, deterministic=True)[0]),)
        cache = KVCache._make(given[f"state_{name}"].clone() for name in KVCache._fields)
        cache.position.clamp_(min=self.memory.incremental.n_before)  # so that zeros are an empty state
        output = self.memory.step_tensors(obs, cache, given["episode_start"])
        parameters, _ = policy._decide(obs, output, masks, self.tilts)
        actions, _ = policy.distribution.sample(parameters, log_std, deterministic=True)
        cache.previous_action.copy_(actions)
        return self._for_env(actions), *cache

    def _for_env(self, actions: th.Tensor) -> th.Tensor:
        """As :meth:`~sb3_attention_ac.policies.AttentionActorCriticPolicy.actions_for_env`"""
        space = self.policy.action_space
        actions = actions.reshape(-1, *(space.shape or ()))
        if not isinstance(space, spaces.Box):
            return actions + th.as_tensor(getattr(space, "start", 0))
        low, high = th.as_tensor(space.low), th.as_tensor(space.high)
        return low + 0.5 * (actions + 1.0) * (high - low) if self.policy.squash_output else actions.clamp(low, high)

    def examples(self) -> dict[str, th.Tensor]:
        """:return: An example of each input, in their order"""
        policy = self.policy
        examples = {name: _example(space) for name, space in self._observations().items()}
        if self.memory is not None:
            cache = self.memory.empty(N_EXAMPLES)
            examples["episode_start"] = th.ones(N_EXAMPLES, dtype=th.bool)
            examples |= {f"state_{name}": tensor for name, tensor in cache._asdict().items()}
        if self.with_masks:
            assert isinstance(policy.distribution, Categoricals)
            examples["action_masks"] = th.ones((N_EXAMPLES, policy.distribution.mask_dim), dtype=th.bool)
        return examples

    def _observations(self) -> dict[str, spaces.Space[Any]]:
        """The observations that the actor reads"""
        policy = self.policy
        if not isinstance(policy.observation_space, spaces.Dict):
            return {"obs": policy.observation_space}
        read = set(policy.actor_keys or ()) | set((policy.critic_keys or ()) if self.tilts else ())
        return {f"obs_{key}": space for key, space in policy.observation_space.spaces.items() if key in read}


def _example(space: spaces.Space[Any]) -> th.Tensor:
    return th.stack([th.as_tensor(space.sample()) for _ in range(N_EXAMPLES)])


def export_onnx(model: AttentionActorCritic, path: str | os.PathLike[str], action_masks: bool | None = None, **kwargs: Any) -> None:
    """
    Write the actor of a model to an ONNX file.

    :param model: The model
    :param path: Where to write the file
    :param action_masks: Whether action masks are an input; None for a model that was trained with them
    :param kwargs: For :func:`torch.onnx.export`, e.g. ``opset_version``
    """
    policy = copy.deepcopy(model.policy).to("cpu")
    policy.set_training_mode(False)
    actor = _GraphActor(policy, bool(model.use_masking if action_masks is None else action_masks))
    examples = actor.examples()
    outputs = ["action"] if actor.memory is None else ["action", *(f"next_state_{name}" for name in KVCache._fields)]
    n_envs = th.export.Dim("n_envs")
    with th.no_grad():
        th.onnx.export(
            actor.eval(), tuple(examples.values()), path, input_names=list(examples), output_names=outputs,
            dynamic_shapes=(tuple({0: n_envs} for _ in examples),), dynamo=True, external_data=False, **kwargs,
        )
