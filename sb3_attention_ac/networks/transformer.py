"""
The transformer over trajectories, in one page: pre-norm blocks (Xiong et al. 2020, https://arxiv.org/abs/2002.04745) over
``scaled_dot_product_attention`` with rotary position embedding (RoPE, Su et al. 2021, https://arxiv.org/abs/2104.09864), so
that only the distance between two steps matters.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_attention_ac.networks.constants import cached


class LayerCache(Protocol):
    """Where a block keeps keys and values between calls, see :mod:`~sb3_attention_ac.networks.kv_cache`"""

    def append(self, keys: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param keys: Of the new tokens, [N, n_heads, T, head_dim]
        :param values: Likewise
        :return: Keys and values of the earlier tokens and these, [N, n_heads, S, head_dim] each
        """
        ...


@cached
def rotary_frequencies(n_positions: int, n_heads: int, head_dim: int, base: float, device: th.device) -> th.Tensor:
    """
    RoPE turns pairs of neighbouring coordinates of queries and keys by an angle proportional to their position. A pair is
    taken as a complex number, so that turning all of them is one multiplication; values are multiplied by one.

    :param n_positions: T
    :param n_heads: Number of attention heads
    :param head_dim: Width of one head
    :param base: The slowest pair turns once in about ``2 * pi * base`` steps. A base far beyond the steps that are attended to
        leaves most pairs all but still, with little left to tell one step from the next
    :param device: Device of the result
    :return: Complex numbers of length one, [T, 3, n_heads, head_dim // 2]
    """
    pairs = head_dim // 2
    frequencies = base ** (-th.arange(pairs, device=device).float() / max(pairs, 1))
    turned = th.tensor([1, 1, 0], device=device)  # queries, keys, values
    angles = th.arange(n_positions, device=device)[:, None, None, None] * turned[:, None, None] * frequencies
    return th.polar(th.ones_like(angles), angles).repeat(1, 1, n_heads, 1)  # as a whole: a broadcast multiplies slowly


def apply_rotary(x: th.Tensor, rotary: th.Tensor) -> th.Tensor:
    """
    :param x: Queries, keys and values, [N, T, 3, n_heads, head_dim]; an odd last coordinate is left alone
    :param rotary: See :func:`rotary_frequencies`, [T, 3, n_heads, head_dim // 2], or for each row [N, T, ...]; or
        :func:`as_real` of it
    :return: Same shape
    """
    if not rotary.is_complex():
        return _apply_real_rotary(x, rotary)
    x, width = x.float() if x.element_size() < 4 else x, 2 * rotary.shape[-1]  # bfloat16 has no complex numbers
    if width < x.shape[-1]:
        return th.cat([apply_rotary(x[..., :width], rotary), x[..., width:]], dim=-1)
    return th.view_as_real(th.view_as_complex(x.contiguous().unflatten(-1, (-1, 2))) * rotary).flatten(-2)


def as_real(rotary: th.Tensor) -> th.Tensor:
    """
    :param rotary: See :func:`rotary_frequencies`, [..., head_dim // 2]
    :return: Real and imaginary parts side by side, for where there are no complex numbers (ONNX), [..., head_dim // 2 * 2]
    """
    return th.view_as_real(rotary).flatten(-2)


def _apply_real_rotary(x: th.Tensor, rotary: th.Tensor) -> th.Tensor:
    cos, sin = rotary.unflatten(-1, (-1, 2)).unbind(-1)
    even, odd = x[..., : rotary.shape[-1]].unflatten(-1, (-1, 2)).unbind(-1)
    turned = th.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return th.cat([turned, x[..., rotary.shape[-1] :]], dim=-1)


@cached
def _not_later(n_queries: int, width: int, device: th.device) -> th.Tensor:
    """:return: [n_queries, width], True where the key's step is not later than the query's (the last ``n_queries`` steps)"""
    return th.ones((n_queries, width), dtype=th.bool, device=device).tril(width - n_queries)


@cached
def _itself(n_queries: int, width: int, device: th.device) -> th.Tensor:
    """:return: [n_queries, width], True where key and query (the last ``n_queries`` steps) are the same step"""
    return th.eye(width, dtype=th.bool, device=device)[-n_queries:]


def attention_mask(
    episode_ids: th.Tensor, n_queries: int, causal: bool = True, noise_ids: th.Tensor | None = None
) -> th.Tensor:
    """
    Which steps the last ``n_queries`` steps of each window may attend to: those of the same episode and, if causal, not later
    ones. A step always sees itself, so that no row of the mask is empty.

    :param episode_ids: [N, W]
    :param n_queries: How many of the last steps are queries
    :param causal: False to see the whole episode (never for values: the future depends on the action being judged)
    :param noise_ids: With gSDE, [N, W]: a step then sees, beside itself, only steps before its noise was sampled
    :return: True where attention is allowed, [N, 1, n_queries, W]
    """
    width = episode_ids.shape[1]
    mask = episode_ids[:, -n_queries:, None] == episode_ids[:, None, :]  # [N, n_queries, W]
    if causal:
        mask = mask & _not_later(n_queries, width, episode_ids.device)
    if noise_ids is not None:
        older = noise_ids[:, None, :] < noise_ids[:, -n_queries:, None]
        mask = mask & (older | _itself(n_queries, width, episode_ids.device))
    return mask.unsqueeze(1)


def additive(mask: th.Tensor) -> th.Tensor:
    """
    :param mask: True where attention is allowed
    :return: What to add to attention scores: 0 or -inf. On a CPU ``scaled_dot_product_attention`` takes half the time with it
    """
    return th.where(mask, 0.0, -math.inf)


class Block(nn.Module):
    """
    One pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    :param d_model: Width of a token
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the hidden layer of the feed-forward part
    :param dropout: Dropout probability after attention and feed-forward
    """

    def __init__(self, d_model: int, n_heads: int, dim_feedforward: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.fc1 = nn.Linear(d_model, dim_feedforward)
        self.fc2 = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def queries_keys_values(self, x: th.Tensor, rotary: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param x: [N, T, d_model]
        :param rotary: Of the T positions, see :func:`rotary_frequencies`
        :return: [N, n_heads, T, head_dim] each
        """
        qkv = self.qkv_proj(self.norm1(x)).reshape(*x.shape[:2], 3, self.n_heads, -1)  # [N, T, 3, n_heads, head_dim]
        queries, keys, values = apply_rotary(qkv, rotary).transpose(1, 3).unbind(2)
        return queries, keys, values

    def forward(
        self, x: th.Tensor, rotary: th.Tensor, mask: th.Tensor, n_queries: int | None = None, cache: LayerCache | None = None
    ) -> th.Tensor:
        """
        :param x: [N, T, d_model]
        :param rotary: Of the T positions, see :func:`rotary_frequencies`
        :param mask: True where attention is allowed, or :func:`additive`, [N, 1, n_queries, S]; S = T without a cache
        :param n_queries: How many of the last tokens are queries, None for all
        :param cache: Holds keys and values of earlier tokens, and takes in those of these
        :return: The tokens that are queries, [N, n_queries, d_model]
        """
        queries, keys, values = self.queries_keys_values(x, rotary)
        if cache is not None:
            keys, values = cache.append(keys, values)
        if n_queries is not None:
            x, queries = x[:, -n_queries:], queries[:, :, -n_queries:]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = x + self.dropout(
            self.out_proj(attended.transpose(1, 2).flatten(2))
        )  # [N, n_heads, n, head_dim] -> [N, n, d_model]
        out: th.Tensor = x + self.dropout(self.fc2(F.relu(self.fc1(self.norm2(x)))))
        return out


class TrajectoryEncoder(nn.Module):
    """
    A transformer encoder over the steps of a trajectory.

    :param latent_dim: Width of the latent of one step, as it comes out of an MLP
    :param previous_dim: Width of encoded previous actions, rewards and ages, may be 0
    :param d_model: Width of a token
    :param n_layers: Number of blocks, at least 1
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the hidden layer of the feed-forward part
    :param dropout: Dropout probability
    :param rope_base: Base of the rotary frequencies, about how many steps back it attends
    """

    def __init__(
        self,
        latent_dim: int,
        previous_dim: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        dim_feedforward: int,
        dropout: float,
        rope_base: float,
    ):
        super().__init__()
        self.d_model, self.n_heads, self.rope_base = d_model, n_heads, rope_base
        self.input_proj = nn.Linear(latent_dim, d_model)
        self.previous_proj = nn.Linear(previous_dim, d_model, bias=False) if previous_dim > 0 else None
        self.blocks = nn.ModuleList(Block(d_model, n_heads, dim_feedforward, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def rotary(self, n_positions: int, device: th.device) -> th.Tensor:
        """:return: See :func:`rotary_frequencies`"""
        return rotary_frequencies(n_positions, self.n_heads, self.d_model // self.n_heads, self.rope_base, device)

    def embed(self, latent: th.Tensor, previous_steps: th.Tensor) -> th.Tensor:
        """
        :param latent: [N, T, latent_dim]
        :param previous_steps: [N, T, previous_dim]
        :return: Tokens, [N, T, d_model]. Finite (NaN, infinity become 0), and so are gradients: a masked step has a weight of
            zero, and zero times NaN is NaN. Where a step is not finite itself, its own MLP says so
        """
        tokens: th.Tensor = self.input_proj(latent.nan_to_num(0.0, 0.0, 0.0))
        return tokens if self.previous_proj is None else tokens + self.previous_proj(previous_steps.nan_to_num(0.0, 0.0, 0.0))

    def forward(
        self,
        x: th.Tensor,
        episode_ids: th.Tensor,
        n_queries: int,
        causal: bool = True,
        noise_ids: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        One pass over whole windows.

        :param x: Tokens, [N, W, d_model]
        :param episode_ids: [N, W]
        :param n_queries: How many of the last steps to return; the steps before them are context
        :param causal: False to attend to the whole episode (for the masked prediction only)
        :param noise_ids: See :func:`attention_mask`
        :return: Hidden states of the last steps, [N, n_queries, d_model]
        """
        width, last = x.shape[1], len(self.blocks) - 1
        rotary = self.rotary(width, x.device)
        mask = additive(attention_mask(episode_ids, n_queries if last == 0 else width, causal, noise_ids))
        for i, block in enumerate(self.blocks):
            if i == last:  # context steps are only read by the last block: their own pass through it is not needed
                x = block(x, rotary, mask[:, :, -n_queries:], n_queries)
            else:
                x = block(x, rotary, mask)
        hidden: th.Tensor = self.norm(x)
        return hidden

    def step(self, x: th.Tensor, rotary: th.Tensor, mask: th.Tensor, caches: Sequence[LayerCache]) -> th.Tensor:
        """
        One pass over new tokens, whose predecessors are in caches.

        :param x: Tokens, [N, T, d_model]
        :param rotary: Of their positions, see :func:`rotary_frequencies`
        :param mask: True where attention is allowed, [N, 1, T, S]
        :param caches: One for each block
        :return: Hidden states, [N, T, d_model]
        """
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, rotary, mask, cache=cache)
        hidden: th.Tensor = self.norm(x)
        return hidden
