"""
The memory of an acting agent: what its trunk needs of the steps so far to go on one step at a time.

Slots 0 ... n_context - 1 hold context, the slots after them the steps of the current chunk, as in a training window. When the
slots are full, the last n_context steps move to the front and their keys and values are computed anew, as a training window
would. So stepping gives exactly what one pass over the window gives, at a cost that does not grow with the episode.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_attention_ac.encoder import TrajectoryEncoder
from sb3_attention_ac.stand_in import as_function, stand_in
from sb3_attention_ac.trajectory import local_window
from sb3_attention_ac.trunk import AttentionTrunk, TrunkOutput


class TrajectoryMemory(NamedTuple):
    """
    One row per environment, N rows; S = n_context + chunk_length slots.

    :param features: Features of each step, [N, S, F]
    :param events: Encoded previous action of each step, [N, S, event_dim]
    :param keys: [N, n_layers, n_heads, S, head_dim]
    :param values: [N, n_layers, n_heads, S, head_dim]
    :param previous_action: The last action, as sampled, [N, action_dim]
    :param position: The next free slot, [N]
    :param start: The first slot of the current episode, [N]
    """

    features: th.Tensor
    events: th.Tensor
    keys: th.Tensor
    values: th.Tensor
    previous_action: th.Tensor
    position: th.Tensor
    start: th.Tensor

    def to_numpy(self) -> tuple[np.ndarray, ...]:
        """:return: The memory as plain arrays, the first axis of each is the environment"""
        return tuple(tensor.cpu().numpy() for tensor in self)

    @classmethod
    def from_numpy(cls, state: tuple[np.ndarray, ...], device: th.device) -> "TrajectoryMemory":
        """
        :param state: From :meth:`to_numpy`; it is copied, never written to
        :param device: Where to put the tensors
        :return: A memory to step with
        """
        return cls._make(th.tensor(array, device=device) for array in state)


class TrajectoryStepper:
    """
    Steps a trunk through trajectories, one step of every environment at a time.

    :param trunk: A trunk with an encoder
    :param mlp: Its MLP
    :param n_context: Context steps before a chunk
    :param chunk_length: Steps of a chunk
    """

    def __init__(self, trunk: AttentionTrunk, mlp: nn.Sequential, n_context: int, chunk_length: int):
        if trunk.encoder is None:
            raise ValueError("A trunk without an encoder has no memory to step with.")
        self.encoder: TrajectoryEncoder = trunk.encoder
        self.trunk, self.mlp = trunk, mlp
        # For single steps; the first layer itself, as its weights go together with the local window's
        self._layers = [layer if i == 0 else as_function(layer) for i, layer in enumerate(mlp)]
        self._trunk, self._encoder = stand_in(trunk), stand_in(self.encoder)
        self._blocks = [stand_in(block) for block in self.encoder.blocks]
        self.n_context, self.n_slots = n_context, n_context + chunk_length
        self._slots = th.arange(self.n_slots, device=self.encoder.norm.weight.device)
        self._turns = self.encoder.turns(self.n_slots, self._slots.device)  # [n_slots, 3, n_heads, head_dim // 2]

    def empty(self, n_envs: int, features_dim: int, event_dim: int, action_dim: int, device: th.device) -> TrajectoryMemory:
        """:return: A memory without a past"""
        n_heads, d_model = self.encoder.blocks[0].n_heads, self.encoder.norm.normalized_shape[0]
        cache: Any = (n_envs, len(self.encoder.blocks), n_heads, self.n_slots, d_model // n_heads)
        return TrajectoryMemory(
            th.zeros((n_envs, self.n_slots, features_dim), device=device),
            th.zeros((n_envs, self.n_slots, event_dim), device=device),
            th.zeros(cache, device=device),
            th.zeros(cache, device=device),
            th.zeros((n_envs, action_dim), device=device),
            th.full((n_envs,), self.n_context, device=device),
            th.full((n_envs,), self.n_context, device=device),
        )

    def recall(self, memory: TrajectoryMemory, rows: th.Tensor | slice) -> None:
        """
        Compute keys and values of the context slots anew, in place, and go on after them.

        :param memory: A memory whose features and events of the slots 0 ... n_context - 1 and whose ``start`` are set
        :param rows: Which rows to do
        """
        n = self.n_context
        memory.position[rows] = n
        if n == 0:
            return
        episode_ids = (self._slots[:n] >= memory.start[rows].unsqueeze(1)).long()  # [M, n]; no older episode is read
        features, events = memory.features[rows, :n], memory.events[rows, :n]
        recent = local_window(features, episode_ids, self.trunk.n_previous)
        tokens = self.encoder.tokens(self.trunk.latents(self.mlp, recent), events)
        for i, (keys, values) in enumerate(self.encoder.all_keys_values(tokens, episode_ids)):
            memory.keys[rows, i, :, :n] = keys
            memory.values[rows, i, :, :n] = values

    def _make_room(self, memory: TrajectoryMemory, rows: th.Tensor | slice) -> None:
        """Move the last n_context steps to the front, in place."""
        n = self.n_context
        memory.features[rows, :n] = memory.features[rows, self.n_slots - n :].clone()
        memory.events[rows, :n] = memory.events[rows, self.n_slots - n :].clone()
        memory.start[rows] = (memory.start[rows] - (self.n_slots - n)).clamp(min=0)
        self.recall(memory, rows)

    def _next_slot(self, memory: TrajectoryMemory) -> tuple[th.Tensor | slice, th.Tensor | int]:
        """
        Where the next step of each row goes. Rows that have come along together have the same slot, which is quicker to read
        and write than one for each row.

        :return: The rows, and their slots
        """
        first, last = (int(extreme) for extreme in memory.position.aminmax())
        if first == last:
            if last == self.n_slots:
                self._make_room(memory, slice(None))
                last = self.n_context
            return slice(None), last
        if last == self.n_slots:
            self._make_room(memory, (memory.position == last).nonzero().squeeze(1))
        return th.arange(len(memory.position), device=memory.position.device), memory.position

    def _recent_features(self, memory: TrajectoryMemory, features: th.Tensor, slot: th.Tensor | int) -> th.Tensor:
        """:return: Features of the last steps, as :func:`local_window` gives them, [N, F * (1 + n_previous)]"""
        n = self.trunk.n_previous
        if n == 0:
            return features
        if isinstance(slot, int) and slot >= n:
            slots, earlier = self._slots[slot - n : slot], memory.features[:, slot - n : slot]  # [n] and [N, n, F]
        else:
            slots = memory.position.unsqueeze(1) + th.arange(-n, 0, device=memory.position.device)  # [N, n], oldest first
            every_row = th.arange(len(slots), device=slots.device)
            earlier = memory.features[every_row.unsqueeze(1), slots.clamp(min=0)]
        if not isinstance(slot, int) or memory.start.max() > slot - n:  # else all of them are of the same episode
            earlier = th.where((slots >= memory.start.unsqueeze(1)).unsqueeze(-1), earlier, 0.0)  # [N, n, F]
        return th.cat([features, earlier.transpose(1, 2).flatten(1)], dim=1)

    def step(
        self, memory: TrajectoryMemory, features: th.Tensor, events: th.Tensor, episode_start: th.Tensor | None
    ) -> TrunkOutput:
        """
        Take in one step of every environment, in place.

        :param memory: The memory so far
        :param features: Features of s_t, [N, F]
        :param events: Encoded a_{t-1}, [N, event_dim]
        :param episode_start: Whether s_t is the first step of its episode, [N]; None if none is
        :return: What the trunk makes of it, [N, ...]
        """
        rows, slot = self._next_slot(memory)
        if episode_start is not None:
            memory.start.copy_(th.where(episode_start, memory.position, memory.start))
        memory.features[rows, slot] = features
        memory.events[rows, slot] = events
        latents = self.trunk.latents(self._layers, self._recent_features(memory, features, slot))

        x = self._encoder.tokens(latents, events).unsqueeze(1)  # [N, 1, d_model]
        turns = self._turns[slot].unsqueeze(-4)  # [1, 3, n_heads, head_dim // 2], or [N, 1, 3, n_heads, head_dim // 2]
        used = slot + 1 if isinstance(slot, int) else self.n_slots
        mask = self._slots[:used] >= memory.start.view(-1, 1, 1, 1)  # [N, 1, 1, used]
        if not isinstance(slot, int):
            mask &= self._slots <= memory.position.view(-1, 1, 1, 1)
        for i, block in enumerate(self._blocks):
            queries, keys, values = block.queries_keys_values(x, turns)
            memory.keys[rows, i, :, slot] = keys.squeeze(2)
            memory.values[rows, i, :, slot] = values.squeeze(2)
            readable = memory.keys[:, i, :, :used], memory.values[:, i, :, :used]  # [N, n_heads, used, head_dim] each
            x = block(x, queries, *readable, mask)
        gathered = self._encoder.norm(x).squeeze(1)
        memory.position.add_(1)
        output: TrunkOutput = self._trunk.add_gathered(latents, gathered)
        return output
