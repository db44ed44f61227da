"""
The KV cache: what a history network needs of the steps so far to go on one step at a time.

The first slots hold landmarks, if there are any, the next n_context slots context, the slots after them the steps of the
current chunk, as in a training window. When the slots are full, the last n_context steps move to the front and their keys and
values are computed anew, as a training window would. So stepping gives exactly what one pass over the window gives, at a cost
that does not grow with the episode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_attention_ac.landmarks import SURPRISE_DECAY, choose
from sb3_attention_ac.networks.constants import cached
from sb3_attention_ac.networks.history_network import HistoryNetwork, Mlp
from sb3_attention_ac.networks.transformer import TrajectoryEncoder, attention_mask
from sb3_attention_ac.type_aliases import EncoderOutput

Rows = th.Tensor | slice
# From hidden states and features of the step before, features of a step and the actions between them, to how unexpected it was
Surprise = Callable[[th.Tensor, th.Tensor, th.Tensor, th.Tensor], th.Tensor]


@cached
def _slots(n_slots: int, device: th.device) -> th.Tensor:
    """:return: The numbers of the slots, [n_slots]"""
    return th.arange(n_slots, device=device)


class KVCache(NamedTuple):
    """
    One row per environment, N rows; S = n_landmarks + n_context + chunk_length slots.

    :param features: Features of each step, [N, S, F]
    :param previous_steps: Previous action and reward and age of each step, encoded, [N, S, previous_dim]
    :param keys: [N, n_layers, n_heads, S, head_dim]
    :param values: [N, n_layers, n_heads, S, head_dim]
    :param previous_action: The last action, as sampled, [N, action_dim]
    :param age: Steps of the current episode so far, [N]
    :param position: The next free slot, [N]
    :param start: The first slot of the current episode after the landmarks, [N]
    :param landmark_ages: Age of each landmark, -1 where there is none, [N, n_landmarks]
    :param surprises: How unexpected each step was, [N, S]; [N, 0] where landmarks do not ask for it
    :param hidden: The encoder's hidden state of the last step, [N, d_model]; likewise [N, 0]
    """

    features: th.Tensor
    previous_steps: th.Tensor
    keys: th.Tensor
    values: th.Tensor
    previous_action: th.Tensor
    age: th.Tensor
    position: th.Tensor
    start: th.Tensor
    landmark_ages: th.Tensor
    surprises: th.Tensor
    hidden: th.Tensor

    def to_numpy(self) -> tuple[np.ndarray, ...]:
        """:return: The cache as plain arrays, the first axis of each is the environment"""
        return tuple(tensor.cpu().numpy() for tensor in self)

    def last_surprise(self) -> th.Tensor:
        """:return: How unexpected the last step was, [N]"""
        return self.surprises.gather(1, (self.position - 1).long().unsqueeze(1)).squeeze(1)

    @classmethod
    def from_numpy(cls, arrays: Any, device: th.device) -> "KVCache":
        """
        :param arrays: From :meth:`to_numpy`, of any type of number; they are copied, never written to
        :param device: Device of the cache
        :return: A cache with their contents
        """
        types = (np.int64 if name in ("position", "start") else np.float32 for name in cls._fields)
        copies = (np.array(array, dtype=dtype) for array, dtype in zip(arrays, types, strict=True))
        return cls._make(th.from_numpy(copy).to(device) for copy in copies)


class _Prefill:
    """Takes in the keys and values of the first slots of one layer, which read nothing before them."""

    def __init__(self, cache: KVCache, layer: int, rows: Rows, n: int):
        self.keys, self.values = cache.keys[:, layer, :, :n], cache.values[:, layer, :, :n]
        self.rows = rows

    def append(self, keys: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """As :class:`~sb3_attention_ac.networks.transformer.LayerCache`"""
        self.keys[self.rows], self.values[self.rows] = keys, values
        return keys, values


class _NextSlot:
    """Takes in the keys and values of one step of one layer, and gives back all slots so far."""

    def __init__(self, cache: KVCache, layer: int, rows: Rows, slot: th.Tensor | int, used: int):
        self.keys, self.values = cache.keys[:, layer, :, :used], cache.values[:, layer, :, :used]
        self.rows, self.slot = rows, slot

    def append(self, keys: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """As :class:`~sb3_attention_ac.networks.transformer.LayerCache`"""
        self.keys[self.rows, :, self.slot], self.values[self.rows, :, self.slot] = keys.squeeze(2), values.squeeze(2)
        return self.keys, self.values


class IncrementalEncoder:
    """
    Steps a history network through trajectories, one step of every environment at a time.

    :param network: A history network with an encoder
    :param mlp: Its MLP
    :param n_context: Context steps before a chunk
    :param chunk_length: Steps of a chunk
    :param n_landmarks: Earlier steps that stay readable
    :param surprise: How unexpected a step is, if landmarks are chosen by that
    """

    def __init__(
        self,
        network: HistoryNetwork,
        mlp: Mlp,
        n_context: int,
        chunk_length: int,
        n_landmarks: int = 0,
        surprise: Surprise | None = None,
    ):
        assert network.encoder is not None, "a network without attention has nothing to remember"
        self.encoder: TrajectoryEncoder = network.encoder
        self.network, self.mlp, self.surprise = network, mlp, surprise
        self.n_landmarks, self.n_context = n_landmarks, n_context
        self.n_before, self.n_slots = n_landmarks + n_context, n_landmarks + n_context + chunk_length
        self.device = self.encoder.norm.weight.device
        self._slots = _slots(self.n_slots, self.device)
        self._rotary = self.encoder.rotary(self.n_slots, self.device)  # [n_slots, 3, n_heads, head_dim // 2]

    def shapes(self, n_envs: int, features_dim: int, previous_dim: int, action_dim: int) -> list[tuple[int, ...]]:
        """:return: The shapes of a cache, in its order"""
        encoder = self.encoder
        keys = (n_envs, len(encoder.blocks), encoder.n_heads, self.n_slots, encoder.d_model // encoder.n_heads)
        steps, rows = (n_envs, self.n_slots), (n_envs,)
        return [
            (*steps, features_dim),
            (*steps, previous_dim),
            keys,
            keys,
            (n_envs, action_dim),
            rows,
            rows,
            rows,
            (n_envs, self.n_landmarks),
            (n_envs, 0 if self.surprise is None else self.n_slots),
            (n_envs, 0 if self.surprise is None else encoder.d_model),
        ]

    def empty(self, n_envs: int, features_dim: int, previous_dim: int, action_dim: int) -> KVCache:
        """:return: A cache without a past"""
        first = {"position": self.n_before, "start": self.n_before, "landmark_ages": -1.0}
        shapes = self.shapes(n_envs, features_dim, previous_dim, action_dim)
        pairs = zip(KVCache._fields, shapes, strict=True)
        return KVCache._make(th.full(shape, first.get(name, 0.0), device=self.device) for name, shape in pairs)

    def prefill(self, cache: KVCache, rows: Rows) -> None:
        """
        Compute keys and values of landmarks and context, in place, and go on after them.

        :param cache: Features, previous_steps and surprises of these slots, ``start`` and ``landmark_ages`` are set
        :param rows: Which rows to do
        """
        n, n_landmarks = self.n_before, self.n_landmarks
        cache.position[rows] = n
        if n == 0:
            return
        episode_ids = (self._slots[:n] >= cache.start[rows].unsqueeze(1)).long()  # [M, n]; no older episode is read
        episode_ids[:, :n_landmarks] = th.where(cache.landmark_ages[rows] >= 0, 1, -1)
        ages = cache.age[rows].unsqueeze(1) - (n - self._slots[:n])  # [M, n]; of context, those of landmarks are kept
        ages[:, :n_landmarks] = cache.landmark_ages[rows]
        frames = self.network.mlp_input(cache.features[rows, :n], episode_ids, ages.clamp(min=0), n_landmarks)
        mlp_latent = self.mlp(frames)
        tokens = self.encoder.embed(mlp_latent, cache.previous_steps[rows, :n])
        layers = [_Prefill(cache, layer, rows, n) for layer in range(len(self.encoder.blocks))]
        hidden = self.encoder.step(tokens, self._rotary[:n], attention_mask(episode_ids, n), layers)
        if self.surprise is not None:
            cache.hidden[rows] = hidden[:, -1]

    def _shift(self, cache: KVCache, rows: Rows) -> None:
        """Choose the landmarks, and move the last n_context steps to the front, in place."""
        k, n = self.n_landmarks, self.n_context
        if k > 0:
            self._choose_landmarks(cache, rows)
        cache.features[rows, k : k + n] = cache.features[rows, self.n_slots - n :].clone()
        cache.previous_steps[rows, k : k + n] = cache.previous_steps[rows, self.n_slots - n :].clone()
        if self.surprise is not None:
            cache.surprises[rows, k : k + n] = cache.surprises[rows, self.n_slots - n :].clone()
        cache.start[rows] = (cache.start[rows] - (self.n_slots - self.n_before)).clamp(min=k)
        self.prefill(cache, rows)

    def _choose_landmarks(self, cache: KVCache, rows: Rows) -> None:
        """From the current ones and the steps that leave the context, as the rollout buffer does"""
        k, end = self.n_landmarks, self.n_slots - self.n_context
        slots = self._slots[k:end]
        ages = cache.age[rows].unsqueeze(1) - (self.n_slots - slots)  # [M, n_leaving]
        ages = th.cat([cache.landmark_ages[rows], th.where(slots >= cache.start[rows].unsqueeze(1), ages, -1.0)], dim=1)
        order = choose(ages, None if self.surprise is None else cache.surprises[rows, :end], ages >= 0, k)  # [M, k]
        if self.surprise is not None:
            cache.surprises[rows, :k] = cache.surprises[rows, :end].gather(1, order) * SURPRISE_DECAY
        every_row = th.arange(order.shape[0], device=order.device).unsqueeze(1)
        cache.features[rows, :k] = cache.features[rows][every_row, order]
        cache.previous_steps[rows, :k] = cache.previous_steps[rows][every_row, order]
        cache.landmark_ages[rows] = ages.gather(1, order)

    def _next_slot(self, cache: KVCache) -> tuple[Rows, th.Tensor | int]:
        """
        Where the next step of each row goes. Rows that have come along together have the same slot, which is quicker to read
        and write than one for each row.

        :return: The rows, and their slots
        """
        first, last = (int(extreme) for extreme in cache.position.aminmax())
        if first == last:
            if last == self.n_slots:
                self._shift(cache, slice(None))
                last = self.n_before
            return slice(None), last
        if last == self.n_slots:
            self._shift(cache, (cache.position == last).nonzero().squeeze(1))
        return th.arange(len(cache.position), device=cache.position.device), cache.position

    def _stacked_frames(self, cache: KVCache, features: th.Tensor, slot: th.Tensor | int) -> th.Tensor:
        """:return: As :func:`~sb3_attention_ac.networks.preprocessing.stack_frames` gives them, [N, F * (1 + n_previous)]"""
        n = self.network.n_previous
        if n == 0:
            return features
        if isinstance(slot, int) and slot >= n + self.n_landmarks:
            slots, earlier = self._slots[slot - n : slot], cache.features[:, slot - n : slot]  # [n] and [N, n, F]
        else:
            slots = cache.position.unsqueeze(1) + th.arange(-n, 0, device=cache.position.device)  # [N, n], oldest first
            every_row = th.arange(slots.shape[0], device=slots.device)
            earlier = cache.features[every_row.unsqueeze(1), slots.clamp(min=0)]
        if not isinstance(slot, int) or cache.start.max() > slot - n:  # else all of them are of the same episode
            earlier = th.where((slots >= cache.start.unsqueeze(1)).unsqueeze(-1), earlier, 0.0)  # [N, n, F]
        return th.cat([features, earlier.transpose(1, 2).flatten(1)], dim=1)

    def step(
        self, cache: KVCache, features: th.Tensor, previous_steps: th.Tensor, episode_start: th.Tensor | None
    ) -> EncoderOutput:
        """
        Take in one step of every environment, in place.

        :param cache: The cache so far
        :param features: Features of s_t, [N, F]
        :param previous_steps: Previous action and reward and age, encoded, [N, previous_dim]
        :param episode_start: Whether s_t is the first step of its episode, [N]; None if none is
        :return: What the network makes of it, [N, ...]
        """
        rows, slot = self._next_slot(cache)
        if episode_start is not None:
            cache.start.copy_(th.where(episode_start, cache.position, cache.start))
            cache.landmark_ages.masked_fill_(episode_start.unsqueeze(1), -1.0)
        if self.surprise is not None:
            unexpected = self.surprise(cache.hidden, cache.features[rows, slot - 1], features, cache.previous_action)
            knows_nothing = cache.start == cache.position  # of a step before, as at the start of an episode
            cache.surprises[rows, slot] = unexpected.masked_fill(knows_nothing, th.inf)
        cache.features[rows, slot] = features
        cache.previous_steps[rows, slot] = previous_steps
        mlp_latent = self.mlp(self.network.with_age(self._stacked_frames(cache, features, slot), cache.age))
        tokens = self.encoder.embed(mlp_latent, previous_steps).unsqueeze(1)  # [N, 1, d_model]
        rotary = self._rotary[slot].unsqueeze(-4)  # [1, 3, n_heads, head_dim // 2], or [N, 1, 3, n_heads, head_dim // 2]
        used = slot + 1 if isinstance(slot, int) else self.n_slots
        mask = self._slots[:used] >= cache.start.view(-1, 1, 1, 1)  # [N, 1, 1, used]
        if not isinstance(slot, int):
            mask &= self._slots <= cache.position.view(-1, 1, 1, 1)
        if self.n_landmarks > 0:
            mask[..., : self.n_landmarks] = (cache.landmark_ages >= 0)[:, None, None]
        layers = [_NextSlot(cache, layer, rows, slot, used) for layer in range(len(self.encoder.blocks))]
        hidden = self.encoder.step(tokens, rotary, mask, layers).squeeze(1)
        if self.surprise is not None:
            cache.hidden.copy_(hidden)
        cache.position.add_(1)
        return self.network.combine(mlp_latent, hidden)
