# SPDX-License-Identifier: Apache-2.0
"""Replays a bag's user without a clock: the parts of the graph step by step, on the bag's time.

The live graph answers a little differently each time: recognition is interrupted here or there,
a chunk is late, a reply is drawn. Here the parts that the nodes wrap (listener, reasoning module,
speech queue, stream) are driven in lock step, 160 ms at a time. Within a step everything that
follows is computed to its end before the bag's time goes on, so the same bag, model, seeds and
backend give the same pictures, bit for bit on a CPU, however loaded the machine is.

What computing costs in life is therefore not in the result. One delay is put in its place, from
the end of an utterance to its words (``hearing_s``); whatever a machine's own latency is must be
measured in the live graph.

Runs as a process of its own (``python -m interactive_avatar.nodes.lockstep``).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.serialization import serialize_message

from interactive_avatar.evaluation.bag import (
    LATCHED_TOPICS,
    NS_PER_S,
    RECORDED_TOPICS,
    BagError,
    BagWriter,
    Event,
    Recording,
    Sound,
    read_bag,
)
from interactive_avatar.media.clock import CHUNK_NS, FRAME_NS
from interactive_avatar.media.picture import encode_jpeg
from interactive_avatar.nodes.generator import GeneratorOptions, open_stream
from interactive_avatar.nodes.messages import (
    audio_message,
    camera_info,
    compressed_message,
    to_time,
)
from interactive_avatar.nodes.pacer import Muting
from interactive_avatar.nodes.perception import PerceptionOptions, perception_message
from interactive_avatar.nodes.reasoning import (
    CHUNKS_AHEAD,
    ReasoningOptions,
    intent_message,
    state_message,
)
from interactive_avatar.nodes.speech_queue import Feed, SpeechQueue
from interactive_avatar.paths import resource
from interactive_avatar.perception import (
    AudioGap,
    EndpointOptions,
    Final,
    Listener,
    ListenerOptions,
    Partial,
    SpeechEnded,
    SpeechStarted,
    WhisperRecogniser,
)
from interactive_avatar.reasoning import (
    Activity,
    Callbacks,
    Intent,
    ModuleOptions,
    Phase,
    ReasoningModule,
    State,
)

# From the end of an utterance to its words, as the live graph takes on two idle cores.
HEARING_S = 0.4
# Before the first thing of the user, so that the avatar is seen at rest.
LEAD_IN_S = 1.0
# After the last thing of the user: at least, and at most while a turn goes on.
LINGER_S, LONGEST_LINGER_S = 2.0, 30.0
# Patience with one step's computing, on the wall's clock; it only guards against a hang.
SETTLE_TIMEOUT_S = 120.0
NAMESPACE = 'avatar'
# An event of perception that carries presence and no speech (UserPerception.NONE).
PRESENCE_EVENT = 0
Options = TypeVar('Options')


class LockstepError(RuntimeError):
    """A replay that cannot be carried out; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """Options of the parts, as the nodes have them.

    Attributes:
        perception: of the listener.
        reasoning: of the reasoning module.
        generator: of the stream.
        seed: of replies and of the voice.
        hearing_s: from the end of an utterance to its words, in the bag's time.
    """

    perception: PerceptionOptions
    reasoning: ReasoningOptions
    generator: GeneratorOptions
    seed: int = 0
    hearing_s: float = HEARING_S


def load_settings(config: Path, overrides: dict[str, Any], seed: int,
                  hearing_s: float) -> Settings:
    """Read the options from a parameter file.

    Args:
        config: YAML as the nodes take it.
        overrides: values that go before the file, as ``{'generator.model': ...}``.
        seed: of replies and voice.
        hearing_s: see `Settings`.

    Raises:
        LockstepError: on an unknown node or parameter, or one that makes answers vary.
    """
    tree = yaml.safe_load(config.read_text(encoding='utf-8')) or {}
    kinds: dict[str, Any] = {'perception': PerceptionOptions, 'reasoning': ReasoningOptions,
                             'generator': GeneratorOptions}
    values: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for key, part in tree.items():
        name = key.rsplit('/', 1)[-1]
        if name in values and isinstance(part, dict):
            values[name] |= part.get('ros__parameters', {})
    for key, value in overrides.items():
        node, _, parameter = key.partition('.')
        if node == 'web':
            continue
        if node not in values or not parameter:
            raise LockstepError(f'parameter {key!r} names no part of this replay: write '
                                f'NODE.PARAMETER with a node of {", ".join(values)}')
        values[node][parameter] = value
    built = {}
    for name, kind in kinds.items():
        known = {field.name for field in dataclasses.fields(kind)}
        unknown = sorted(set(values[name]) - known)
        if unknown:
            raise LockstepError(f'{name} has no parameter {unknown[0]!r}; it has '
                                f'{", ".join(sorted(known))}')
        built[name] = kind(**values[name])
    if built['reasoning'].reasoner != 'embedded':
        raise LockstepError(f'reasoner {built["reasoning"].reasoner!r} does not answer the same '
                            f'twice: replay with -p reasoning.reasoner=embedded, or live, without '
                            f'--deterministic')
    return Settings(built['perception'], built['reasoning'], built['generator'], seed, hearing_s)


def _shared(kind: Callable[..., Options], options: Any, **more: Any) -> Options:
    """Options of a part, of the node's parameters that have the same names."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return kind(**(given | {key: value for key, value in more.items() if key in names}))


class Lockstep:
    """The avatar's parts on the bag's time; see the module.

    Args:
        settings: options of the parts.
        writer: takes what the avatar says and shows.
        namespace: of the topics written.
        start_ns: the time line's origin, the bag's clock.
    """

    def __init__(self, settings: Settings, writer: BagWriter, namespace: str,
                 start_ns: int) -> None:
        self.settings = settings
        self.now_ns = start_ns
        self._writer = writer
        self._namespace = f'/{namespace.strip("/")}/'
        for name, kind in RECORDED_TOPICS.items():
            writer.add_topic(self._topic(name), kind, latched=name in LATCHED_TOPICS)
        self._stream, _ = open_stream(settings.generator)
        self._queue = SpeechQueue(settings.generator.prebuffer_chunks)
        self._muting = Muting()
        self._listener = Listener(
            _shared(ListenerOptions, settings.perception,
                    endpoint=_shared(EndpointOptions, settings.perception)),
            open_recogniser=lambda: WhisperRecogniser(
                settings.perception.model or None, language=settings.perception.language,
                threads=settings.perception.threads))
        # States and intents come from the module's thread; they are taken when it has settled.
        self._told: deque[State | Intent] = deque()
        self._module = ReasoningModule.open(
            _shared(ModuleOptions, settings.reasoning, seed=settings.seed),
            Callbacks(self._told.append, self._told.append, self._warn),
            clock=lambda: self.now_ns / NS_PER_S,
            now=lambda: datetime.fromtimestamp(self.now_ns / NS_PER_S, timezone.utc))
        self._words: deque[tuple[int, Final]] = deque()
        self._feed = Feed(self._queue, self._stream)
        self._prompt = self._next_prompt = ''
        self._listening_turn = 0
        self.warnings: list[str] = []
        self.slots = 0
        self.chunk_digests: list[str] = []
        self.frames_digest, self.audio_digest = hashlib.sha256(), hashlib.sha256()

    def start(self) -> None:
        """Load the voice and establish the first state."""
        self._module.start()
        self._settle()

    def close(self) -> None:
        """Release the parts."""
        self._listener.close()
        self._module.close()

    # What the user does ---------------------------------------------------------------------

    def hear(self, sound: Sound) -> None:
        """Give the listener the next piece of the user's sound, and finish what follows."""
        self.now_ns = sound.arrival_ns
        self._write('user/audio', audio_message(
            sound.samples, sound.stamp_ns, sequence=sound.sequence, turn_id=sound.turn_id,
            last=sound.last, source='user'))
        if not sound.samples.size:
            return
        self._heard(self._listener.push(sound.samples, sound.stamp_ns))
        # Partial results are wanted only while the recogniser is idle, so it always is by the
        # next piece: what is recognised depends on the sound alone.
        self._heard(self._listener.wait(SETTLE_TIMEOUT_S))

    def type(self, event: Event) -> None:
        """Give the module a typed line."""
        from std_msgs.msg import String

        self.now_ns = event.arrival_ns
        text = str(event.fields.get('data', ''))
        self._write('user/text', String(data=text))
        if text.strip():
            self._module.on_text(text)
            self._settle()

    def see(self, event: Event) -> None:
        """Tell the module whether somebody is there, as it was perceived when recorded."""
        self.now_ns = event.arrival_ns
        self._module.on_presence(bool(event.fields.get('face_present')))
        self._settle()

    def _heard(self, events: Sequence[Any]) -> None:
        for event in events:
            if isinstance(event, AudioGap):
                self._warn(f'user/audio: {event}')
            elif isinstance(event, Final):
                self._words.append((self.now_ns + int(self.settings.hearing_s * NS_PER_S), event))
            else:
                self._perceive(event)

    def _perceive(self, event: SpeechStarted | SpeechEnded | Partial | Final) -> None:
        self._write('perception', perception_message(
            event, self._listener.speaking, self.settings.perception.language))
        if isinstance(event, SpeechStarted):
            self._module.on_speech_started()
        elif isinstance(event, Partial):
            self._module.on_partial(event.text)
        elif isinstance(event, SpeechEnded):
            self._module.on_speech_ended()
        else:
            self._module.on_words(event.text)
        self._settle()

    # What the avatar does -------------------------------------------------------------------

    def step(self, now_ns: int) -> None:
        """Let the bag's time reach ``now_ns``, and make the chunk of the 160 ms that begin."""
        while self._words and self._words[0][0] <= now_ns:
            due_ns, words = self._words.popleft()
            self.now_ns = max(self.now_ns, due_ns)
            self._perceive(words)
        self.now_ns = now_ns
        self._module.tick()
        self._settle()
        if self._pass_on():
            for _ in range(CHUNKS_AHEAD):
                self._pass_on()
        self._settle()
        self._make()

    @property
    def resting(self) -> bool:
        """Whether nothing is said, shown or waited for."""
        state = self._module.state
        return not self._words and state.phase is Phase.STABLE \
            and state.activity is Activity.IDLE and not self._queue.newest_turn

    def _settle(self) -> None:
        if not self._module.settle(SETTLE_TIMEOUT_S):
            raise LockstepError(f'an answer was not ready after {SETTLE_TIMEOUT_S:.0f} s of '
                                f'computing: does the voice hang?')
        while self._told:
            told = self._told.popleft()
            message: Any = intent_message(told) if isinstance(told, Intent) \
                else state_message(told)
            message.header.stamp = to_time(self.now_ns)
            if isinstance(told, Intent):
                self._write('intent', message)
            else:
                self._write('state', message)
                self._follow(told, message.next_prompt)

    def _follow(self, state: State, next_prompt: str) -> None:
        """What the generator node does on a state."""
        if state.activity in (Activity.LISTENING, Activity.THINKING):
            turn_id = state.turn_id
            if state.activity is Activity.LISTENING:
                turn_id = max(turn_id, self._queue.newest_turn)
            self._queue.abort(turn_id)
            self._muting.mute(turn_id)
        if state.prompt and state.prompt != self._prompt:
            self._prompt = state.prompt
            self._stream.switch(state.prompt)
        if next_prompt and next_prompt != self._next_prompt:
            self._next_prompt = next_prompt
            self._stream.prepare(next_prompt)

    def _pass_on(self) -> bool:
        """Move the next piece of speech to the generator; True if a turn starts with it."""
        piece = self._module.pull()
        if piece is None:
            return False
        self._write('speech', audio_message(
            piece.samples, self.now_ns, sequence=piece.sequence, turn_id=piece.turn_id,
            last=piece.last, source='voice'))
        complaint = self._queue.push(piece.turn_id, piece.sequence, piece.samples, piece.last)
        if complaint:
            self._warn(complaint)
        return piece.sequence == 0

    def _make(self) -> None:
        generator = self.settings.generator
        speech = self._feed.take()
        chunk = self._stream.step(speech.samples)
        source = self._feed.heard(speech)
        audio = self._muting.audible(chunk.audio, source.turn_id)
        # As the pacer does: made ahead, handed out a little before its time.
        arrival_ns = self.now_ns + generator.ahead_chunks * CHUNK_NS
        stamp_ns = arrival_ns + int(generator.lead_ms * 1e6)
        self._write('audio', audio_message(
            audio, stamp_ns, sequence=self.slots, turn_id=source.turn_id, last=source.last,
            source='avatar'), arrival_ns)
        for number, frame in enumerate(chunk.frames):
            frame_ns = stamp_ns + number * FRAME_NS
            self._write('image_raw/compressed', compressed_message(
                encode_jpeg(frame, generator.jpeg_quality), frame_ns), arrival_ns)
            self._write('camera_info', camera_info(frame.shape[0], frame.shape[1], frame_ns),
                        arrival_ns)
        self._digest(chunk.frames, audio)
        self.slots += 1
        if self.slots % 6 == 0:
            self._report(arrival_ns)

    def _digest(self, frames: NDArray[np.uint8], audio: NDArray[np.int16]) -> None:
        pixels, samples = np.ascontiguousarray(frames).tobytes(), audio.astype('<i2').tobytes()
        self.frames_digest.update(pixels)
        self.audio_digest.update(samples)
        self.chunk_digests.append(hashlib.sha256(pixels + samples).hexdigest()[:16])

    def _report(self, arrival_ns: int) -> None:
        values: dict[str, object] = {'slots': self.slots, 'chunks_late': 0,
                                     **self._queue.figures()}
        redundancy = getattr(getattr(self._stream, 'memory', None), 'redundancy', None)
        if redundancy is not None:
            values['memory_redundancy'] = f'{float(redundancy):.6f}'
        message = DiagnosticArray(status=[DiagnosticStatus(
            level=DiagnosticStatus.OK, name=f'{self._namespace.strip("/")}/generator',
            message='active', hardware_id='avatar_bringup',
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])])
        message.header.stamp = to_time(arrival_ns)
        self._write('/diagnostics', message, arrival_ns)

    # Writing --------------------------------------------------------------------------------

    def _warn(self, text: str) -> None:
        self.warnings.append(text)

    def _topic(self, name: str) -> str:
        return name if name.startswith('/') else self._namespace + name

    def _write(self, name: str, message: Any, arrival_ns: int | None = None) -> None:
        self._writer.write(self._topic(name), self.now_ns if arrival_ns is None else arrival_ns,
                           serialize_message(message))


def what_the_user_does(recording: Recording) -> list[tuple[int, int, Any]]:
    """The user's part of a session in order of time: (arrival in ns, kind, item).

    Kinds are 0 sound, 1 typed text, 2 presence (perceptions that carry no speech; speech is
    perceived anew).
    """
    seen = [event for event in recording.perceptions
            if event.fields.get('event') == PRESENCE_EVENT]
    items: list[tuple[int, int, Any]] = [
        *((item.arrival_ns, 0, item) for item in recording.user_audio),
        *((item.arrival_ns, 1, item) for item in recording.texts),
        *((item.arrival_ns, 2, item) for item in seen)]
    return sorted(items, key=lambda entry: entry[:2])


def replay(recording: Recording, settings: Settings, out: Path, namespace: str = NAMESPACE,
           progress: Callable[[float, float], None] | None = None) -> dict[str, Any]:
    """Replay the user of a session at the avatar, and record it.

    Args:
        recording: the session.
        settings: options of the parts.
        out: bag folder to create.
        namespace: of the topics written.
        progress: called with (seconds done, seconds in all) now and then.

    Returns:
        ``chunks``, ``frames_sha256``, ``audio_sha256``, ``chunk_digests`` and ``warnings``.

    Raises:
        LockstepError: if the session has no user, or a part hangs.
        BagError: if the bag exists.
    """
    events = deque(what_the_user_does(recording))
    if not events:
        raise LockstepError(f'{recording.path} holds nothing of a user below '
                            f'{recording.namespace}: no sound on user/audio, no line on '
                            f'user/text; record those too')
    start_ns = events[0][0] - int(LEAD_IN_S * NS_PER_S)
    user_end_ns = events[-1][0]
    custom = {'recorder': 'avatar replay --deterministic', 'replay_of': recording.path.name,
              'seed': str(settings.seed), 'generator_seed': str(settings.generator.seed),
              'model': settings.generator.model, 'backend': settings.generator.backend,
              'threads': str(settings.generator.threads), 'hearing_s': str(settings.hearing_s)}
    with BagWriter(out, custom) as writer:
        parts = Lockstep(settings, writer, namespace, start_ns)
        try:
            parts.start()
            takers = (parts.hear, parts.type, parts.see)
            for at_ns in _ticks(start_ns):
                while events and events[0][0] <= at_ns:
                    _, kind, item = events.popleft()
                    takers[kind](item)
                parts.step(at_ns)
                if progress and parts.slots % 25 == 0:
                    progress((at_ns - start_ns) / NS_PER_S,
                             (user_end_ns - start_ns) / NS_PER_S + LINGER_S)
                over_s = (at_ns - user_end_ns) / NS_PER_S
                if (over_s > LINGER_S and parts.resting) or over_s > LONGEST_LINGER_S:
                    break
        finally:
            parts.close()
    return {'chunks': parts.slots, 'frames_sha256': parts.frames_digest.hexdigest(),
            'audio_sha256': parts.audio_digest.hexdigest(),
            'chunk_digests': parts.chunk_digests, 'warnings': parts.warnings,
            'settings': {**custom, 'namespace': namespace}}


def _ticks(start_ns: int) -> Iterator[int]:
    at_ns = start_ns
    while True:
        yield at_ns
        at_ns += CHUNK_NS


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; started by `interactive_avatar.evaluation.replay`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path)
    parser.add_argument('--out', type=Path, required=True, help='bag folder to create')
    parser.add_argument('--digests', type=Path, required=True, help='JSON file to write')
    parser.add_argument('--config', default='config/avatar.yaml')
    parser.add_argument('--recorded-namespace')
    parser.add_argument('--namespace', default=NAMESPACE)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--hearing', type=float, default=HEARING_S)
    parser.add_argument('--overrides', type=json.loads, default={})
    args = parser.parse_args(argv)

    def progress(done_s: float, all_s: float) -> None:
        print(json.dumps({'event': 'progress', 'done_s': done_s, 'all_s': all_s}), flush=True)

    try:
        settings = load_settings(resource(args.config), args.overrides, args.seed, args.hearing)
        found = replay(read_bag(args.bag, args.recorded_namespace), settings, args.out,
                       args.namespace, progress)
    except (BagError, LockstepError, OSError, ValueError, RuntimeError) as error:
        print(f'{error}', file=sys.stderr)
        return 2
    args.digests.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
