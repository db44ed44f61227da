"""
MiniGrid's view for SB3: a wrapper and the network that reads it. In RL Zoo's format, for any algorithm::

    MiniGrid-MemoryS7-v0:
      env_wrapper: sb3_attention_ac.envs.minigrid.MiniGridView
      policy: MlpPolicy
      policy_kwargs: "dict(features_extractor_class=importlib.import_module('sb3_attention_ac.envs.minigrid').MiniGridOneHot)"
      normalize: "dict(norm_obs=False, norm_reward=True)"  # or no such line: the view itself must not be normalized

For PPO with eight frames add ``frame_stack: 8``, and to ``policy_kwargs`` ``features_extractor_kwargs=dict(n_frames=8)``.
"""

import warnings
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F

# Those of minigrid.core.constants; a state is a door's, or the direction in which an agent looks
N_OBJECTS, N_COLOURS, N_STATES, N_DIRECTIONS = 11, 6, 4, 4
_VALUES = np.array([N_OBJECTS, N_COLOURS, N_STATES])
_N_CHANNELS = N_OBJECTS + N_COLOURS + N_STATES


class MiniGridView(gym.ObservationWrapper[np.ndarray, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Shows what a MiniGrid agent sees, object, colour and state of each cell, as a vector of small integers, so that nobody
    takes it for a picture: SB3 would divide ``ImgObsWrapper``'s by 255 and put its channels first. Read it with
    :class:`MiniGridOneHot`. The mission's text is left out; actions and rewards stay as they are.

    At the end of an episode ``info["is_success"]`` tells if it was terminated with a reward above 0, which is what success
    is in MiniGrid's tasks.

    :param env: An environment of MiniGrid with its own Dict observation, or with ``FullyObsWrapper``'s
    :param direction: Append the direction in which the agent looks (0 to 3). Most published results do without
    :raises ValueError: If the observation has no such image
    """

    def __init__(self, env: gym.Env[Any, Any], direction: bool = False):
        gym.utils.RecordConstructorArgs.__init__(self, direction=direction)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        image = space.spaces.get("image") if isinstance(space, spaces.Dict) else None
        if image is None or image.shape is None or len(image.shape) != 3 or image.shape[2] != 3:
            raise ValueError(
                f"MiniGridView needs MiniGrid's Dict observation with an 'image' of [width, height, 3], not {space}: "
                "apply it to the environment itself, before wrappers that change its observation."
            )
        self.direction = direction
        high = np.tile(_VALUES - 1, image.shape[0] * image.shape[1])
        high = np.append(high, N_DIRECTIONS - 1) if direction else high
        self.observation_space = spaces.Box(np.zeros_like(high, dtype=np.uint8), high.astype(np.uint8), dtype=np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """
        :param observation: MiniGrid's
        :return: The view, uint8 [width * height * 3, one more with ``direction``]
        """
        view: np.ndarray = observation["image"].reshape(-1)
        return np.append(view, np.uint8(observation["direction"])) if self.direction else view

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: One of MiniGrid's seven actions
        :return: The view, and what else the environment returned
        """
        view, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            info = {**info, "is_success": bool(terminated and float(reward) > 0)}
        return view, reward, terminated, truncated, info


class MiniGridOneHot(BaseFeaturesExtractor):
    """
    A small convolutional network for :class:`MiniGridView`: object, colour and state of each cell one-hot as 21 channels, two
    layers of 3 x 3 filters (the second with stride 2), one linear layer; ReLU after each.

    :param observation_space: That of :class:`MiniGridView`, at least 3 x 3 cells, square
    :param features_dim: Number of features
    :param n_filters: Number of filters of the two layers
    :param n_frames: Number of views in an observation, of ``VecFrameStack`` (``frame_stack`` in RL Zoo)
    :raises ValueError: If the observation is not that of ``n_frames`` square views
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int = 128,
        n_filters: tuple[int, int] = (16, 32),
        n_frames: int = 1,
    ):
        super().__init__(observation_space, features_dim)
        size = observation_space.shape[0] if observation_space.shape is not None and len(observation_space.shape) == 1 else 0
        view, self.direction = divmod(size // n_frames, 3)
        self.width = int(np.sqrt(view))
        if size % n_frames or self.direction > 1 or self.width**2 != view or self.width < 3:
            raise ValueError(
                f"MiniGridOneHot reads MiniGridView's observation, n_frames={n_frames} square views, not {observation_space}: "
                "wrap the environment in MiniGridView (env_wrapper in RL Zoo), and set n_frames to the frames stacked."
            )
        if n_frames == 1 and self.width > 7 and self.width % 7 == 0:  # as wide as 4, 9, ... of the usual views
            warnings.warn(
                f"MiniGridOneHot takes {observation_space} for one view of {self.width} x {self.width} cells. If frames are "
                f"stacked, pass features_extractor_kwargs=dict(n_frames={(self.width // 7) ** 2}).",
                stacklevel=2,
            )
        self.n_frames = n_frames
        self.offsets: th.Tensor
        self.register_buffer("offsets", th.tensor([0, N_OBJECTS, N_OBJECTS + N_COLOURS]), persistent=False)
        self.conv = nn.Sequential(
            nn.Conv2d(_N_CHANNELS, n_filters[0], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n_filters[0], n_filters[1], 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )
        n_conv = n_filters[1] * ((self.width - 3) // 2 + 1) ** 2
        self.linear = nn.Sequential(nn.Linear(n_frames * (n_conv + N_DIRECTIONS * self.direction), features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Views, values as floats or integers, [batch, size]
        :return: Features, [batch, features_dim]
        """
        # shape[0] and not len(): ONNX takes what len() returns for a constant
        frames = observations.reshape(observations.shape[0] * self.n_frames, -1).long()
        cells = frames[:, : 3 * self.width**2].reshape(-1, 3) + self.offsets
        try:
            one_hot = th.zeros(cells.shape[0], _N_CHANNELS, device=cells.device).scatter_(1, cells, 1.0)
        except RuntimeError as error:
            raise ValueError(
                f"MiniGridOneHot reads MiniGridView's small integers, but there is {float(observations.min()):.3g} to "
                f"{float(observations.max()):.3g}. If it is wrapped in VecNormalize: VecNormalize(norm_obs=False)."
            ) from error
        parts = [self.conv(one_hot.reshape(-1, self.width, self.width, _N_CHANNELS).permute(0, 3, 1, 2))]
        if self.direction:
            parts.append(F.one_hot(frames[:, -1], N_DIRECTIONS).float())
        features: th.Tensor = self.linear(th.cat(parts, dim=1).reshape(observations.shape[0], -1))
        return features
