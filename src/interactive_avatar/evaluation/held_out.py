# SPDX-License-Identifier: Apache-2.0
"""Held-out sets: performances of people, voices and sentences never trained on.

A *held-out set* is a folder of performances of test people, voices and sentences, each with its
sound, a reference picture, its prompts, the true opening of the mouth and, as a ceiling, the lip
gap that the same judge measures on the true pictures. One ships with the package; `make_set`
composes another (needs the training assets).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.model import frechet
from interactive_avatar.media.audio import decode_flac, encode_flac
from interactive_avatar.media.clock import FRAME_RATE_HZ, FRAMES_PER_CHUNK, SAMPLES_PER_FRAME
from interactive_avatar.media.picture import decode_image
from interactive_avatar.training.speech.align import Phone, Word

if TYPE_CHECKING:
    from interactive_avatar.training.performances import Performance
    from interactive_avatar.training.speech.align import Aligner
    from interactive_avatar.training.speech.library import SpeechLibrary

SHIPPED_SET = Path(__file__).parent / 'heldout'
SET_SUFFIX = '.npz'
# Speech goes on through closures inside words; as in `session`.
SPEECH_HANGOVER_FRAMES = 6
VOICED_RMS = 200.0
IDENTITY_EVERY_FRAMES = 25
LOOK_EVERY_FRAMES = 10
FIRST_TEST_SEED = 9_000
LEAST_SPEECH_SHARE = 0.4


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

    @cached_property
    def file_name(self) -> str:
        """A name for what is found on this performance: another sound, picture, mouth or prompts
        under the same name give another one."""
        found = hashlib.sha256(self.audio.tobytes() + self.reference.tobytes()
                               + self.mouth_open.astype(np.float16).tobytes()
                               + '\n'.join(self.prompts).encode())
        return f'{self.name}_{found.hexdigest()[:8]}'

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


def make_set(folder: Path, people: Path, speech: Path, count: int, seconds: float,
             side_px: int = 256) -> list[Path]:
    """Compose, render and judge performances of the test split.

    Args:
        folder: where to write them.
        people: baked people.
        speech: packed speech library (``speech.npz``), with its sound and voices beside it.
        count: how many, each of another person.
        seconds: length of each.
        side_px: of the pictures, those of the models that are to be measured: references and
            what is found on the truth are of this size.

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
    renderer = Renderer(people, size=side_px)
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
