# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from tiny import TINY
from torch import Tensor

from interactive_avatar.generator.autoencoder import (
    FLOW_SCALE,
    Autoencoder,
    Sight,
    as_input,
    as_pixels,
)

SIDE = TINY.autoencoder.picture_px


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY.autoencoder).eval()


def picture(seed: int) -> Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sight(last: Tensor, reference: Tensor) -> Sight:
    a = TINY.autoencoder
    empty = torch.zeros(1, a.latent_channels, a.latent_px, a.latent_px)
    return Sight(empty, last, empty, reference)


def set_shares(model: Autoencoder, carried: float, recent: float) -> None:
    bias = model.decoder.shares.bias
    assert bias is not None
    with torch.no_grad():
        bias[:len(bias) // 2] = carried
        bias[len(bias) // 2:] = recent


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(as_pixels(as_input(pixels)), pixels)


def test_without_flow_the_carried_frame_is_the_last_one_and_the_reference_bleeds_in(
        model: Autoencoder) -> None:
    last, reference = picture(1), picture(2)
    set_shares(model, 100.0, 100.0)
    latent = torch.randn(1, TINY.autoencoder.latent_channels, *[TINY.autoencoder.latent_px] * 2)
    with torch.no_grad():
        made = model.decode(latent, sight(last, reference))
    share = TINY.autoencoder.last_share
    for frame in made[0]:
        torch.testing.assert_close(frame[None], share * last + (1 - share) * reference,
                                   atol=1e-5, rtol=0)


def test_nothing_of_the_pictures_is_left_where_all_is_drawn(model: Autoencoder) -> None:
    set_shares(model, -100.0, 0.0)
    latent = torch.randn(1, TINY.autoencoder.latent_channels, *[TINY.autoencoder.latent_px] * 2)
    with torch.no_grad():
        made, drawn, *_ = model.decoder.blend(latent, sight(picture(1), picture(2)))
    torch.testing.assert_close(made, drawn)


def test_flow_is_in_half_pictures_and_points_at_where_a_pixel_comes_from(
        model: Autoencoder) -> None:
    shown = picture(3)
    pixels = 8
    flow = torch.zeros(1, 4, 2, SIDE, SIDE)
    flow[:, :, 0] = pixels * 2.0 / SIDE
    moved = model.decoder.moved(shown, flow)
    torch.testing.assert_close(moved[0, 2, :, :, :-pixels], shown[0, :, :, pixels:], atol=1e-5,
                               rtol=0)
    assert FLOW_SCALE * SIDE / 2 >= pixels


def test_a_clip_is_decoded_as_a_stream_would(model: Autoencoder) -> None:
    for layer in (model.decoder.wide_flow, model.decoder.shares, model.decoder.last_embedding):
        torch.nn.init.normal_(layer.weight, std=0.1)
    a = TINY.autoencoder
    latents = torch.randn(1, 3, a.latent_channels, a.latent_px, a.latent_px)
    reference = picture(4)
    with torch.no_grad():
        clip = model.decode_clip(latents, reference)
        still = model.encode(reference[:, None].expand(-1, a.frames, -1, -1, -1))
        first = model.decode(latents[:, 0], Sight(still, reference, still, reference)).clamp(-1, 1)
        second = model.decode(latents[:, 1], Sight(latents[:, 0], first[:, -1], still, reference))
    np.testing.assert_allclose(clip[:, 0], first, atol=1e-5)
    np.testing.assert_allclose(clip[:, 1], second.clamp(-1, 1), atol=1e-5)
    assert (clip[:, 1] - model.decode(latents[:, 1], Sight(
        still, reference, still, reference)).clamp(-1, 1)).abs().max() > 1e-3
