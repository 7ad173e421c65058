# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's losses by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy import ALONE, TINY, shard

from interactive_avatar.generator.autoencoder import as_input
from interactive_avatar.generator.networks import Generator
from interactive_avatar.training import pipeline
from interactive_avatar.training.autoencoder import (
    FACE_POINTS,
    STRENGTH_PX,
    WIDE_STRENGTH_PX,
    AutoencoderOptions,
    Streams,
    change_strength,
    face_weight,
    flow_loss,
    hole_loss,
    picture_loss,
    texture,
    train_autoencoder,
)

SIDE = 32
LATENT = (TINY.autoencoder.latent_channels, TINY.autoencoder.latent_px, TINY.autoencoder.latent_px)


def moving(chunks: int = 2, speed_px: float = 1.5) -> tuple[torch.Tensor, ...]:
    """Marks that go to the right, and flows that lead back: of the frame before each chunk, and
    of a reference picture four pixels further down."""
    count = 4 * chunks
    start = torch.tensor([[8.0, 10.0], [6.0, 5.0], [12.0, 5.0]])
    right = torch.tensor([speed_px, 0.0])
    marks = torch.stack([start + (n + 1) * right for n in range(count)])[None]
    picture = (start + torch.tensor([0.0, 4.0]))[None]
    flows = torch.zeros(1, count, 2, 2, SIDE, SIDE)
    for n in range(count):
        flows[0, n, 0, 0] = -(n % 4 + 1) * speed_px * 2.0 / SIDE
        flows[0, n, 1, 0] = -(n + 1) * speed_px * 2.0 / SIDE
        flows[0, n, 1, 1] = 4.0 * 2.0 / SIDE
    return flows, marks, start[None], picture


def test_flows_that_lead_to_where_marks_were_cost_nothing() -> None:
    assert flow_loss(*moving()) == pytest.approx(0.0, abs=1e-6)


def test_a_flow_astray_costs_its_distance() -> None:
    flows, marks, last, picture = moving()
    flows[:, :, 0, 1] += 0.3
    # One of two flows, one of two axes.
    assert flow_loss(flows, marks, last, picture) == pytest.approx(0.3 / 4, abs=1e-6)


def test_points_beside_the_marks_follow_a_face_that_grows_and_tilts() -> None:
    """A flow that is right at the marks and wrong beside them costs; one that is right all over
    the face does not."""
    turn = torch.tensor([[1.3, -0.4], [0.4, 1.3]])
    middle = torch.tensor([16.0, 16.0])
    start = middle + torch.tensor([[0.0, 3.0], [-3.0, -2.0], [3.0, -2.0]])
    marks = ((start - middle) @ turn.T + middle).expand(1, 4, 3, 2)
    axis = torch.arange(SIDE) + 0.5
    at = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1)
    back = (at - middle) @ torch.linalg.inv(turn).T + middle - at
    flows = (back * 2.0 / SIDE).permute(2, 0, 1).expand(1, 4, 2, 2, SIDE, SIDE)
    assert flow_loss(flows, marks, start[None], start[None]) == pytest.approx(0.0, abs=1e-5)
    still = torch.zeros(1, 4, 2, 2, SIDE, SIDE)
    assert flow_loss(still, marks, start[None], start[None]) > 0.05
    assert all(sum(point) == pytest.approx(1.0) for point in FACE_POINTS)


def test_marks_out_of_view_say_nothing() -> None:
    flows, marks, last, picture = moving()
    flows += 1.0
    assert flow_loss(flows, marks + 2 * SIDE, last, picture) == 0.0


def test_the_loss_draws_flows_home() -> None:
    _, marks, last, picture = moving()
    flows = torch.zeros(1, 8, 2, 2, SIDE, SIDE, requires_grad=True)
    flow_loss(flows, marks, last, picture).backward()
    assert flows.grad is not None
    # Back is to the left: less flow along x.
    assert (flows.grad[0, :, 0, 0].sum((-1, -2)) > 0).all()


def test_options_say_what_is_trained() -> None:
    assert AutoencoderOptions().trained == ('autoencoder.', 'audio.')
    assert AutoencoderOptions(decoder_only=True).trained == ('autoencoder.decoder.',)
    assert AutoencoderOptions(anchor_weight=0.2).trained == ('autoencoder.',)
    with pytest.raises(ValueError, match='leave out one'):
        AutoencoderOptions(decoder_only=True, anchor_weight=0.2)


def test_strength_is_the_mean_change_of_a_square_and_blind_to_its_way() -> None:
    before = torch.zeros(1, 3, 16, 16)
    frames = torch.zeros(1, 2, 3, 16, 16)
    frames[0, 0, :, 0, :STRENGTH_PX] = 0.5  # one row of the first square, gone in the next frame
    strength = change_strength(frames, before)
    assert strength.shape == (1, 2, 1, 16 // STRENGTH_PX, 16 // STRENGTH_PX)
    assert strength[0, :, 0, 0, 0].tolist() == pytest.approx([0.5 / STRENGTH_PX] * 2)
    assert strength[0, :, 0].sum() == pytest.approx(strength[0, :, 0, 0, 0].sum())
    elsewhere = torch.roll(frames, 3, dims=-2)
    assert torch.equal(change_strength(elsewhere, before), strength)


def test_a_picture_that_moves_too_little_costs_strength_and_a_new_stream_does_not() -> None:
    torch.manual_seed(0)
    before, true = torch.rand(2, 3, 16, 16), torch.rand(2, 4, 3, 16, 16)
    frozen = true[:, :1].expand_as(true)
    weight = torch.ones(2, 4, 1, 16, 16)

    def extra(made: torch.Tensor, going_on: bool) -> float:
        without, with_it = (
            picture_loss(made, true, weight, torch.zeros_like(before), before,
                         torch.full((2,), going_on), AutoencoderOptions(strength_weight=value))[0]
            for value in (0.0, 1.0))
        return float(with_it - without)

    assert extra(true, False) == pytest.approx(0.0, abs=1e-6)
    assert extra(true, True) > 0.01  # it shows a black frame before, and jumps
    lacking = change_strength(true, before)[:, 1:].mean() * 3 / 4
    assert extra(frozen, False) == pytest.approx(float(lacking), rel=1e-4)


def test_tints_that_take_turns_are_no_change_and_cost_chroma_and_flicker() -> None:
    torch.manual_seed(0)
    before, true = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 3, 16, 16)
    weight = torch.ones(1, 4, 1, 16, 16)
    tinted = true.clone()
    tinted[:, ::2] = torch.tensor([0.114, 0.0, -0.299])[:, None, None]  # bluish, of the same luma
    assert change_strength(tinted, before).abs().max() < 1e-6

    def extra(made: torch.Tensor, **asked: float) -> float:
        plain, more = (picture_loss(made, true, weight, before, before,
                                    torch.ones(1, dtype=torch.bool), each)[0]
                       for each in (AutoencoderOptions(), AutoencoderOptions(**asked)))
        return float(more - plain)

    assert extra(tinted, chroma_weight=1.0) == pytest.approx((0.114 + 0.299) / 3 / 2, rel=1e-3)
    assert extra(tinted, flicker_weight=1.0) == pytest.approx((0.114 + 0.299) / 3 * 2, rel=1e-3)
    grey = (true + 0.1).clone()
    assert extra(grey, chroma_weight=1.0) == pytest.approx(0.0, abs=1e-6)
    ramp = true + torch.arange(1.0, 5.0)[:, None, None, None] * 0.1  # moves on, evenly
    assert extra(ramp, flicker_weight=1.0) == pytest.approx(0.0, abs=1e-6)


def test_a_jump_between_chunks_costs_more_than_one_within() -> None:
    before, true = torch.zeros(1, 3, 16, 16), torch.zeros(1, 8, 3, 16, 16)
    weight = torch.ones(1, 8, 1, 16, 16)

    def cost(frame: int, border_weight: float) -> float:
        made = true.clone()
        made[:, frame:] = 0.5  # it jumps there, and stays
        plain, asked = (
            picture_loss(made, true, weight, before, before, torch.ones(1, dtype=torch.bool),
                         AutoencoderOptions(strength_weight=value, border_weight=border_weight))[0]
            for value in (0.0, 1.0))
        return float(asked - plain)

    assert cost(4, 0.0) == pytest.approx(cost(5, 0.0)) == pytest.approx(cost(5, 2.0))
    for border in (0, 4):
        assert cost(border, 2.0) == pytest.approx(3.0 * cost(5, 2.0))


def test_change_that_is_elsewhere_costs_small_squares_and_not_the_wide_one() -> None:
    side = WIDE_STRENGTH_PX
    before, true = torch.zeros(1, 3, side, side), torch.zeros(1, 1, 3, side, side)
    true[..., :STRENGTH_PX, :STRENGTH_PX] = 0.5
    elsewhere = torch.roll(true, 2 * STRENGTH_PX, dims=-1)
    weight = torch.ones(1, 1, 1, side, side)

    def cost(made: torch.Tensor, **weights: float) -> float:
        options = AutoencoderOptions(gradient_weight=0.0, temporal_weight=0.0, **weights)
        plain = replace(options, strength_weight=0.0, wide_strength_weight=0.0)
        going_on = torch.ones(1, dtype=torch.bool)
        full, rest = (picture_loss(made, true, weight, before, before, going_on, each)[0]
                      for each in (options, plain))
        return float(full - rest)

    assert cost(elsewhere, strength_weight=1.0) > 1e-3
    assert cost(elsewhere, wide_strength_weight=1.0) == pytest.approx(0.0, abs=1e-7)
    still = torch.zeros_like(true)
    assert cost(still, wide_strength_weight=1.0) == pytest.approx(0.5 / 64, rel=1e-4)


def test_brows_weigh_above_the_eyes_whichever_way_the_head_is_tilted() -> None:
    options = AutoencoderOptions(mouth_weight=0.0, eye_weight=0.0, brow_weight=2.0,
                                 eye_sigma_px=3.0)
    upright = torch.tensor([[32.0, 50.0], [22.0, 25.0], [42.0, 25.0]])
    for marks in (upright, upright.flip(-1)):
        weight = face_weight(marks[None, None], 64, options)[0, 0, 0]
        up = 0.32 * (marks[1:].mean(0) - marks[0])
        x, y = (marks[1] + up).long().tolist()
        assert weight[y, x] > 2.5
        x, y = marks[0].long().tolist()
        assert weight[y, x] == pytest.approx(1.0, abs=1e-3)


def test_a_sharp_picture_half_a_pixel_off_costs_less_texture_than_a_blurred_one() -> None:
    torch.manual_seed(0)
    wide = torch.rand(1, 3, 34, 34)
    true, shifted = wide[..., 1:33, 1:33], wide[..., 1:33, 2:34]
    blurred = torch.nn.functional.avg_pool2d(wide, 3, stride=1)
    detail = texture(true)
    assert detail.shape == (1, 12, 32 // STRENGTH_PX, 32 // STRENGTH_PX)
    # By hand: the red channel's mean change across, in the first square.
    across = (true[0, 0, :8, 1:9] - true[0, 0, :8, :8]).abs().mean()
    torch.testing.assert_close(detail[0, 0, 0, 0], across)
    off, soft = ((texture(made) - detail).abs().mean() for made in (shifted, blurred))
    assert off < 0.3 * soft

    def extra(made: torch.Tensor) -> float:
        frames = made[:, None]
        without, with_it = (
            picture_loss(frames, true[:, None], torch.ones(1, 1, 1, 32, 32), true, true,
                         torch.ones(1, dtype=torch.bool), AutoencoderOptions(texture_weight=w))[0]
            for w in (0.0, 2.0))
        return float(with_it - without)

    assert extra(true) == pytest.approx(0.0, abs=1e-6)
    assert extra(blurred) == pytest.approx(2.0 * float(soft), rel=1e-4)


def test_the_frame_before_is_the_one_that_was_shown() -> None:
    """Also after a jump and beside a still; a picture's grey value is its number."""
    data = shard(clips=3, chunks=12)
    side, length = 32, data.length
    numbers = torch.arange(3 * length, dtype=torch.uint8).view(3, length, 1, 1, 1)
    data.frames = numbers.expand(3, length, side, side, 3).contiguous()
    data.stills = torch.full((3, 2, side, side, 3), 250, dtype=torch.uint8)
    data.still_marks = torch.zeros(3, 2, 3, 2)
    options = AutoencoderOptions(batch=8, chunks=2, still_share=0.5, jump_share=0.5,
                                 restart_share=0.1)
    streams = Streams(data, options, replace(TINY.autoencoder, picture_px=side))
    shown, went_on = None, 0
    for _ in range(20):
        step = streams.next()
        assert step.frames.shape == (8, 9, 3, side, side) and step.seen.all()
        if shown is not None:
            same = (step.frames[:, 0] == shown).all((1, 2, 3))
            assert same[~streams.fresh].all()
            went_on += int((~streams.fresh).sum())
        shown = step.frames[:, -1]
    assert went_on > 20


def test_streams_begin_in_empty_pictures_and_stay_there() -> None:
    data = shard(clips=3, chunks=12)
    side = 32
    numbers = torch.arange(3 * data.length, dtype=torch.uint8).view(3, data.length, 1, 1, 1)
    data.frames = numbers.expand(3, data.length, side, side, 3).contiguous()
    data.stills = torch.full((3, 2, side, side, 3), 250, dtype=torch.uint8)
    data.still_marks = torch.zeros(3, 2, 3, 2)
    # Out of view from chunk 2 to 10: nothing is left from chunk 4 to 8.
    data.in_view[1, 8:44] = False
    assert data.latents is not None
    data.predicted = data.latents.clone()
    options = AutoencoderOptions(batch=16, chunks=2, still_share=0.0, jump_share=0.0,
                                 restart_share=0.0, empty_share=1.0, dwell_share=1.0,
                                 predicted_share=1.0)
    streams = Streams(data, options, replace(TINY.autoencoder, picture_px=side))
    begun = None
    for _ in range(3):
        step = streams.next()
        shown = torch.round((step.frames[:, 1:, 0, 0, 0] + 1.0) * 127.5) - data.length
        # Who begins where it ends goes on and comes to somebody.
        inside = step.empty.all(1)
        if begun is None:
            assert step.empty[:, 0].all() and inside.any() and not inside.all()
        else:
            stays = inside & ~streams.fresh
            assert stays.any() and (shown == begun)[stays].all()
            assert step.uses_predicted[stays].all()
        assert (shown[inside] >= 16).all() and (shown[inside] < 32).all()
        begun = shown
    alone = Streams(data, replace(options, empty_share=0.0, dwell_share=0.0),
                    replace(TINY.autoencoder, picture_px=side)).next()
    assert not alone.empty.all()


def test_larger_pictures_weigh_the_same_around_the_same_face() -> None:
    options = AutoencoderOptions()
    marks = torch.tensor([[[[60.0, 80.0], [45.0, 50.0], [76.0, 51.0]]]])
    small = face_weight(marks, 128, options)
    large = face_weight(2 * marks, 256, options, upscale=2)
    pooled = torch.nn.functional.avg_pool2d(large[:, 0], 2)
    torch.testing.assert_close(pooled, small[:, 0], atol=0.03, rtol=0.03)


def test_texture_of_larger_pictures_is_looked_for_one_scale_finer() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    enlarged = picture.repeat_interleave(2, 2).repeat_interleave(2, 3)
    small, large = texture(picture), texture(enlarged, upscale=2)
    assert large.shape == (1, 18, 8, 8) and small.shape == (1, 12, 8, 8)
    # Neighbours two pixels apart in the large one are neighbours in the small one.
    torch.testing.assert_close(large[:, 6:12], small[:, :6])
    assert large[:, :6].mean() < 0.6 * small[:, :6].mean()


def test_stages_on_latents_refuse_a_decoder_of_larger_pictures(tmp_path: Path) -> None:
    wide = replace(TINY, autoencoder=TINY.autoencoder.upscaled(2))
    Generator(wide).save(tmp_path / 'generator.safetensors', quantise=False)
    with pytest.raises(ValueError, match='decoder for pictures of 256 pixels'):
        pipeline.main(['distil', '--weights', str(tmp_path), '--state', str(tmp_path / 'state'),
                       '--out', str(tmp_path / 'out')])


def test_nothing_is_to_be_carried_over_a_hole_that_somebody_has_left() -> None:
    picture = torch.full((1, 3, SIDE, SIDE), 0.5)
    true = picture[:, None].repeat(1, 2, 1, 1, 1)
    true[..., :SIDE // 2] = -0.5
    carried = torch.zeros(1, 2, 1, SIDE, SIDE)
    carried[:, 0, ..., :SIDE // 2] = 0.8
    carried[..., SIDE // 2:] = 1.0
    frames = torch.tensor([[True, True]])
    assert hole_loss(carried, true, picture, frames) == pytest.approx(0.4)
    assert hole_loss(carried, true, picture, ~frames) == 0.0
    assert hole_loss(carried, picture[:, None].expand_as(true), picture, frames) == 0.0
    # A hundredth is the noise of a picture, not a person.
    assert hole_loss(carried, true, true[:, 0] + 0.01, frames) == 0.0


def test_held_people_stay_as_they_were_and_empty_pictures_are_learnt(tmp_path: Path) -> None:
    """Where somebody is always in view there is nothing to learn; where nobody is, there is."""
    torch.manual_seed(0)
    data = shard(clips=3, chunks=12)
    side = TINY.autoencoder.picture_px
    data.frames = torch.randint(0, 255, (3, data.length, side, side, 3), dtype=torch.uint8)
    data.stills = data.frames[:, :2].clone()
    assert data.marks is not None
    data.still_marks = data.marks[:, :2].clone()
    options = AutoencoderOptions(batch=2, decoder_only=True, holds_people=True, empty_weight=5.0,
                                 hole_weight=0.2, last_tint=0.1, candidates_weight=0.0,
                                 flow_weight=0.0, predicted_share=0.0)
    moved = []
    for seen in (True, False):
        data.in_view.fill_(seen)
        model = Generator(TINY).autoencoder
        latents, picture = torch.randn(1, 3, *LATENT), as_input(data.stills[:1, 0])
        before = model.decode_clip(latents, picture).detach()
        train_autoencoder(model, data, ALONE, 2.0, tmp_path / str(seen), options)
        moved.append(float((model.decode_clip(latents, picture).detach() - before).abs().mean()))
    assert moved[0] < 0.2 * moved[1]
    with pytest.raises(ValueError, match='set decoder_only too'):
        AutoencoderOptions(holds_people=True)
