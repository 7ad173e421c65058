# SPDX-License-Identifier: Apache-2.0
"""The reasoning node: what the user says in; intent, state and the avatar's speech out.

A thin adapter over `reasoning.module.ReasoningModule`, which thinks and speaks in threads of its
own. A paced thread of this node fetches the speech, a chunk every 160 ms. In telepresence
`reasoning.telepresence.Telepresence` takes its place: an operator's sound on ``user/audio`` is
passed on as it comes.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import rclpy
from avatar_bringup.msg import AudioChunk, AvatarIntent, AvatarState, UserPerception
from std_msgs.msg import String

from interactive_avatar.media.clock import CHUNK_MS
from interactive_avatar.nodes import qos
from interactive_avatar.nodes.base import AvatarNode, be_nice, run_node
from interactive_avatar.nodes.diagnostics import WARN
from interactive_avatar.nodes.messages import (
    ACTIVITIES,
    PHASES,
    audio_message,
    samples_of,
    to_ns,
)
from interactive_avatar.nodes.options import option
from interactive_avatar.perception import SileroVoiceActivity
from interactive_avatar.reasoning import (
    Callbacks,
    CycleOptions,
    Intent,
    ModuleOptions,
    Perceived,
    ReasoningModule,
    SpokenChunk,
    State,
    Telepresence,
    open_embedded,
)

CHUNK_S = CHUNK_MS / 1000
TICK_S = 0.1
MAX_AGO_S = 10.0
# Sent with the first chunk of a turn: the generator takes two at once, so as not to wait for its
# lookahead; its clock and this node's run side by side, and one more keeps jitter between them
# from tearing a hole into a word.
CHUNKS_AHEAD = 2


@dataclass(frozen=True)
class ReasoningOptions:
    """Parameters of the reasoning node."""

    autostart: bool = option(True, 'configure and activate without being asked')
    mode: str = option('companion', 'companion converses; telepresence lets an operator speak '
                                    'through the avatar', choices=('companion', 'telepresence'))
    persona: str = option('config/persona.yaml', 'who the avatar is and what it knows to say')
    reasoner: str = option('embedded', 'what thinks', choices=('embedded', 'llm'))
    voice: str = option('piper', 'what speaks', choices=('piper', 'espeak'))
    voice_model: str = option('', 'file of another piper voice; empty for the packaged one')
    voice_speed: float = option(1.0, 'speed of speaking, 1 is the voice as it is',
                                minimum=0.5, maximum=2.0)
    llm_url: str = option('http://localhost:11434/v1', 'address of the OpenAI-compatible server; '
                                                       'its key comes from the environment only')
    llm_model: str = option('llama3.2', 'name of the language model at that server')
    llm_timeout_s: float = option(4.0, 'patience with the language model before the embedded '
                                       'reasoner answers, s', minimum=0.1, maximum=120.0)
    playout_s: float = option(0.6, 'time from the speech topic to the ear, s: what lies between '
                                   'this node and the speaker', minimum=0.0, maximum=10.0)
    greet: bool = option(True, 'greet who comes and see off who leaves, where faces are perceived')
    react: bool = option(True, "mirror the user's smile, nod at their pauses, meet their eyes")
    nice: int = option(0, 'scheduling priority, 19 is lowest', minimum=-20, maximum=19)


def cycle_options(llm_timeout_s: float) -> CycleOptions:
    """Time-outs of the state cycle that leave a language model its time.

    An answer that comes after the cycle has given up thinking is dropped, and the embedded
    reasoner's, which begins when the patience with the model ends, would be dropped with it.
    """
    return CycleOptions(thinking_s=max(CycleOptions.thinking_s, 2 * llm_timeout_s + 4.0))


def state_message(state: State) -> AvatarState:
    """A state as a message, without its stamp."""
    expected = state.stable_prompt if state.stable_prompt != state.prompt else ''
    return AvatarState(
        turn_id=state.turn_id, phase=PHASES.index(state.phase.value),
        activity=ACTIVITIES.index(state.activity.value), prompt=state.prompt,
        stable_prompt=state.stable_prompt, next_prompt=expected)


def intent_message(intent: Intent) -> AvatarIntent:
    """A turn that begins as a message, without its stamp."""
    turn = intent.turn
    message = AvatarIntent(
        turn_id=intent.turn_id, user_text=intent.utterance, intent=turn.intent,
        confidence=float(turn.confidence), emotion=turn.emotion, action=turn.action,
        slot_names=list(turn.slots), slot_values=[str(value) for value in turn.slots.values()],
        speech=turn.speech, action_prompt=turn.action_prompt, stable_prompt=turn.stable_prompt,
        latency_s=float(intent.latency_s))
    message.header.frame_id = turn.reasoner
    return message


def perceived_of(message: UserPerception) -> Perceived:
    """What a message says of the user's face; what its source does not know stays open."""
    camera = message.source == 'camera'
    unknown = camera and message.engagement_level == UserPerception.ENGAGEMENT_UNKNOWN
    return Perceived(
        present=None if unknown and not message.face_present else message.face_present,
        source=message.source, people=message.people,
        # Only a camera sees that somebody does not look.
        looking=message.looking if camera else True if message.looking else None,
        engaged=float(message.engagement) if camera else math.nan,
        expression=message.expression, gesture=message.gesture)


class ReasoningNode(AvatarNode):
    """Publishes intent, state and speech; see the module."""

    options_class = ReasoningOptions
    options: ReasoningOptions

    def __init__(self, **arguments: Any) -> None:
        super().__init__('reasoning', **arguments)
        self._module: ReasoningModule | None = None
        self._remote: Telepresence | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def configure(self) -> None:
        """Load persona, reasoner and voice, make the topics."""
        be_nice(self, self.options.nice)
        self._state = self.publish_to(AvatarState, 'state', qos.STATE)
        self._intent = self.publish_to(AvatarIntent, 'intent', qos.EVENT)
        self._speech = self.publish_to(AudioChunk, 'speech', qos.AUDIO)
        self.listen_to(String, 'user/text', self._on_text, qos.EVENT)
        if self.options.mode == 'telepresence':
            self._remote = self._open_remote()
            self.listen_to(AudioChunk, 'user/audio', self._on_operator, qos.SENSOR_AUDIO)
            self.diagnostics.watch(self._remote.figures)
            return
        self._module = self._open()
        self.listen_to(UserPerception, 'perception', self._on_perception, qos.EVENT)
        self.diagnostics.watch(self._module.figures)

    def _open(self) -> ReasoningModule:
        options = self.options
        return ReasoningModule.open(
            ModuleOptions(
                persona=options.persona, reasoner=options.reasoner, voice=options.voice,
                voice_model=options.voice_model, voice_speed=options.voice_speed,
                llm_url=options.llm_url, llm_model=options.llm_model,
                llm_timeout_s=options.llm_timeout_s, playout_s=options.playout_s,
                greet=options.greet, react=options.react,
                cycle=cycle_options(options.llm_timeout_s)),
            Callbacks(self._publish_state, self._publish_intent, self._complain, self._wake.set),
            clock=self.seconds,
            now=lambda: datetime.fromtimestamp(self._now().nanoseconds / 1e9))

    def _open_remote(self) -> Telepresence:
        return Telepresence(
            open_embedded(self.options.persona), SileroVoiceActivity(), self._publish_speech,
            Callbacks(self._publish_state, self._publish_intent, self._complain),
            self.options.playout_s)

    def activate(self) -> None:
        """Start to think and to speak, or to pass on."""
        self._stopping.clear()
        self._wake.clear()
        loop = self._speak
        if self._remote is not None:
            self._remote.start()
            loop = self._tick_remote
        else:
            assert self._module is not None
            self._module.start()
        self._thread = threading.Thread(target=loop, name='speech pacer', daemon=True)
        self._thread.start()

    def deactivate(self) -> None:
        """Fall silent; what is heard is ignored."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None
        # After a signal nothing can be published, and the module is about to be closed.
        if self._module is not None and rclpy.ok(context=self.context):
            self._module.hush()

    def cleanup(self) -> None:
        """End the voice's process and the threads."""
        if self._module is not None:
            self._module.close()
            self._module = None
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    # What arrives ---------------------------------------------------------------------------

    @property
    def _listening(self) -> ReasoningModule | None:
        return self._module if self._thread is not None else None

    def _on_perception(self, message: UserPerception) -> None:
        module = self._listening
        if module is None:
            return
        if message.event == UserPerception.SPEECH_STARTED:
            module.on_speech_started()
        elif message.event == UserPerception.PARTIAL:
            module.on_partial(message.text, not message.speaking)
        elif message.event == UserPerception.SPEECH_ENDED:
            ago_s = (self._now().nanoseconds - to_ns(message.header.stamp)) / 1e9
            # Sound from a source without this machine's clock ended just now, for all we know.
            module.on_speech_ended(ago_s if 0.0 < ago_s < MAX_AGO_S else 0.0)
        elif message.event == UserPerception.FINAL:
            module.on_words(message.text)
        else:
            module.on_perceived(perceived_of(message))

    def _on_text(self, message: String) -> None:
        if not message.data.strip():
            raise ValueError('an empty line was typed, it is ignored: type a sentence')
        if self._listening is not None:
            self._listening.on_text(message.data)
        elif self._remote is not None and self._thread is not None:
            self._remote.on_text(message.data)

    def _on_operator(self, message: AudioChunk) -> None:
        samples = samples_of(message)
        if self._remote is not None and self._thread is not None:
            self._remote.on_sound(samples)

    # What leaves ----------------------------------------------------------------------------

    def _now(self) -> Any:
        return self.get_clock().now()

    def _publish_state(self, state: State) -> None:
        message = state_message(state)
        message.header.stamp = self._now().to_msg()
        self._state.publish(message)

    def _publish_intent(self, intent: Intent) -> None:
        message = intent_message(intent)
        message.header.stamp = self._now().to_msg()
        self._intent.publish(message)

    def _complain(self, text: str) -> None:
        self.report('reasoning', text, WARN)

    def _speak(self) -> None:
        next_s = self.seconds()
        while True:
            if self.wait_until(self._wake, next_s):
                # A turn begins to sound: its time starts now, not with the next tick.
                self._wake.clear()
                next_s = self.seconds()
            if self._stopping.is_set():
                return
            next_s += CHUNK_S
            now_s = self.seconds()
            if now_s > next_s or next_s - now_s > 2 * CHUNK_S:
                # Held up for more than a chunk: pieces are spread over the coming time. Or the
                # clock was set.
                next_s = now_s + CHUNK_S
            try:
                first = self._pass_on()
                if first:
                    for _ in range(CHUNKS_AHEAD):
                        self._pass_on()
            except Exception as error:
                self._report_speech(error)

    def _tick_remote(self) -> None:
        while not self._stopping.wait(TICK_S):
            try:
                if self._remote is not None:
                    self._remote.tick()
            except Exception as error:
                self._report_speech(error)

    def _report_speech(self, error: Exception) -> None:
        self.report('speech', f'speech could not be sent: {type(error).__name__}: {error}')

    def _pass_on(self) -> bool:
        """Send the next piece, if there is one; True if a turn starts with it."""
        module = self._module
        piece = module.pull() if module is not None else None
        if piece is None:
            return False
        self._publish_speech(piece)
        return piece.sequence == 0

    def _publish_speech(self, piece: SpokenChunk) -> None:
        self._speech.publish(audio_message(
            piece.samples, self._now().nanoseconds, sequence=piece.sequence,
            turn_id=piece.turn_id, last=piece.last, source='voice'))


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop."""
    return run_node(ReasoningNode, args)


if __name__ == '__main__':
    sys.exit(main())
