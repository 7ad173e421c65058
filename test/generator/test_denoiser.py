# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from tiny import TINY

from interactive_avatar.generator.denoiser import Denoiser, Window, rotate

MASKED = -1e4


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model.eval()


def random_window(batch: int, targets: int) -> Window:
    a, d, m = TINY.autoencoder, TINY.denoiser, TINY.memory
    side, channels = a.latent_px, a.latent_channels
    context = targets + 1
    frames = context + targets
    groups = 9
    return Window(
        context=torch.randn(batch, context, channels, side, side),
        context_level=torch.full((batch, context), 0.1),
        previous=torch.randn(batch, frames, channels, side, side),
        targets=torch.randn(batch, targets, channels, side, side),
        target_level=torch.rand(batch, targets),
        reference=torch.randn(batch, channels, side, side),
        groups=torch.randn(batch, groups + m.long, m.group, channels, side, side),
        short_index=torch.randint(0, groups, (frames, m.short)),
        mask=torch.where(torch.rand(batch, frames, TINY.context_tokens) < 0.3, MASKED, 0.0),
        audio=torch.randn(batch, frames, TINY.audio.tokens, TINY.audio.width),
        text=torch.randn(batch, 2, d.text_tokens, d.text_width),
        text_index=torch.randint(0, 2, (batch, frames)),
        text_mask=torch.where(torch.rand(batch, 2, d.text_tokens) < 0.3, MASKED, 0.0))


def stream_velocity(model: Denoiser, w: Window, b: int) -> torch.Tensor:
    """The same window, frame by frame, with caches as the stream holds them."""
    one = slice(b, b + 1)
    reference_k, reference_v = model.reference(w.reference[one])
    entries = [model.entry(w.groups[one, g], reference_k, reference_v)
               for g in range(w.groups.shape[1])]
    long = entries[-TINY.memory.long:]
    blank = [torch.zeros_like(reference_k)] * 2
    keys, values = list(blank), list(blank)
    text_k, text_v = model.text_cache(w.text[b])
    frames_c, targets = w.context.shape[1], []

    def forward(frame: int, latent, level, adjacent):
        short = [entries[i] for i in w.short_index[frame].tolist()]
        k = torch.cat([reference_k, *[e[0] for e in long], *[e[0] for e in short],
                       *[keys[i] for i in adjacent]], 3)
        v = torch.cat([reference_v, *[e[1] for e in long], *[e[1] for e in short],
                       *[values[i] for i in adjacent]], 3)
        prompt = int(w.text_index[b, frame])
        # What of a blink is seen: nothing, or the rows of the chunk of it that this is.
        blink = torch.full((TINY.denoiser.text_rows - TINY.denoiser.text_tokens,), MASKED)
        phase = 0 if w.blink is None else int(w.blink[b, frame])
        if phase:
            blink[(phase - 1) * TINY.denoiser.blink_rows:][:TINY.denoiser.blink_rows] = 0.0
        text_mask = torch.cat([w.text_mask[b, prompt], blink])[None]
        audio_k, audio_v = model.audio_cache(w.audio[one, frame])
        return model.chunk(
            latent, level, w.previous[one, frame], audio_k, audio_v, text_k[prompt][None],
            text_v[prompt][None], text_mask,
            rotate(k, model.cache_cos, model.cache_sin), v, w.mask[one, frame])

    for j in range(frames_c):
        _, k, v = forward(j, w.context[one, j], w.context_level[one, j], (j, j + 1))
        keys.append(k)
        values.append(v)
    for i in range(w.targets.shape[1]):
        velocity, _, _ = forward(frames_c + i, w.targets[one, i], w.target_level[one, i],
                                 (i + 2, i + 3))
        targets.append(velocity)
    return torch.cat(targets)


@pytest.mark.parametrize('blinks', [False, True])
def test_chunked_streaming_equals_one_masked_forward(denoiser: Denoiser, blinks: bool) -> None:
    torch.manual_seed(1)
    w = random_window(batch=2, targets=3)
    assert denoiser.blink_v is not None
    torch.nn.init.normal_(denoiser.blink_v)
    if blinks:
        w.blink = torch.tensor([[0, 1, 2, 0, 0, 1, 2], [1, 2, 0, 0, 1, 2, 0]])
    # The stream has nothing before its first frame; in the window those slots are masked.
    w.mask[:, 0, -2 * TINY.chunk_tokens:] = MASKED
    w.mask[:, 1, -2 * TINY.chunk_tokens:-TINY.chunk_tokens] = MASKED
    with torch.no_grad():
        together = denoiser.window(w)
        apart = torch.stack([stream_velocity(denoiser, w, b) for b in range(2)])
    assert together.abs().mean() > 0.01
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_keys_of_a_blink_are_seen_in_its_chunk_alone(denoiser: Denoiser) -> None:
    torch.manual_seed(2)
    w = random_window(batch=1, targets=2)
    assert denoiser.blink_v is not None
    with torch.no_grad():
        plain = denoiser.window(w)
        w.blink = torch.zeros((1, 5), dtype=torch.int64)
        torch.testing.assert_close(denoiser.window(w), plain)
        w.blink[0, 4] = 2
        once = denoiser.window(w)
        torch.testing.assert_close(once[:, 0], plain[:, 0])
        assert not torch.allclose(once[:, 1], plain[:, 1])
        denoiser.blink_v[:, :, :TINY.denoiser.blink_rows] += 1.0  # those of its first chunk
        torch.testing.assert_close(denoiser.window(w), once)


def test_a_masked_slot_changes_nothing(denoiser: Denoiser) -> None:
    w = random_window(batch=1, targets=2)
    w.mask[:] = 0.0
    w.mask[:, :, :TINY.chunk_tokens] = MASKED
    with torch.no_grad():
        before = denoiser.window(w)
        w.reference = torch.randn_like(w.reference)
        # The reference still reaches the memory entries, so they are hidden too.
        w.mask[:, :, :-2 * TINY.chunk_tokens] = MASKED
        hidden = denoiser.window(w)
        w.reference = torch.randn_like(w.reference)
        hidden_again = denoiser.window(w)
    torch.testing.assert_close(hidden, hidden_again)
    assert not torch.allclose(before, hidden)
