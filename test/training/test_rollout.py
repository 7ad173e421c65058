# SPDX-License-Identifier: Apache-2.0
"""The rollout is the stream, and one window repeats it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import toy
from toy import TINY, prompts, shard, trainee

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.denoiser import rotate, unblinking
from interactive_avatar.generator.memory import DynamicKeyFrames, History, frame_feature
from interactive_avatar.training.data import Shard
from interactive_avatar.training.rollout import (
    Rollout,
    key_frame_slot,
    predict_shard,
    segment_clip,
    segment_window,
)

LEVELS = (1.0, 0.5)


@pytest.fixture
def rollout() -> Rollout:
    made = Rollout(trainee().denoiser.eval(), shard(chunks=120), prompts(), batch=2, chunks=10,
                   restart_share=0.0, captured=False)
    made.begin(120)
    return made


def test_key_frames_are_chosen_as_the_stream_chooses_them() -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((20, 6, 12)).astype(np.float32)
    candidates = random.standard_normal((20, 12)).astype(np.float32)
    candidates[:3] = held[:3, 2]
    slots = key_frame_slot(torch.from_numpy(held), torch.from_numpy(candidates)).tolist()
    expected = [DynamicKeyFrames().slot(list(h), c) for h, c in zip(held, candidates, strict=True)]
    assert slots == [-1 if slot is None else slot for slot in expected]
    assert -1 in slots and len(set(slots)) > 3


def test_one_window_repeats_the_rollout(rollout: Rollout) -> None:
    model = rollout._model
    hear = trainee().audio.eval()
    checked = 0
    for number in range(11):
        torch.manual_seed(number)
        # The last segment is made in one step, so that all of it is compared.
        segment, tokens = rollout.advance(hear, LEVELS if number < 10 else (1.0,))
        if number not in (0, 1, 3, 10):
            continue
        window = segment_window(segment, tokens, rollout._prompts, segment.noised, segment.level,
                                TINY.sampler.commit_level)
        with torch.no_grad():
            x0 = segment.noised - segment.level[..., None, None, None] * model.window(window)
        last = segment.level == (LEVELS[-1] if number < 10 else 1.0)
        checked += int(last.sum())
        torch.testing.assert_close(x0[last], segment.made[last], rtol=1e-4, atol=1e-4)
    assert checked >= 20
    # Long memory is full and has changed; the last segment saw all kinds of entries.
    assert (rollout.mask == 0).all()
    assert (rollout.long_count == TINY.memory.long).all()


class Slots:
    """The cache of one stream, written as `CacheState` and `VisualMemory` lay it down."""

    def __init__(self) -> None:
        d = TINY.denoiser
        shape = (1, d.layers, d.heads, TINY.context_tokens, d.head_width)
        self.k, self.v = torch.zeros(shape), torch.zeros(shape)
        self.mask = torch.full((1, TINY.context_tokens), float(MASKED))

    def span(self, kind: str, index: int) -> slice:
        start, _, tokens = TINY.cache_layout[kind]
        return slice(start + index * tokens, start + (index + 1) * tokens)

    def place(self, kind: str, index: int, k: Tensor, v: Tensor) -> None:
        span = self.span(kind, index)
        self.k[..., span, :], self.v[..., span, :], self.mask[:, span] = k, v, 0.0

    def push(self, kind: str, k: Tensor, v: Tensor) -> None:
        start, count, tokens = TINY.cache_layout[kind]
        old, new = slice(start + tokens, start + count * tokens), \
            slice(start, start + (count - 1) * tokens)
        for array in (self.k, self.v):
            array[..., new, :] = array[..., old, :].clone()
        self.mask[:, new] = self.mask[:, old].clone()
        self.place(kind, count - 1, k, v)


def test_the_rollout_is_the_stream(rollout: Rollout) -> None:
    """Chunk by chunk, `History` and the stream's networks give the same caches and latents."""
    model = rollout._model
    hear = trainee().audio.eval()
    slots = Slots()
    history: History | None = None
    with torch.no_grad():
        for segment_number in range(11):
            torch.manual_seed(segment_number)
            segment, _ = rollout.advance(hear, (1.0,))
            if history is None:
                reference = segment.reference[:1]
                history = History(TINY.memory, reference[0].numpy())
                slots.place('reference', 0, *model.reference(reference))
                previous = reference
            for chunk in range(10):
                prompt = segment.prompt_ids[0, segment.text_index[0, chunk]]
                text = (*model.text_cache(rollout._prompts.states[prompt][None]),
                        unblinking(rollout._prompts.mask[prompt][None], TINY.denoiser))
                audio = model.audio_cache(hear(segment.mel[:1, chunk]))
                held = (previous, *audio, *text,
                        rotate(slots.k, model.cache_cos, model.cache_sin), slots.v, slots.mask)

                x, made = segment.noised[:1, chunk], segment.made[:1, chunk]
                latent = x - model.chunk(x, torch.ones(1), *held)[0]
                np.testing.assert_allclose(latent.numpy(), made.numpy(), atol=2e-3)
                # The noise of the commit is what the segment recorded; the last one is not.
                if chunk < 9:
                    level = torch.full((1,), TINY.sampler.commit_level)
                    _, k, v = model.chunk(segment.committed[:1, chunk + 2], level, *held)
                else:
                    k = rollout.k[:1, :, :, -TINY.chunk_tokens:].clone()
                    v = rollout.v[:1, :, :, -TINY.chunk_tokens:].clone()
                slots.push('adjacent', k, v)
                previous = made
                leaving = history.follow(made[0].numpy())
                if leaving is not None:
                    first = slots.span('reference', 0)
                    entry = model.entry(torch.from_numpy(leaving.latents)[None],
                                        slots.k[..., first, :], slots.v[..., first, :])
                    if leaving.long_slot is not None:
                        oldest = slots.span('short', 0)
                        slots.place('long', leaving.long_slot, slots.k[..., oldest, :].clone(),
                                    slots.v[..., oldest, :].clone())
                    slots.push('short', *entry)
    assert history is not None
    np.testing.assert_array_equal(slots.mask[0].numpy(), rollout.mask[0].numpy())
    torch.testing.assert_close(slots.k[0], rollout.k[0], rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(slots.v[0], rollout.v[0], rtol=1e-3, atol=2e-3)
    assert len(history.long_features) == TINY.memory.long
    np.testing.assert_allclose(np.stack(history.long_features), rollout.long_features[0].numpy(),
                               atol=1e-3)


def test_features_are_those_of_the_memory(rollout: Rollout) -> None:
    a = TINY.autoencoder
    latent = torch.randn(2, a.latent_channels, a.latent_px, a.latent_px)
    made = rollout._feature(latent)
    for b in range(2):
        np.testing.assert_allclose(made[b].numpy(), frame_feature(
            latent[b].numpy(), rollout.reference[b].numpy()), atol=1e-5)


def test_anchored_streams_stay_near_their_clips(rollout: Rollout) -> None:
    hear = trainee().audio.eval()
    torch.manual_seed(0)
    segment, _ = rollout.advance(hear, LEVELS, anchored=1, anchor_low=0.0, anchor_high=0.02)
    assert (segment.made[0] - segment.truth[0]).abs().mean() < 0.2
    assert (segment.made[1] - segment.truth[1]).abs().mean() > 0.5
    assert (segment.level[0] <= 0.02).all()


def test_predictions_are_streams_held_on_their_clips_in_order() -> None:
    data, model = shard(clips=3, chunks=23), trainee().eval()
    torch.manual_seed(0)
    predict_shard(model, data, prompts(), batch=2, lowest=0.0, highest=0.02)
    assert data.predicted is not None and data.latents is not None
    near = (data.predicted.float() - data.latents.float()).abs().mean((2, 3, 4))
    assert (near[:, :20] > 0.0).all() and (near[:, :20] < 0.2).all()
    # What is left over of whole groups stays the encoder's.
    assert (near[:, 20:] == 0.0).all()
    predict_shard(model, data, prompts(), batch=2, lowest=0.9, highest=0.95)
    far = (data.predicted.float() - data.latents.float()).abs().mean((2, 3, 4))
    assert far[:, :20].mean() > 3.0 * near[:, :20].mean()
    predict_shard(model, data, prompts(), first=2, batch=2)
    moved = (data.predicted.float() - data.latents.float()).abs().amax((1, 2, 3, 4)) > 0.0
    assert moved.tolist() == [False, False, True]


def test_gradients_reach_what_writes_the_caches(rollout: Rollout) -> None:
    hear = trainee().audio
    for _ in range(5):
        segment, tokens = rollout.advance(hear, LEVELS)
    window = segment_window(segment, tokens, rollout._prompts, segment.noised, segment.level, 0.1)
    rollout._model.window(window).square().mean().backward()
    for name in ('compressor.conv1.weight', 'kind_embedding', 'previous_head.weight',
                 'blocks.0.text.k.weight'):
        gradient = rollout._model.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
    assert next(hear.parameters()).grad is not None
    clip = segment_clip(segment, TINY, segment.made, torch.full((2,), 0.5), tokens.detach(),
                        rollout._prompts)
    assert rollout._model.clip(clip).shape == segment.made.shape


def test_a_segment_must_be_whole_groups() -> None:
    with pytest.raises(ValueError, match='multiple of the memory group'):
        Rollout(trainee().denoiser, shard(), prompts(), 2, 7, 0.0, False)
    with pytest.raises(ValueError, match='does not fit'):
        Rollout(trainee().denoiser, shard(chunks=40), prompts(), 2, 45, 0.0, False)


def test_streams_find_their_clips_again_or_begin_anew() -> None:
    data = toy.shard(clips=2)
    model = toy.trainee()

    def rollout(of: Shard) -> Rollout:
        return Rollout(model.denoiser, of, toy.prompts(), 4, 10, 0.0, captured=False)

    before = rollout(data)
    before.begin(20)
    before.advance(model.audio, (1.0,))
    before.clip[:] = torch.tensor([0, 1, 0, 1])
    kept = before.state_dict()
    # Another clip has come to lie between the two, and the second is now the third.
    stranger = toy.shard(clips=1, seed=9)
    first, second = ({name: value[i:i + 1] for name, value in data.state().items()}
                     for i in range(2))
    after = rollout(Shard.of([first, stranger.state(), second], TINY, toy.CPU, 0))
    after.load_state_dict(kept)
    over = after.at + after.chunks > data.latents.shape[1]
    assert over.tolist() == [False, True, False, True]
    fewer = rollout(Shard.of([first], TINY, toy.CPU, 0))
    fewer.load_state_dict(kept)
    assert (fewer.at + fewer.chunks > data.latents.shape[1]).tolist() == [False, True, False, True]
