# SPDX-License-Identifier: Apache-2.0
"""A judge of patches for the decoder: does this look drawn by the renderer, of this person?

Errors of pixels prefer blur to what is sharp and lies a little off. A judge that has seen true
pictures does not (PatchGAN, arXiv 1611.07004; hinge loss, arXiv 1705.02894; spectral norm,
arXiv 1802.05957). It sees the reference picture beside the frame, so a beard that is missing is as
wrong as a blurred one.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

CROP_SHARE = 0.5
"""Side of the patch that is judged, of the picture's."""


class PatchJudge(nn.Module):
    """Frames beside their references, [n, 6, H, W], to logits of patches [n, 1, H / 8, W / 8];
    each logit sees 46 pixels."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)),
                       nn.LeakyReLU(0.2)]
        layers.append(spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.layers(frames)
        return logits


def crops(frames: Tensor, picture: Tensor, random: torch.Generator) -> Tensor:
    """One patch of every frame with the reference's beside it.

    Args:
        frames: [B, n, 3, H, W]. picture: [B, 3, H, W].
        random: says where; frames of one call have one place, in the middle half of the room.

    Returns:
        [B · n, 6, CROP_SHARE · H, CROP_SHARE · W].
    """
    side = frames.shape[-1]
    crop = int(CROP_SHARE * side)
    room = side - crop
    at = (room // 4 + torch.randint(room // 2 + 1, (2,), generator=random,
                                    device=random.device)).tolist()
    beside = picture[:, None].expand_as(frames)
    both = torch.cat([frames, beside], 2).flatten(0, 1)
    return both[..., at[0]:at[0] + crop, at[1]:at[1] + crop]


def judge_loss(judge: PatchJudge, made: Tensor, true: Tensor) -> Tensor:
    """Hinge loss of the judge on patches [n, 6, h, w]."""
    return F.relu(1.0 - judge(true)).mean() + F.relu(1.0 + judge(made)).mean()


def convincing_loss(judge: PatchJudge, made: Tensor) -> Tensor:
    """What the decoder is to make small: minus the judge's mean logit of what it made."""
    return -judge(made).mean()
