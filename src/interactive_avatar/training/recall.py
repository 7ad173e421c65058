# SPDX-License-Identifier: Apache-2.0
"""Stage: remembering what no prompt names, learnt by the generator from itself.

What is worn after an absence can be known from the prompt, where it names it, or from the long
memory. A distilled generator reads it off the prompt: the chunks in which somebody comes back
unnamed are one in two hundred, and once they are made wrong the short memory says so too. So
streams are played in which prompts name everything, which the generator does well, and it is then
asked to draw the very same chunks, from the same noise and memories, with prompts that fall
silent about what is worn (as context distillation does, arXiv 2209.15189, but so that the memory
tells it, not the weights). Nobody else judges, so nothing gets blurred: targets are its own
pictures. Stories in which nothing was put on, or was taken off again, have nothing to fall silent
about and hold it where it was.

With the chunks before in sight it is enough to go by those, and at the door they show a
shoulder. So who comes back is also played once more from the same memories with silent prompts, as
it will be when it matters, and what the generator then forgets stands in its short memory while
the told pictures are asked of it (`Lesson.wanted`): there only the long memory can tell.

Who wore nothing is to come back as they went, and whoever has learnt to remember likes to draw a
hat. Without a long memory the tutor has nothing to remember: so its long memory is masked there,
and what it draws is asked of the same noise with the memory, which shows that nothing was worn
(lessons *unworn*). Of the two, hat or none, only the long memory tells which.

A generator that has learnt this sees what is not there: shades of glasses, which it then takes for
remembered ones. So it is also played as it has become, on stories in which nothing is worn and
on clips, and the generator that it was (the tutor) says what comes next there
(on-policy distillation, arXiv 2306.13649). Lessons are played anew several times (``rounds``).

A switch is to be seen in the first chunk that has the new prompt (Cache-Switching). Of what a
prompt asks of a face, a distilled generator draws little there: nine tenths of what its chunks
are about is something else. So streams are also held on clips, and in the chunks after a change
of prompt the clip itself is asked for, out of nothing but noise (lessons *switch*).

What is behind somebody nobody has ever seen, and a distilled generator paints something there, of
what is around it, with edges, and chunk after chunk keeps what it has painted. But of streams that
run free on clips, too, it is known what an empty picture looks like: as the clip's, whatever they
did before. So that is asked for (lessons *empty*), and what the tutor draws there is not.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.prompts import (
    ACTION_SLOTS,
    EXPRESSIONS,
    GAZES,
    WorldState,
    action_prompt,
    after,
    prompt_id,
    stable_prompt,
    trained_variants,
)
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard, cell_weight
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts
from interactive_avatar.training.rollout import Rollout, Segment, joined, part, segment_window
from interactive_avatar.training.speech.library import MEL_FRAMES_PER_FRAME
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers

KEPT: Final = {'act': 0.08, 'in_view': 0.05, 'leave': 0.03, 'return': 0.2, 'back': 0.12,
               'unaided': 0.55, 'unworn': 0.4, 'bare': 0.25, 'worn': 0.1, 'usual': 0.35,
               'switch': 0.3, 'lips': 0.2, 'turned': 0.15, 'empty': 0.2}
"""Segments of a story that are learnt from, and how often each kind is drawn; ``unaided``: those
after an absence as they come out with silent prompts; ``unworn``: those of stories in which
nothing was worn; ``bare``: what these have before, as the generator has become; ``worn``: the
same of the other stories; ``usual``: of clips, the same; ``switch``: of clips, what comes after a
change of prompt; ``lips``: mouths of clips; ``turned``: their turned heads; ``empty``: what clips
show when nobody is in the picture."""
OF_HELD: Final = ('switch', 'lips', 'turned')
AFTER_ABSENCE: Final = ('return', 'back')
LEFT_CHUNK: Final = 2
"""Of a segment in which somebody leaves, the first chunk in which they are out of view."""
ENTERED_CHUNK: Final = 4
"""Of a segment in which somebody comes back, the first chunk in which they are in view."""
WORDS: Final = ('text_embedding.', '.refiner.', '.text.')
"""Parts of the denoiser's names of what makes something of a prompt's tokens."""


@dataclass(frozen=True)
class RecallOptions:
    """Options of the stage; batch counts segments per process and part.

    ``stories`` are played ``streams`` at a time by every process, at the beginning of a round.
    ``worn_share`` of them put something on and keep it, ``removed_share`` put it on and take it
    off again; the rest wear nothing. ``usual``: segments played of each of as many clips, and
    ``switches``: segments of each of as many that are held on them. Of these, ``switch_chunks``
    after a change of prompt are learnt, weighed around mouth and eyes, of all the mouth, and
    those in which the eyes are nearer to each other than ``turned_below`` of their distance in a
    clip's frontal frames.
    ``keeps_words``: what words mean and what is done about it stays as it is, that is, their
    embedding and all of the text attention: lessons know fewer phrasings than the generator does,
    and queries and outputs of another kind show actions more weakly.
    ``jump_share``: of the stories in which something is worn, so many put it on by its name.
    ``word_drop``: up to so many of a prompt's tokens are kept from who learns, so that no single
    word is relied on.
    ``forgotten_weight``: where who comes back was drawn otherwise than told, cells weigh up to so
    much more. Mostly it is what was forgotten, and that is few cells of one stream in ten.
    ``shares``: how often kinds of lessons are drawn, where it is not as in `KEPT`.
    ``rounds``: how often all this is played anew; lessons of the last ``remembered`` rounds are
    learnt from, and stay on the device (some 25 GB per 128 stories of the compact model).
    ``chunks``: of a segment, a multiple of the memory's group. ``stays``: segments in view, from …
    to, between what is done first and what is done last: hats fray, and grow, in the course of a
    minute. ``away``: segments out of view, from … to; they must outlast the short memory.

    Raises:
        ValueError: on no stories, streams, rounds or remembered rounds, on no stay, or shares of
            unknown kinds or below 0, or of nothing.
    """

    stories: int = 64
    streams: int = 16
    chunks: int = 10
    stays: tuple[int, int] = (1, 1)
    away: tuple[int, int] = (4, 5)
    usual: int = 4
    switches: int = 4
    switch_chunks: int = 2
    mouth_weight: float = 8.0
    eye_weight: float = 6.0
    turned_below: float = 0.9
    rounds: int = 8
    remembered: int = 2
    worn_share: float = 0.5
    removed_share: float = 0.2
    jump_share: float = 0.15
    word_drop: float = 0.3
    forgotten_weight: float = 0.0
    keeps_words: bool = True
    speech_share: float = 0.5
    shares: Mapping[str, float] = field(default_factory=dict)
    batch: int = 4
    peak_rate: float = 5e-5
    weight_decay: float = 0.0
    average_decay: float = 0.98
    settle_steps: int = 20

    def __post_init__(self) -> None:
        for name in ('stories', 'streams', 'rounds', 'remembered'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}: give 1 or more')
        if not 1 <= self.stays[0] <= self.stays[1]:
            raise ValueError(f'stays is {list(self.stays)}: give the fewest, 1 or more, and the '
                             'most')
        for kind, share in self.shares.items():
            if kind not in KEPT or share < 0.0:
                raise ValueError(f'the share of {kind!r} is {share}: give 0 or more, for kinds '
                                 f'among {", ".join(KEPT)}')
        if not any(self.drawn.values()):
            raise ValueError('all shares are 0: give some kind of lesson more')

    @property
    def drawn(self) -> dict[str, float]:
        """How often each kind of lesson is drawn, up to a factor."""
        return {**KEPT, **self.shares}


@dataclass(frozen=True)
class Story:
    """Prompts of a story, one per segment; ids into the prompt table.

    Attributes:
        kinds: what each segment is.
        told, silent: what prompts say that name what is worn, and such that do not.
        plain: whether nothing is ever worn, so that both say the same all along.
    """

    kinds: tuple[str, ...]
    told: tuple[int, ...]
    silent: tuple[int, ...]

    @property
    def plain(self) -> bool:
        return self.told == self.silent


def compose_story(rng: np.random.Generator, options: RecallOptions, away: int, stay: int = 1
                  ) -> Story:
    """At rest, something put on (or not), worn (or taken off), out of view, back; ``stay``
    segments in view, ``away`` out of it."""
    roll = rng.random()
    worn = roll < options.worn_share
    removed = not worn and roll < options.worn_share + options.removed_share
    name = str(rng.choice(ACTION_SLOTS['wear']['object']))
    world = WorldState(expression=str(rng.choice(EXPRESSIONS[:2])))
    kinds: list[str] = []
    told: list[int] = []
    silent: list[int] = []

    def bare(state: WorldState) -> WorldState:
        return replace(state, glasses=False, hat=False)

    def add(kind: str, action: str | None = None, **slots: str) -> None:
        nonlocal world
        variant = int(rng.choice(trained_variants(world, action))) if rng.random() < 0.6 else 0

        def text(state: WorldState) -> str:
            return stable_prompt(state, variant) if action is None \
                else action_prompt(action, state, variant, **slots)

        kinds.append(kind)
        told.append(prompt_id(text(world)))
        # An object that is put on or taken off is named either way.
        silent.append(prompt_id(text(world if 'object' in slots else bare(world))))
        if action is not None:
            world = after(action, world, **slots)

    def move() -> None:
        action = str(rng.choice(('smile', 'nod', 'tilt_head', 'shake_head', 'look')))
        slots = {'direction': str(rng.choice(GAZES[1:]))} if action == 'look' else {}
        add('act', action, **slots)

    add('rest')
    if worn and rng.random() < options.jump_share:
        world = after('wear', world, object=name)
        add('in_view')
        silent[-1] = told[-1]
    elif worn or removed:
        add('act', 'wear', object=name)
    else:
        move()
    for _ in range(stay):
        add('in_view')
    if removed:
        add('act', 'remove', object=name)
    else:
        if rng.random() < 0.5:
            move()
        else:
            world = replace(world, listening=bool(rng.random() < 0.3))
            add('in_view')
    add('leave', 'step_out')
    for _ in range(away):
        add('away')
    add('return', 'come_back')
    add('back')
    return Story(tuple(kinds), tuple(told), tuple(silent))


def story_shard(shard: Shard, stories: Sequence[Story], options: RecallOptions) -> Shard:
    """Clips without pictures: the stories' prompts, and references and speech of the shard's.

    Out of view prompts are silent already, as they will be when it matters.
    """
    assert shard.references is not None
    count, device, config = len(stories), shard.device, shard.config
    chunks = len(stories[0].kinds) * options.chunks
    frames = chunks * FRAMES_PER_CHUNK
    who = shard._random(len(shard.references), count)
    mel = torch.zeros((count, frames * MEL_FRAMES_PER_FRAME, config.audio.mel_bands),
                      dtype=torch.uint8, device=device)
    for index in range(round(options.speech_share * count)):
        heard = shard.mel[who[index]]
        mel[index] = heard.repeat(-(-mel.shape[1] // len(heard)), 1)[:mel.shape[1]]
    in_view = torch.ones((count, len(stories[0].kinds), options.chunks * FRAMES_PER_CHUNK),
                         dtype=torch.bool, device=device)
    for index, kind in enumerate(stories[0].kinds):
        gone = {'leave': slice(LEFT_CHUNK * FRAMES_PER_CHUNK, None), 'away': slice(None),
                'return': slice(ENTERED_CHUNK * FRAMES_PER_CHUNK)}.get(kind, slice(0))
        in_view[:, index, gone] = False
    played = torch.tensor([[silent if kind == 'away' else told for kind, told, silent in
                            zip(s.kinds, s.told, s.silent, strict=True)] for s in stories],
                          device=device)
    a = config.autoencoder
    # The first reference is at rest and bare, as the picture that a stream begins with.
    return Shard.of([{
        'mouth': torch.zeros((count, frames, config.audio.mouth_units), device=device),
        'probe_units': torch.zeros((count, frames, shard.probe_units.shape[2]), device=device),
        'mel': mel, 'prompt_ids': played.repeat_interleave(options.chunks, 1),
        'in_view': in_view.flatten(1),
        'told': torch.ones((count, chunks), dtype=torch.bool, device=device),
        'marks': torch.zeros((count, frames, 3, 2), device=device),
        'latents': torch.zeros((count, chunks, a.latent_channels, a.latent_px, a.latent_px),
                               dtype=torch.float16, device=device),
        'references': shard.references[who], 'pictures': torch.zeros((count, 1), device=device),
    }], config, device, int(shard._random(2 ** 31 - 1, 1)))


@dataclass
class Lesson:
    """A segment as it was played, and the prompts to play it with now.

    Attributes:
        segment: of one stream. audio: tokens of its chunks, [1, T, 12, width].
        prompt_ids: [1, P], what stands in for the segment's own.
        wanted: latents that it is to make, [1, T, C, h, w]; None: what the tutor makes of it.
        weight: of its cells, 1 on average, [1, T, 1, h, w]; None: all the same.
    """

    segment: Segment
    audio: Tensor
    prompt_ids: Tensor
    wanted: Tensor | None
    weight: Tensor | None = None


Lessons = dict[str, list[Lesson]]


def only(chunks: Tensor, cells: Tensor) -> Tensor | None:
    """Weights of a lesson of which some chunks count, 1 on average, or None if none does.

    Args:
        chunks: bool [1, T]. cells: weights [1, T, 1, h, w], or of all cells alike.
    """
    share = float(chunks.float().mean())
    return None if share == 0.0 else cells * chunks[..., None, None, None] / share


def _advance(rollout: Rollout, model: Trainee, levels: Sequence[float], seed: int
             ) -> tuple[Segment, Tensor]:
    # The same noise for all who play a story, so that they differ by what they know alone.
    torch.manual_seed(seed)
    segment, tokens = rollout.advance(model.audio, levels)
    return segment, tokens.detach()


@torch.no_grad()
def play(tutor: Trainee, model: Trainee, shard: Shard, prompts: Prompts, options: RecallOptions,
         rng: np.random.Generator, count: int) -> Lessons:
    """Play ``count`` stories side by side; the lessons of each kind of segment.

    Args:
        tutor: plays them with prompts that name everything.
        model: plays what has nothing to be named, and, from the tutor's memories on, who is away
            and who comes back while the prompts are silent. Where nothing was ever worn, the tutor
            sees them come back without its long memory.
    """
    away = int(rng.integers(options.away[0], options.away[1] + 1))
    stay = int(rng.integers(options.stays[0], options.stays[1] + 1))
    stories = [compose_story(rng, options, away, stay) for _ in range(count)]
    clips = story_shard(shard, stories, options)
    gone = stories[0].kinds.index('away')
    # In view both are told; who comes back is told nothing.
    heard = torch.tensor([[*story.told[:gone], *story.silent[gone:]] for story in stories],
                         device=shard.device)
    quiet = copy.copy(clips)
    quiet.prompt_ids = heard.repeat_interleave(options.chunks, 1)
    told, alone = (Rollout(each.denoiser, of, prompts, count, options.chunks, 0.0, captured=False)
                   for each, of in ((tutor, clips), (model, quiet)))
    kinds = stories[0].kinds
    told.begin(len(kinds) * options.chunks)
    alone.load_state_dict(told.state_dict())
    levels = shard.config.sampler.levels
    who = [stories[int(clip)] for clip in told.clip]
    plain = torch.tensor([story.plain for story in who], device=shard.device)
    lessons: Lessons = {kind: [] for kind in KEPT}

    side = shard.config.autoencoder.latent_px

    def keep(kind: str, segment: Segment, tokens: Tensor, stream: int, prompt: int,
             wanted: Tensor | None) -> None:
        if not options.drawn[kind]:
            return
        own = slice(stream, stream + 1)
        lesson = part(segment, own)
        cells = torch.ones((1, options.chunks, 1, side, side), device=shard.device)
        if kind in ('unaided', 'unworn') and wanted is not None:
            missed = (wanted[own] - lesson.made).square().mean(2, keepdim=True)
            cells = cells + options.forgotten_weight * missed / (1.0 + missed)
        # Empty pictures are the clips' business.
        weight = only(~clips.empty(lesson.clip, lesson.at, options.chunks), cells)
        if weight is not None:
            lessons[kind].append(Lesson(lesson, tokens[own],
                                        torch.full_like(lesson.prompt_ids, prompt),
                                        None if wanted is None else wanted[own], weight))

    for index, of_first in enumerate(kinds):
        # Out of view there is nothing to tell, so that is played as the generator has become.
        if index == gone:
            alone.load_state_dict(told.state_dict())
        if of_first == AFTER_ABSENCE[0]:
            told.load_state_dict(alone.state_dict())
            told.forget(plain)
        seed = int(rng.integers(2 ** 31))
        named, tokens = _advance(told, tutor, levels, seed)
        unnamed, _ = _advance(alone, model, levels, seed)
        for stream, story in enumerate(who):
            kind, prompt = story.kinds[index], story.silent[index]
            returns = kind in AFTER_ABSENCE
            if kind in KEPT and not (returns and story.plain):
                keep(kind, named, tokens, stream, prompt, named.made)
            if story.plain and returns:
                keep('unworn', unnamed, tokens, stream, prompt, named.made)
            elif index < gone:
                keep('bare' if story.plain else 'worn', unnamed, tokens, stream,
                     story.told[index], None)
            elif returns and story.told[index] != prompt:
                keep('unaided', unnamed, tokens, stream, prompt, named.made)
    return lessons


@torch.no_grad()
def play_clips(model: Trainee, shard: Shard, prompts: Prompts, options: RecallOptions,
               rng: np.random.Generator, count: int) -> Lessons:
    """Play ``count`` clips side by side as the generator has become; lessons *usual*, of the
    segments in which prompts name all that is worn, and *empty*, of those with chunks in which
    nothing of anybody is in the clip's picture, which is asked for."""
    assert shard.latents is not None
    rollout = Rollout(model.denoiser, shard, prompts, count, options.chunks, 0.0, captured=False)
    lessons: Lessons = {'usual': [], 'empty': []}
    alike = torch.ones_like(shard.latents[:1, :options.chunks, :1], dtype=torch.float32)
    for _ in range(options.usual):
        segment, tokens = _advance(rollout, model, shard.config.sampler.levels,
                                   int(rng.integers(2 ** 31)))
        empty = shard.empty(segment.clip, segment.at, options.chunks)
        for stream in range(count):
            own = slice(stream, stream + 1)
            lesson = part(segment, own)
            weight = only(~empty[own], alike)
            if segment.told[stream] and weight is not None:
                lessons['usual'].append(Lesson(lesson, tokens[own], lesson.prompt_ids, None,
                                               weight))
            weight = only(empty[own], alike)
            if weight is not None:
                lessons['empty'].append(Lesson(lesson, tokens[own], lesson.prompt_ids,
                                               lesson.truth, weight))
    return lessons


def turned(shard: Shard, segment: Segment, below: float) -> Tensor:
    """Chunks of a segment, bool [B, T], in which the eyes are nearer to each other than ``below``
    of their distance in the clip's frontal frames (nine tenths of all are nearer than that)."""
    assert shard.marks is not None

    def apart(marks: Tensor) -> Tensor:
        return (marks[..., 1, :] - marks[..., 2, :]).norm(dim=-1)

    frontal = apart(shard.marks[segment.clip]).quantile(0.9, 1, keepdim=True)
    chunks = shard.chunk_marks(segment.clip, segment.at, segment.seen.shape[1])
    return apart(chunks) < below * frontal


@torch.no_grad()
def play_held(model: Trainee, shard: Shard, prompts: Prompts, options: RecallOptions,
              rng: np.random.Generator, count: int) -> Lessons:
    """Play ``count`` clips side by side, held on them; lessons *switch*, *lips* and *turned*,
    with the clip's own latents for what comes next, out of noise alone."""
    rollout = Rollout(model.denoiser, shard, prompts, count, options.chunks, 0.0, captured=False)
    lessons: Lessons = {'switch': [], 'lips': [], 'turned': []}
    side, step = shard.config.autoencoder.latent_px, torch.arange(
        1 - options.switch_chunks, options.chunks, device=shard.device)
    for _ in range(options.switches):
        torch.manual_seed(int(rng.integers(2 ** 31)))
        segment, tokens = rollout.advance(model.audio, (1.0,), anchored=count)
        index, clip = segment.at[:, None] + step, segment.clip[:, None]
        ids = shard.prompt_ids
        # The first chunk of a clip follows none, so nothing changes there.
        changed = ids[clip, index.clamp_min(0)] != ids[clip, (index - 1).clamp_min(0)]
        recent = changed.unfold(1, options.switch_chunks, 1).any(-1)
        marks = shard.chunk_marks(segment.clip, segment.at, options.chunks)
        face = cell_weight(marks, side, options.mouth_weight, options.eye_weight)
        counted = {'switch': (recent, face),
                   'lips': (segment.seen, cell_weight(marks, side, 1.0, 0.0) - 1.0),
                   'turned': (segment.seen & turned(shard, segment, options.turned_below), face)}
        asked = replace(segment, noised=torch.randn_like(segment.noised),
                        level=torch.ones_like(segment.level))
        for kind, (chunks, cells) in counted.items():
            weight = cells * chunks[..., None, None, None]
            mean = weight.mean((1, 2, 3, 4), keepdim=True)
            for stream in torch.nonzero(mean.flatten() > 0.0).flatten().tolist():
                own = slice(stream, stream + 1)
                lesson = part(asked, own)
                lessons[kind].append(Lesson(lesson, tokens[own].detach(), lesson.prompt_ids,
                                            lesson.truth, weight[own] / mean[own]))
    return lessons


def collate(lessons: Sequence[Lesson]) -> tuple[Segment, Tensor]:
    """Lessons as one segment with the prompts to play it with now, and its audio tokens."""
    told = torch.cat([lesson.prompt_ids for lesson in lessons])
    return (replace(joined([lesson.segment for lesson in lessons]), prompt_ids=told),
            torch.cat([lesson.audio for lesson in lessons]))


def drawn(model: Trainee, segment: Segment, audio: Tensor, prompts: Prompts, commit_level: float,
          word_drop: float = 0.0) -> Tensor:
    """What a generator makes of a segment's noise with its prompts, latents [B, T, C, h, w]; up to
    ``word_drop`` of their tokens are masked, never the first, which is nobody's word."""
    with torch.autocast(segment.made.device.type, torch.bfloat16):
        window = segment_window(segment, audio, prompts, segment.noised, segment.level,
                                commit_level)
        if word_drop > 0.0:
            mask = window.text_mask
            share = word_drop * torch.rand_like(mask[..., :1])
            gone = torch.rand_like(mask) < share
            gone[..., 0] = False
            window.text_mask = mask.masked_fill(gone, float(MASKED))
        velocity = model.denoiser.window(window)
    return segment.noised - segment.level[..., None, None, None] * velocity.float()


@torch.no_grad()
def ask(tutor: Trainee, lessons: Sequence[Lesson], prompts: Prompts, batch: int,
        commit_level: float) -> None:
    """Let the tutor say what is wanted where nobody has yet."""
    open_ones = [lesson for lesson in lessons if lesson.wanted is None]
    for start in range(0, len(open_ones), batch):
        some = open_ones[start:start + batch]
        for lesson, wanted in zip(some, drawn(tutor, *collate(some), prompts, commit_level),
                                  strict=True):
            lesson.wanted = wanted[None]


def train_recall(model: Trainee, shard: Shard, prompts: Prompts, process: Process, run: Run,
                 options: RecallOptions | None = None,
                 sheet: Callable[[Path], None] | None = None,
                 tutor: Trainee | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    Args:
        shard: encoded clips, of which references and speech are taken.
        tutor: the generator that plays with prompts that name everything; ``model`` as it comes
            if None.

    Raises:
        ValueError: if segments out of view would not outlast the short memory.
    """
    options = options or RecallOptions()
    m, device = shard.config.memory, process.device
    if run.sharded:
        raise ValueError('streams are played with whole weights: leave out --fsdp')
    if options.away[0] * options.chunks < m.short * m.group + m.adjacent:
        raise ValueError(f'{options.away[0]} segments of {options.chunks} chunks out of view do '
                         f'not outlast the short memory of {m.short * m.group + m.adjacent} '
                         f'chunks: raise away or chunks')
    process.share_weights(model)
    model.audio.requires_grad_(False)
    frozen = [parameter for name, parameter in model.denoiser.named_parameters()
              if options.keeps_words and any(part in f'.{name}' for part in WORDS)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          betas=(0.9, 0.99), average_decay=options.average_decay,
                          settle_steps=options.settle_steps, final=0.1)
    stage = Stage('recall', process, run, [shard.random])
    stage.samples(optimiser, sheet)
    if tutor is None:
        tutor = Trainee(copy.deepcopy(model.audio), copy.deepcopy(model.denoiser))
    tutor.requires_grad_(False).eval()
    commit_level = shard.config.sampler.commit_level
    stage.keep(weights=optimiser)

    players = [play_clips]
    if any(options.drawn[kind] for kind in OF_HELD):
        players.append(play_held)

    def gather(number: int, tutor: Trainee) -> Lessons:
        torch.manual_seed((run.seed * 31 + number) * 1009 + process.rank)
        shard.random.manual_seed((run.seed * 31 + number) * 1009 + process.rank)
        rng = np.random.default_rng([run.seed, number, process.rank])
        lessons: Lessons = {kind: [] for kind in KEPT}
        left = options.stories
        while left > 0:
            count = min(left, options.streams)
            for kind, played in play(tutor, model, shard, prompts, options, rng, count).items():
                lessons[kind] += played
            for play_some in players:
                for kind, some in play_some(model, shard, prompts, options, rng, count).items():
                    lessons[kind] += some
            left -= count
        for each in lessons.values():
            ask(tutor, each, prompts, options.batch, commit_level)
        return lessons

    if device.type == 'cuda' and run.compiled:
        compile_layers('_window_layer', model.denoiser)
    number, played = -1, deque[Lessons]()
    for progress in stage.steps():
        if int(progress * options.rounds) != number:
            number = int(progress * options.rounds)
            lessons = {}  # or they are held while new ones are played
            if len(played) == options.remembered:
                played.popleft()
            played.append(gather(number, tutor))
            lessons = {kind: [lesson for each in played for lesson in each[kind]]
                       for kind in KEPT}
            kinds = [kind for kind, share in options.drawn.items() if share and lessons[kind]]
            shares = torch.tensor([options.drawn[kind] for kind in kinds])
        for share in stage.parts():
            chosen = [kinds[int(k)] for k in torch.multinomial(shares, options.batch, True)]
            some = [lessons[kind][int(torch.randint(len(lessons[kind]), ()))] for kind in chosen]
            wanted = torch.cat([lesson.wanted for lesson in some if lesson.wanted is not None])
            x0 = drawn(model, *collate(some), prompts, commit_level, options.word_drop)
            weight = torch.cat([torch.ones_like(x0[:1, :, :1]) if lesson.weight is None
                                else lesson.weight for lesson in some])
            error = ((x0 - wanted).square() * weight).mean((1, 2, 3, 4))
            optimiser.backward(share * error.mean())
            values: dict[str, list[Tensor]] = {}
            for kind, value in zip(chosen, error.detach(), strict=True):
                values.setdefault(kind, []).append(value)
            stage.log.add(stage.step, loss=error.detach().mean(), **{
                kind: torch.stack(each).mean() for kind, each in values.items()})
        stage.log.add(stage.step, gradient=optimiser.step(progress))
    stage.close()
    model.audio.requires_grad_(True)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return optimiser
