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
    smoothed,
    widened,
)
from interactive_avatar.generator.config import AutoencoderConfig

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


def wide(model: Autoencoder, upscale: int) -> Autoencoder:
    made = Autoencoder(TINY.autoencoder.upscaled(upscale)).eval()
    state = widened({f'a.{name}': value for name, value in model.state_dict().items()}, 'a.',
                    upscale)
    made.load_state_dict({name.removeprefix('a.'): value for name, value in state.items()})
    return made


def enlarged(picture: Tensor, upscale: int) -> Tensor:
    return picture.repeat_interleave(upscale, -1).repeat_interleave(upscale, -2)


@pytest.mark.parametrize('upscale', [2, 3])
@torch.no_grad()
def test_a_widened_decoder_draws_the_same_pictures_larger(model: Autoencoder, upscale: int
                                                           ) -> None:
    for layer in (model.decoder.wide_flow, model.decoder.shares, model.decoder.last_embedding):
        torch.nn.init.normal_(layer.weight, std=0.1)
    larger = wide(model, upscale)
    a = TINY.autoencoder
    latent, previous = torch.randn(2, 1, a.latent_channels, a.latent_px, a.latent_px)
    last, reference = picture(1), picture(2)
    small = Sight(previous, last, previous, reference)
    big = Sight(previous, enlarged(last, upscale), previous, enlarged(reference, upscale))
    # Before shares are averaged over a cell, which is wider where pictures are larger.
    for each in (model, larger):
        assert each.decoder.smoothing == each.decoder.shuffle
        each.decoder.smoothing = 1
    drawn, flow, shares = zip(larger.decoder.candidates(latent, big),
                              model.decoder.candidates(latent, small), strict=True)
    for ours, theirs in (drawn, shares):
        torch.testing.assert_close(ours, enlarged(theirs, upscale), atol=1e-5, rtol=1e-4)
    # Flows are smooth, whatever the size of the picture.
    theirs = torch.nn.functional.interpolate(
        flow[1].flatten(0, 2), scale_factor=float(upscale), mode='bilinear')
    torch.testing.assert_close(flow[0].flatten(0, 2), theirs, atol=0.02, rtol=0)


@torch.no_grad()
def test_no_pattern_that_repeats_from_cell_to_cell_is_left_in_shares() -> None:
    torch.manual_seed(0)
    cells = torch.randn(1, 2, 4, 4).repeat(1, 1, 8, 8)
    smooth = smoothed(cells + 0.3, 4)
    assert smooth.shape == cells.shape
    # But at the edge, where cells end.
    inner = smooth[..., 4:-4, 4:-4]
    torch.testing.assert_close(inner, (cells[..., :4, :4].mean((2, 3), keepdim=True) + 0.3
                                       ).expand_as(inner), atol=1e-5, rtol=0)
    # Each is the mean of those around it, by hand.
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1.0
    assert smoothed(step, 4)[0, 0, 4].tolist() == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@torch.no_grad()
def test_an_encoder_sees_the_mean_of_larger_pictures(model: Autoencoder) -> None:
    frames = torch.stack([picture(seed)[0] for seed in range(4)])[None]
    fine = enlarged(frames, 2)
    fine[..., ::2, :] += 0.1
    fine[..., 1::2, :] -= 0.1
    torch.testing.assert_close(wide(model, 2).encode(fine), model.encode(frames), atol=1e-4,
                               rtol=1e-4)


def test_sizes_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match='pixel_shuffle is 4: with an upscale of 2 it is 8'):
        AutoencoderConfig(picture_px=512, upscale=2)
    with pytest.raises(ValueError, match='picture_px is 100 and upscale 1'):
        AutoencoderConfig(picture_px=100)
    wide = AutoencoderConfig().upscaled(2)
    assert (wide.picture_px, wide.pixel_shuffle, wide.latent_px) == (512, 8, 16)
    assert wide.upscaled(1) == AutoencoderConfig()
