# SPDX-License-Identifier: Apache-2.0
"""Stages: what they draw, their losses by hand, resumption, and two processes as one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from processes import run_two
from toy import ALONE, TINY, prompts, shard, trainee

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.denoiser import Clip
from interactive_avatar.training.data import draw_windows
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.distil import (
    DistilOptions,
    chunk_weight,
    dmd_gradient,
    dmd_loss,
    train_distil,
)
from interactive_avatar.training.memory import MemoryOptions, draw_retrieval, train_memory
from interactive_avatar.training.reader import (
    MouthReader,
    correlation,
    draw_readings,
    train_reader,
)
from interactive_avatar.training.rollout import Rollout
from interactive_avatar.training.stage import Optimiser, Run
from interactive_avatar.training.student import StudentOptions, euler_levels, train_student
from interactive_avatar.training.teacher import (
    TeacherOptions,
    clip_of,
    drop,
    guided,
    train_teacher,
)

TEACHER = TeacherOptions(batch=2, frames=4)
DISTIL = DistilOptions(batch=4, chunks=10, reading_weight=0.0, reader_steps=2,
                       critic_warm_up=1, critic_updates=2)


def run_in(folder: Path, **values: object) -> Run:
    """A run that keeps everything in one folder."""
    return Run(out=folder, state=folder, **values)  # type: ignore[arg-type]


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def some_clip(frames: int = 4) -> tuple[Clip, Trainee]:
    """A drawn clip, half noise."""
    model = trainee()
    model.eval()
    batch = draw_windows(shard(), 2, frames)
    x = batch.latents[:, 2:]
    audio = model.audio(batch.mel[:, 2:].flatten(0, 1)).unflatten(0, x.shape[:2])
    return clip_of(batch, TINY, x, torch.full((2,), 0.5), audio, prompts()), model


@torch.no_grad()
def test_all_frames_of_a_clip_see_each_other_and_only_their_own_sound() -> None:
    clip, model = some_clip()
    before = model.denoiser.clip(clip)
    clip.frames = clip.frames.clone()
    clip.frames[:, -1] += 1.0
    changed = (model.denoiser.clip(clip) - before).abs().amax((0, 2, 3, 4))
    assert (changed > 1e-5).all()
    # Without self-attention a frame's sound reaches that frame alone.
    for block in model.denoiser.layers:
        block.o.weight.zero_()
    alone = model.denoiser.clip(clip)
    clip.audio = clip.audio.clone()
    clip.audio[:, 1] += 1.0
    changed = (model.denoiser.clip(clip) - alone).abs().amax((0, 2, 3, 4))
    assert changed[1] > 1e-5 and (changed[[0, 2, 3]] == 0).all()


@torch.no_grad()
def test_a_clip_of_one_frame_is_the_streams_chunk_without_a_latent_before() -> None:
    from interactive_avatar.generator.denoiser import rotate, unblinking
    clip, model = some_clip(1)
    d = model.denoiser
    d.previous_embedding.weight.zero_()
    d.previous_head.weight.zero_()
    together = d.clip(clip)[:, 0]
    k, v = d.reference(clip.reference)
    pairs = [d.entry(clip.groups[:, g], k, v) for g in range(clip.groups.shape[1])]
    blank = torch.zeros_like(k)
    keys = torch.cat([k, *[p[0] for p in pairs], blank, blank], 3)
    values = torch.cat([v, *[p[1] for p in pairs], blank, blank], 3)
    mask = torch.nn.functional.pad(clip.mask, (0, 2 * TINY.chunk_tokens), value=float(MASKED))
    text_k, text_v = d.text_cache(clip.text[torch.arange(2), clip.text_index[:, 0]])
    apart, _, _ = d.chunk(clip.frames[:, 0], clip.level[:, 0], clip.reference,
                          *d.audio_cache(clip.audio[:, 0]), text_k, text_v,
                          unblinking(clip.text_mask[torch.arange(2), clip.text_index[:, 0]],
                                     TINY.denoiser),
                          rotate(keys, d.cache_cos, d.cache_sin), values, mask)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_moves_away_from_the_unconditional() -> None:
    clip, model = some_clip()
    told = model.denoiser.clip(clip)
    everywhere = torch.ones(2, dtype=torch.bool)
    untold = model.denoiser.clip(drop(Clip(**vars(clip)), everywhere, everywhere))
    torch.testing.assert_close(guided(model.denoiser, clip, 1.0), told)
    torch.testing.assert_close(guided(model.denoiser, clip, 3.0), untold + 3.0 * (told - untold))
    assert not torch.allclose(told, untold)


def test_dmd_gradient_by_hand() -> None:
    made = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1).requires_grad_()
    fake = torch.tensor([2.0, 2.0]).view_as(made)
    real = torch.tensor([0.0, 1.0]).view_as(made)
    # mean |made - real| = (1 + 2) / 2; (fake - real) = (2, 1).
    gradient = dmd_gradient(made.detach(), fake, real)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([2 / 1.5, 1 / 1.5]))
    dmd_loss(made, gradient, torch.tensor([[0.5, 1.5]])).backward()
    assert made.grad is not None
    # The mean over two elements, with the chunks' weights.
    torch.testing.assert_close(made.grad, gradient * torch.tensor([0.5, 1.5]).view_as(made) / 2)


def test_chunks_after_a_change_of_prompt_and_untold_ones_in_view_count_more() -> None:
    clips = shard(clips=2)
    clips.prompt_ids[:] = 1
    clips.prompt_ids[0, 23:] = 2
    clips.told[:] = True
    clips.told[1, 25:30] = False
    clips.in_view[:, 4 * 28:] = False
    streams = Rollout(trainee().denoiser, clips, prompts(), 2, 10, 0.0, captured=False)
    streams.follow(torch.tensor([0, 1]))
    streams.at[:] = 20
    segment, _ = streams.advance(trainee().audio, (1.0,))
    options = replace(DISTIL, switch_weight=2.0, switch_chunks=3, untold_weight=4.0)
    weight = chunk_weight(clips, segment, options)
    expected = torch.ones(2, 10)
    expected[0, 3:6] = 3.0
    expected[1, 5:8] = 5.0
    torch.testing.assert_close(weight, expected / expected.mean())
    assert torch.equal(chunk_weight(clips, segment, DISTIL), torch.ones(2, 10))


def test_retrieval_draws_old_neighbours_and_the_last_five_seconds() -> None:
    data, m = shard(clips=4, chunks=80), TINY.memory
    options = MemoryOptions(neighbour_chunks=2)
    drawn = draw_retrieval(data, 400, options, (1, 3))
    recent = m.short * m.group
    assert set(drawn.clip.tolist()) == {1, 2}
    long, short = drawn.starts[:, :m.long], drawn.starts[:, m.long:]
    # The last 4.8 s whole, without gaps; older groups end before them.
    assert (short[:, -1] + m.group == drawn.now).all()
    assert (short.diff(dim=1) == m.group).all()
    assert (long >= 0).all() and (long + m.group <= drawn.now[:, None] - recent).all()
    assert len(torch.unique(long)) > 20
    is_old = drawn.at < drawn.now - recent
    assert 0.5 < is_old.float().mean() < 0.7
    assert (drawn.at[~is_old] < drawn.now[~is_old]).all()
    gap = torch.minimum((drawn.at[:, None] - long).abs(),
                        (drawn.at[:, None] - long - m.group + 1).abs()).amin(1)
    inside = ((drawn.at[:, None] >= long) & (drawn.at[:, None] < long + m.group)).any(1)
    assert (inside | (gap <= 2))[is_old].all() and (~inside & is_old).any()
    assert data.latents is not None
    torch.testing.assert_close(drawn.target, data.latents[drawn.clip, drawn.at].float())
    torch.testing.assert_close(drawn.groups[7, 2, 1],
                               data.latents[drawn.clip[7], drawn.starts[7, 2] + 1].float())
    with pytest.raises(ValueError, match='--clip-seconds'):
        draw_retrieval(shard(chunks=30), 2, options, (0, 1))


def test_memory_learns_only_the_compressor_and_reports(tmp_path: Path) -> None:
    model = trainee().denoiser
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = MemoryOptions(batch=2, test_targets=6)
    train_memory(model, shard(), ALONE, run_in(tmp_path, steps=3), options)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(n.startswith('compressor.') or n == 'kind_embedding' for n in moved)
    report = json.loads((tmp_path / 'retrieval.json').read_text())
    assert report['steps'] == 3
    assert {'memory_latent_psnr_db', 'without_memory_latent_psnr_db'} <= set(
        report['after']['model'])
    train_memory(model, shard(), ALONE, run_in(tmp_path / 'b', steps=1), replace(
        options, compare=('compressor', 'patchifier', 'low_resolution')))
    report = json.loads((tmp_path / 'b' / 'retrieval.json').read_text())
    assert set(report['after']) == {'model', 'compressor', 'patchifier', 'low_resolution'}
    with pytest.raises(ValueError, match='abacus'):
        train_memory(model, shard(), ALONE, run_in(tmp_path), replace(options,
                                                                      compare=('abacus',)))


def test_the_students_euler_steps_pass_its_levels() -> None:
    levels = euler_levels(16, 3.0, (1.0, 0.75, 0.5, 0.25))
    assert len(levels) == 17 and levels == sorted(levels, reverse=True)
    assert {1.0, 0.75, 0.5, 0.25, 0.0} <= set(levels)
    with pytest.raises(ValueError, match='take more'):
        euler_levels(2, 3.0, (1.0, 0.75, 0.5))


def test_the_student_nears_its_teachers_end(tmp_path: Path) -> None:
    model = trainee()
    train_student(model, shard(), prompts(), ALONE, run_in(tmp_path, steps=12), StudentOptions(
        batch=2, targets=3, euler_steps=6, levels=(1.0, 0.5), peak_rate=2e-3))
    rows = [json.loads(line) for line in (tmp_path / 'student.jsonl').read_text().splitlines()]
    assert rows[-1]['loss'] == rows[-1]['loss'] and rows[-1]['step'] >= 11


def teach(folder: Path, **values: object) -> Trainee:
    """A few steps of the teacher's stage."""
    model = trainee()
    train_teacher(model, shard(), prompts(), ALONE, run_in(folder, **values), TEACHER)
    return model


def test_the_first_updates_are_small_whatever_the_gradient_and_the_clock() -> None:
    def moved(settle_steps: int, progress: float, updates: int) -> list[float]:
        layer = torch.nn.Linear(4, 4)
        optimiser = Optimiser(layer, ALONE, 1e-2, weight_decay=0.0, betas=(0.0, 0.999),
                              settle_steps=settle_steps, final=1.0)
        steps = []
        for _ in range(updates):
            before = layer.weight.detach().clone()
            optimiser.backward(1e3 * layer(torch.ones(1, 4)).sum())
            optimiser.step(progress)
            steps.append(float((layer.weight.detach() - before).abs().max()))
        return steps

    # Compiling has used up a tenth of the schedule: the rate rises all the same.
    assert moved(10, 0.1, 12) == pytest.approx([1e-3 * min(i, 10) for i in range(1, 13)],
                                               rel=1e-3)
    assert moved(0, 0.1, 1) == pytest.approx([1e-2], rel=1e-3)


def test_an_interrupted_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = weights(teach(tmp_path / 'a', steps=4))
    teach(tmp_path / 'b', steps=4, until=0.5)
    resumed = weights(teach(tmp_path / 'b', steps=4, resume=True))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match='--resume'):
        teach(tmp_path / 'c', steps=4, resume=True)


def distil(folder: Path, options: DistilOptions, **values: object) -> Trainee:
    """A few steps of distillation."""
    model = trainee()
    train_distil(model, trainee(5) if options.dmd_weight else None, shard(), prompts(), ALONE,
                 run_in(folder, **values), options)
    return model


def test_distillation_goes_on_where_it_stopped_streams_included(tmp_path: Path) -> None:
    whole = weights(distil(tmp_path / 'a', DISTIL, steps=4))
    distil(tmp_path / 'b', DISTIL, steps=4, until=0.5)
    resumed = weights(distil(tmp_path / 'b', DISTIL, steps=4, resume=True))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert not torch.equal(whole, weights(trainee()))
    rows = [json.loads(line) for line in
            (tmp_path / 'a' / 'distil.jsonl').read_text().splitlines()]
    assert {'dmd', 'critic', 'lips', 'anchor', 'jaw', 'drift'} <= set().union(*rows)


def test_without_dmd_no_teacher_is_needed_and_with_it_one_is(tmp_path: Path) -> None:
    options = replace(DISTIL, dmd_weight=0.0, anchored_share=1.0, reading_weight=0.05)
    model = distil(tmp_path, options, steps=2)
    assert not torch.equal(weights(model), weights(trainee()))
    with pytest.raises(ValueError, match='needs a teacher'):
        train_distil(trainee(), None, shard(), prompts(), ALONE, run_in(tmp_path, steps=1), DISTIL)


def test_the_reader_finds_a_mouth_anywhere() -> None:
    reader = MouthReader(TINY)
    a = TINY.autoencoder
    latents = torch.randn(3, a.latent_channels, a.latent_px, a.latent_px)
    assert reader(latents, latents).shape == (3, 4, TINY.audio.mouth_units)


def test_correlation_is_of_the_rows_that_count() -> None:
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    counted = torch.tensor([True, False, True, True, False, True])
    for rows in (counted, torch.ones(6, dtype=torch.bool)):
        by_hand = torch.corrcoef(torch.stack([a[rows].flatten(), b[rows].flatten()]))[0, 1]
        torch.testing.assert_close(correlation(a, b, rows), by_hand)
    torch.testing.assert_close(correlation(a, b), by_hand)
    assert correlation(a, b, torch.zeros(6, dtype=torch.bool)) == 0


def test_the_reader_learns_where_mouths_are_and_what_they_do() -> None:
    # Units stand in the latent under the mouth, and nowhere else.
    made = shard(clips=6)
    assert made.latents is not None and made.marks is not None
    made.marks = made.marks.mean((1, 2), keepdim=True).expand_as(made.marks).contiguous()
    made.latents = 0.1 * torch.randn_like(made.latents.float())
    for clip, (x, y) in enumerate((made.marks[:, 0, 0] / 16).long().tolist()):
        made.latents[clip, :, 0, y, x] = made.mouth[clip, ::4, 0]
        made.mouth[clip, :, 0] = made.mouth[clip, ::4, 0].repeat_interleave(4)
    reader, _ = train_reader(TINY, made, ALONE, 0.0, steps=60, batch=32, noise=0.0)
    latents, reference, units, place, _ = draw_readings(made, 128, (0, 5))
    torch.testing.assert_close(place.sum(1), torch.ones(128))
    read, share = reader.read(latents, reference)
    assert correlation(read[..., 0], units[..., 0]) > 0.5
    # Looking everywhere alike would give one in the number of cells.
    assert (share.mean(1) * place).sum(1).mean() > 2.0 / place.shape[1]


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
from toy import prompts, shard, trainee
from interactive_avatar.training.common import Process
from interactive_avatar.training.stage import Run, shard as split, whole_state
from interactive_avatar.training.teacher import TeacherOptions, train_teacher
process = Process.join()
model = trainee()
run = Run(out=Path({out!r}), state=Path({out!r}), steps=3, sharded={sharded})
if run.sharded:
    split(model.audio, process), split(model.denoiser, process)
train_teacher(model, shard(), prompts(), process, run, TeacherOptions(batch=2, frames=4))
state = whole_state(model)
if process.leads:
    torch.save(state, {out!r} + '/weights.pt')
process.leave()
"""


@pytest.mark.parametrize('sharded', [False, True], ids=['copies', 'fsdp'])
def test_two_processes_are_as_one(tmp_path: Path, sharded: bool) -> None:
    """The same weights as from one process that works off both parts of the batch."""
    script = tmp_path / 'two.py'
    script.write_text(TWO.format(folder=str(Path(__file__).parent), out=str(tmp_path / 'two'),
                                 sharded=sharded))
    run_two(str(script))
    one = teach(tmp_path / 'one', steps=3, accumulate=2).state_dict()
    two = torch.load(tmp_path / 'two' / 'weights.pt', weights_only=True)
    start = trainee().state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-4, atol=2e-5)
    assert any(not torch.equal(one[name], start[name]) for name in one)
