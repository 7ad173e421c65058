# SPDX-License-Identifier: Apache-2.0
"""``avatar bench lips``: does the generated mouth say what is heard, on people never trained on.

A *held-out set* is a folder of performances of test people, voices and sentences, each with its
sound, a reference picture, its prompts, the true opening of the mouth and, as a ceiling, the lip
gap that the same judge measures on the true pictures. One ships with the package; `make_set`
composes another (needs the training assets). The generator gets the sound, the reference and the
prompts; MediaPipe's face mesh measures lips on what it draws.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.evaluation import judges, metrics, sync
from interactive_avatar.evaluation.model import frechet
from interactive_avatar.evaluation.model.play import Player, Setup
from interactive_avatar.evaluation.model.play import run as run_script
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.media.audio import decode_flac, encode_flac
from interactive_avatar.media.clock import (
    CHUNK_MS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLES_PER_FRAME,
)
from interactive_avatar.media.picture import decode_image
from interactive_avatar.training.speech.align import Phone, Word

if TYPE_CHECKING:
    from interactive_avatar.training.performances import Performance
    from interactive_avatar.training.speech.align import Aligner
    from interactive_avatar.training.speech.library import SpeechLibrary

SHIPPED_SET = Path(__file__).parent / 'heldout'
SET_SUFFIX = '.npz'
AIM_CORRELATION = 0.6
AIM_LAG_MS = 80.0
AIM_SILENCE_SHARE = 0.15
# Speech goes on through closures inside words; as in `session`.
SPEECH_HANGOVER_FRAMES = 6
VOICED_RMS = 200.0
IDENTITY_EVERY_FRAMES = 25
LOOK_EVERY_FRAMES = 10
FIRST_TEST_SEED = 9_000
LEAST_SPEECH_SHARE = 0.4
# Lips meet in these, whoever speaks; and these vowels part them most.
BILABIALS = ('B', 'M', 'P')
OPEN_VOWELS = ('AA', 'AE', 'AH', 'AO', 'AW', 'AY')


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        model: folder of the generator's model.
        backend: what runs it.
        seed: of the sampler.
        source: folder of a held-out set.
        limit: how many performances at most; 0 for all.
        save: folder for the generated frames as videos; None to keep none.
        lookahead_ms: speech waited for before a frame is drawn; see `AvatarStream.open`.
    """

    model: str = 'models/compact'
    backend: str = 'onnx'
    seed: int = 0
    source: Path = SHIPPED_SET
    limit: int = 0
    save: Path | None = None
    lookahead_ms: int = CHUNK_MS


@dataclass(frozen=True)
class HeldOut:
    """One performance of a held-out set.

    Attributes:
        name: of its file.
        reference: uint8 [H, W, 3] RGB, the person at rest.
        audio: int16 [640 n].
        mouth_open: float32 [n], the true opening.
        prompts: one per chunk, n / 4.
        true_gap: float32 [n], lip gap by the judge on the true pictures, NaN without a face.
        true_identity: float [m, 128], identity of true pictures by the judge, may be empty.
        true_look: float32 [k, d], features (`model.frechet`) of every `LOOK_EVERY_FRAMES`-th true
            picture, may be empty.
        true_seam: change across chunk borders over that inside, of the true pictures; may be NaN.
        words: what is said and when, with its phones; may be empty.
    """

    name: str
    reference: NDArray[np.uint8]
    audio: NDArray[np.int16]
    mouth_open: NDArray[np.float32]
    prompts: tuple[str, ...]
    true_gap: NDArray[np.float32]
    true_identity: NDArray[np.float64]
    true_look: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0), np.float32))
    true_seam: float = float('nan')
    words: tuple[Word, ...] = ()

    @property
    def frames(self) -> int:
        """Number of frames, whole chunks only."""
        return len(self.mouth_open) // FRAMES_PER_CHUNK * FRAMES_PER_CHUNK

    def speaking(self) -> NDArray[np.bool_]:
        """Frames with speech, by level, bool [n]."""
        level = np.sqrt((self.audio[:self.frames * SAMPLES_PER_FRAME].astype(np.float64)
                         .reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(axis=1))
        kernel = np.ones(2 * SPEECH_HANGOVER_FRAMES + 1)
        return np.asarray(np.convolve(level > VOICED_RMS, kernel, 'same') > 0.5)

    def save(self, folder: Path) -> Path:
        """Write ``<name>.npz``; returns its path."""
        path = folder / (self.name + SET_SUFFIX)
        names, ids = np.unique(np.array(self.prompts), return_inverse=True)
        # FLAC and PNG are lossless and half of what zip makes of samples and pixels.
        picture = io.BytesIO()
        Image.fromarray(self.reference).save(picture, 'PNG', optimize=True)
        np.savez_compressed(
            path, reference_png=np.frombuffer(picture.getvalue(), np.uint8),
            audio_flac=np.frombuffer(encode_flac(self.audio), np.uint8),
            true_look=self.true_look.astype(np.float16), true_seam=np.array(self.true_seam),
            mouth_open=self.mouth_open.astype(np.float16), prompts=names,
            prompt_ids=ids.astype(np.int16), true_gap=self.true_gap.astype(np.float16),
            true_identity=self.true_identity.astype(np.float32),
            words=np.array([word.text for word in self.words], 'U'),
            phones=np.array([phone.name for word in self.words for phone in word.phones], 'U'),
            phone_words=np.array([number for number, word in enumerate(self.words)
                                  for _ in word.phones], np.int16),
            phone_times_s=np.array([(phone.start_s, phone.end_s) for word in self.words
                                    for phone in word.phones], np.float32).reshape(-1, 2))
        return path

    @classmethod
    def load(cls, path: Path) -> HeldOut:
        """Read what `save` wrote.

        Raises:
            ValueError: if something is missing in the file.
        """
        try:
            with np.load(path) as data:
                return cls(path.stem, decode_image(data['reference_png'].tobytes()),
                           decode_flac(data['audio_flac'].tobytes()),
                           data['mouth_open'].astype(np.float32),
                           tuple(str(data['prompts'][i]) for i in data['prompt_ids']),
                           data['true_gap'].astype(np.float32),
                           data['true_identity'].astype(np.float64),
                           data['true_look'].astype(np.float32), float(data['true_seam']),
                           _words(data))
        except KeyError as error:
            raise ValueError(f'{path} is not a performance of a held-out set: {error}; make the '
                             f'set again with `avatar bench lips --make-set`') from error


def _words(data: Any) -> tuple[Word, ...]:
    phones: list[list[Phone]] = [[] for _ in data['words']]
    for word, name, (start_s, end_s) in zip(data['phone_words'], data['phones'],
                                            data['phone_times_s'].tolist(), strict=True):
        phones[word].append(Phone(str(name), start_s, end_s))
    return tuple(Word(str(text), tuple(mine))
                 for text, mine in zip(data['words'], phones, strict=True))


def load_set(folder: Path, limit: int = 0) -> list[HeldOut]:
    """Read a held-out set.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    paths = sorted(folder.glob('*' + SET_SUFFIX))
    if not paths:
        raise FileNotFoundError(f'no held-out performances in {folder}: make them with `avatar '
                                f'bench lips --make-set {folder}` (needs the training assets)')
    return [HeldOut.load(path) for path in paths[:limit or None]]


def _talks(play: Performance, library: SpeechLibrary) -> bool:
    """Whether a performance has enough speech to judge lips by, and its person stays in view."""
    spoken = sum(library.utterances[placed.utterance].length for placed in play.speech)
    away = any(event.action in ('step_out', 'come_back') for event in play.events)
    return not away and all(world.in_view for _, world in play.worlds) and \
        spoken >= LEAST_SPEECH_SHARE * play.frames


def _said(play: Performance, library: SpeechLibrary, voices: Path, aligner: Aligner
          ) -> tuple[Word, ...]:
    """What is said in a performance, as the voices were aligned when the library was built."""
    from interactive_avatar.training.speech.align import group
    from interactive_avatar.training.speech.pack import phones_of
    from interactive_avatar.training.speech.sentences import words

    said: list[Word] = []
    for placed in play.speech:
        utterance = library.utterances[placed.utterance]
        phones = phones_of(voices, utterance.voice, utterance.text)
        if phones is None:
            raise FileNotFoundError(
                f'{voices} has no phones of {utterance.voice} saying {utterance.text!r}: build '
                f'the speech library with "python -m interactive_avatar.training.speech.build"')
        start_s = placed.start_frame / FRAME_RATE_HZ
        texts = words(utterance.text)
        said += group(texts, [Phone(phone.name, phone.start_s + start_s, phone.end_s + start_s)
                              for phone in phones], [aligner.pronunciation(t) for t in texts])
    # The last sentence may be cut by the end of the performance.
    end_s = play.frames / FRAME_RATE_HZ
    return tuple(word for word in said if word.end_s <= end_s)


def held_out_plays(people: Sequence[int], library: SpeechLibrary, count: int, seconds: float
                   ) -> Iterator[Performance]:
    """Performances of the test split in which there is speech enough, each of another person."""
    from interactive_avatar.training.performances import compose

    for index in range(count):
        # One person each, so that `count` people are seen and not one twice.
        person = people[index * len(people) // count]
        yield next(play for play in (
            compose(FIRST_TEST_SEED + index + count * attempt, [person], library, seconds,
                    'test') for attempt in itertools.count()) if _talks(play, library))


def make_set(folder: Path, people: Path, speech: Path, count: int, seconds: float) -> list[Path]:
    """Compose, render and judge performances of the test split.

    Args:
        folder: where to write them.
        people: baked people.
        speech: packed speech library (``speech.npz``), with its sound and voices beside it.
        count: how many, each of another person.
        seconds: length of each.

    Returns:
        The files.

    Raises:
        judges.JudgeMissing: without mediapipe.
        FileNotFoundError: without the assets.
    """
    from interactive_avatar.training.render.renderer import Renderer
    from interactive_avatar.training.speech.align import Aligner
    from interactive_avatar.training.speech.library import SpeechLibrary

    library, aligner = SpeechLibrary.load(speech), Aligner()
    renderer = Renderer(people)
    held_out = renderer.people.split(held_out=True)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    with judges.MeshJudge() as mesh:
        identity = judges.IdentityJudge() if not judges.available()['dlib'] else None
        for play in held_out_plays(held_out, library, count, seconds):
            frames, _ = renderer.render(play.identity, play.units, play.head, play.glasses,
                                        play.hat)
            known = np.zeros((0, judges.IDENTITY_WIDTH)) if identity is None \
                else identity.embed_all(frames[::IDENTITY_EVERY_FRAMES])
            item = HeldOut(
                f'person_{play.identity:03d}', renderer.reference_view(play.identity),
                play.audio(library), play.mouth_open,
                tuple(play.prompt_at(frame) for frame in range(0, play.frames, FRAMES_PER_CHUNK)),
                mesh.track(frames).lip_gap.astype(np.float32), known,
                np.array([frechet.features(frame) for frame in frames[::LOOK_EVERY_FRAMES]]),
                metrics.seam_ratio(frames),
                _said(play, library, speech.with_name('voices'), aligner))
            paths.append(item.save(folder))
            print(paths[-1], file=sys.stderr, flush=True)
    renderer.close()
    return paths


def generate(item: HeldOut, player: Player) -> NDArray[np.uint8]:
    """Frames that the generator draws for a performance, uint8 [n, H, W, 3], in step with it."""
    prompts = item.prompts[:item.frames // FRAMES_PER_CHUNK]
    return run_script(player.stream(item.reference, prompts[0]), prompts, item.audio)


def pooled(series: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Put series behind each other, each to mean 0 and spread 1, apart by more than any lag."""
    gap = np.full(2 * metrics.MAX_LAG_FRAMES, np.nan)
    parts: list[NDArray[np.float64]] = []
    for one in series:
        values = np.asarray(one, np.float64)
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        parts += [(values - np.nanmean(values)) / spread if spread > 1e-9
                  else np.full(values.size, np.nan), gap]
    return np.concatenate(parts)


def sync_fits(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]], shift: int = 0
              ) -> tuple[metrics.SyncFit, metrics.SyncFit, list[metrics.SyncFit]]:
    """In-domain sync of measured lip gaps with the sound, over frames with speech.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.
        shift: frames by which the sound comes early (what passes the end comes in at the start),
            so that pictures in sync are late by as much.

    Returns:
        The fit over all; over all with the sound of the next performance (NaN if there is but
        one); the fit of each.
    """
    scorer = sync.shipped()
    clips = [(gap, np.roll(item.audio[:gap.size * SAMPLES_PER_FRAME], -shift * SAMPLES_PER_FRAME),
              item.speaking()[:gap.size]) for item, gap in zip(items, gaps, strict=True)]
    others = []
    for index, (gap, _, speaking) in enumerate(clips):
        sound = clips[(index + 1) % len(clips)][1]
        size = min(gap.size, sound.size // SAMPLES_PER_FRAME)
        if len(clips) > 1:
            others.append((gap[:size], sound[:size * SAMPLES_PER_FRAME], speaking[:size]))
    return scorer.measure(clips), scorer.measure(others), [scorer.measure([one]) for one in clips]


def closures(item: HeldOut, gap: NDArray[np.float64]) -> tuple[NDArray[np.float64],
                                                               NDArray[np.float64]]:
    """Lip gap in the middle of the phones that need the lips to meet, and of open vowels.

    Args:
        item: a performance whose words are known.
        gap: float64 [n], lip gap by the judge, NaN without a face.

    Returns:
        float64 [c] at /b m p/ and float64 [v] at `OPEN_VOWELS`, NaN where no face was found.
    """
    found: dict[bool, list[float]] = {True: [], False: []}
    for word in item.words:
        for phone in word.phones:
            frame = int((phone.start_s + phone.end_s) / 2 * FRAME_RATE_HZ)
            if phone.name in (*BILABIALS, *OPEN_VOWELS) and frame < gap.size:
                found[phone.name in BILABIALS].append(float(gap[frame]))
    return np.array(found[True]), np.array(found[False])


def closing(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]]) -> float:
    """How surely lips are closer in /b m p/ than in open vowels of the same performance.

    It knows nothing of how wide a system opens the mouth, or of the curves that this project's
    renders move by: only which phone is heard.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.

    Returns:
        1 if each closure is closer than each vowel, 0.5 by chance; mean over performances, NaN
        without any that has both.
    """
    each = [metrics.separation(*closures(item, gap))
            for item, gap in zip(items, gaps, strict=True)]
    known = [value for value in each if np.isfinite(value)]
    return float(np.mean(known)) if known else float('nan')


def summarise(items: Sequence[HeldOut], gaps: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Fit of measured lip gaps to the truth and to the sound, and motion of the mouth in silence.

    Args:
        items: the performances.
        gaps: float64 [n] each, lip gap by the judge, NaN without a face.
    """
    fits = [metrics.lip_fit(gap, item.mouth_open[:gap.size])
            for item, gap in zip(items, gaps, strict=True)]
    truth = [item.mouth_open[:gap.size] for item, gap in zip(items, gaps, strict=True)]
    speaking = [item.speaking()[:gap.size] for item, gap in zip(items, gaps, strict=True)]
    whole = metrics.lip_fit(pooled(gaps), pooled(truth))
    spoken = metrics.lip_fit(
        pooled([np.where(on, gap, np.nan) for on, gap in zip(speaking, gaps, strict=True)]),
        pooled(truth))
    ratios = [metrics.motion_ratio(gap, on) for gap, on in zip(gaps, speaking, strict=True)]
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    heard, other, heard_each = sync_fits(items, gaps)
    return {'correlation': whole.correlation, 'correlation_at_zero': whole.correlation_at_zero,
            'lag_ms': whole.lag_ms, 'correlation_in_speech': spoken.correlation,
            'correlation_of_each': [fit.correlation for fit in fits],
            'lag_ms_of_each': [fit.lag_ms for fit in fits],
            'motion_in_silence': float(np.mean(known)) if known else float('nan'),
            'frames': whole.frames, 'closing': closing(items, gaps),
            'in_domain_sync_confidence': heard.confidence,
            'in_domain_sync_distance': heard.distance,
            'in_domain_sync_offset_ms': heard.offset_ms,
            'in_domain_sync_confidence_other_sound': other.confidence,
            'in_domain_sync_confidence_of_each': [fit.confidence for fit in heard_each],
            'in_domain_sync_offset_ms_of_each': [fit.offset_ms for fit in heard_each],
            'in_domain_sync_distances': heard.distances.tolist(),
            'frames_with_face': float(np.mean([np.isfinite(gap).mean() for gap in gaps]))}


def identity_figures(item: HeldOut, frames: NDArray[np.uint8], judge: judges.IdentityJudge
                     ) -> tuple[float, float]:
    """Median identity distance to the reference of generated and of true pictures."""
    reference = judge.embed(item.reference)
    drawn = metrics.identity_distance(judge.embed_all(frames[::IDENTITY_EVERY_FRAMES]), reference)
    true = metrics.identity_distance(item.true_identity, reference) \
        if item.true_identity.size else np.full(1, np.nan)

    def median(values: NDArray[np.float64]) -> float:
        return float(np.nanmedian(values)) if np.isfinite(values).any() else float('nan')

    return median(drawn), median(true)


def run(options: Options) -> dict[str, Any]:
    """Measure a model on a held-out set.

    Returns:
        Figures, and the series of each performance under ``plot``.

    Raises:
        judges.JudgeMissing: without mediapipe.
        FileNotFoundError: without a set or a model.
    """
    items = load_set(options.source, options.limit)
    player = Player(Setup(options.model, options.backend, options.seed,
                          lookahead_ms=options.lookahead_ms))
    gaps, distances = [], []
    identity = judges.IdentityJudge() if not judges.available()['dlib'] else None
    with judges.MeshJudge() as mesh:
        for item in items:
            frames = generate(item, player)
            gaps.append(mesh.track(frames).lip_gap)
            if identity is not None:
                distances.append(identity_figures(item, frames, identity))
            if options.save is not None:
                _save_video(item, frames, options.save)
            fit = metrics.lip_fit(gaps[-1], item.mouth_open[:gaps[-1].size])
            print(f'{item.name}: correlation {fit.correlation:.2f}, lag {fit.lag_ms:.0f} ms, face '
                  f'in {100 * np.isfinite(gaps[-1]).mean():.0f} % of {len(frames)} frames',
                  file=sys.stderr, flush=True)
    true_gaps = [item.true_gap[:item.frames].astype(np.float64) for item in items]
    result: dict[str, Any] = {
        'benchmark': 'lips', 'model': options.model, 'backend': options.backend,
        'lookahead_ms': options.lookahead_ms, 'performances': [item.name for item in items],
        'seconds': sum(item.frames for item in items) / FRAME_RATE_HZ,
        'judge': 'MediaPipe face mesh 0.10.21, lip gap over eye distance',
        'generated': summarise(items, gaps), 'true_pictures': summarise(items, true_gaps),
        'generated_against_true_pictures': metrics.lip_fit(
            pooled(gaps), pooled(true_gaps)).correlation,
        'aims': {'correlation': AIM_CORRELATION, 'lag_ms': AIM_LAG_MS,
                 'motion_in_silence': AIM_SILENCE_SHARE},
    }
    if distances:
        drawn, true = np.array(distances).T
        result['identity_distance'] = {
            name: float(values[np.isfinite(values)].mean()) if np.isfinite(values).any()
            else float('nan') for name, values in (('generated', drawn), ('true_pictures', true))}
    _print(result)
    result['plot'] = {'tracks': [
        {'generated': gap, 'true pictures': true, 'true': item.mouth_open[:item.frames]}
        for item, gap, true in zip(items, gaps, true_gaps, strict=True)]}
    return result


def _print(result: dict[str, Any]) -> None:
    rows = []
    for key, label, aim in (('correlation', 'correlation with the true opening',
                             f'≥ {AIM_CORRELATION}'),
                            ('correlation_in_speech', 'the same, frames with speech only', ''),
                            ('lag_ms', 'lag (ms, + is late)', f'±{AIM_LAG_MS:.0f}'),
                            ('motion_in_silence', 'motion in silence / in speech',
                             f'< {AIM_SILENCE_SHARE}'),
                            ('closing', 'lips closer in /b m p/ than in open vowels (0.5: '
                             'chance)', ''),
                            ('in_domain_sync_confidence', 'in-domain sync: confidence', ''),
                            ('in_domain_sync_confidence_other_sound',
                             "the same with another performance's sound", '0'),
                            ('in_domain_sync_distance', 'in-domain sync: distance', ''),
                            ('in_domain_sync_offset_ms',
                             'in-domain sync: offset (ms, + is a late picture)', ''),
                            ('frames_with_face', 'frames with a face', '')):
        rows.append([label, number(float(result['generated'][key])),
                     number(float(result['true_pictures'][key])), aim])
    if 'identity_distance' in result:
        row = result['identity_distance']
        rows.append(['identity distance to the reference', number(row['generated']),
                     number(row['true_pictures']), '< 0.48'])
    print(table(['figure', 'generated', 'true pictures, same judge', 'aim'], rows))


def _save_video(item: HeldOut, frames: NDArray[np.uint8], folder: Path) -> None:
    from interactive_avatar.media.video import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / f'{item.name}.mp4', frames.shape[2], frames.shape[1]) as writer:
        writer.write(frames, item.audio[:len(frames) * SAMPLES_PER_FRAME])
