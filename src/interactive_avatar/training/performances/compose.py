# SPDX-License-Identifier: Apache-2.0
"""Compose performances: speech, expressions, gaze, actions and worlds, frame by frame.

A performance alternates stable segments (silent, a stable prompt) and action segments (most of
them with speech, an action prompt), as the state cycle of the reasoning does at run time. All
prompts switch at chunk boundaries; the motion begins at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.prompts import (
    ACTION_SLOTS,
    EMOTIONS,
    EXPRESSIONS,
    GAZES,
    WorldState,
    action_prompt,
    after,
    prompt_id,
    prompt_table,
    stable_prompt,
    trained_variants,
)
from interactive_avatar.media.clock import FRAME_RATE_HZ, FRAMES_PER_CHUNK, SAMPLES_PER_FRAME
from interactive_avatar.media.mel import MEL_BANDS
from interactive_avatar.training.performances.motion import (
    Floats,
    Track,
    add,
    blinks,
    bob,
    oscillation,
    spring,
    sway,
)
from interactive_avatar.training.performances.mouth import mouth_opening
from interactive_avatar.training.speech.curves import MOUTH_UNITS, PAIRED_UNITS
from interactive_avatar.training.speech.library import (
    MEL_FRAMES_PER_FRAME,
    SpeechLibrary,
    Utterance,
)
from interactive_avatar.training.units import UNITS

# A whole number of chunks and of the latent windows that training cuts.
LENGTH_MULTIPLE_FRAMES: Final = 20
HELD_OUT_MODULUS: Final = 10
HELD_OUT_REMAINDER: Final = 9

# Eye rotation of a full eyeLook unit, radians, measured on the base mesh.
EYE_YAW_RANGE_RAD: Final = 0.38
EYE_UP_RANGE_RAD: Final = 0.19
EYE_DOWN_RANGE_RAD: Final = 0.28
EYE_MOST: Final = 0.85
SWING_FOLLOWED: Final = 0.6
# Where the line of sight goes for each gaze, (yaw, pitch) in radians, + is picture right and up,
# and the share of it that the head takes.
GAZE_RAD: Final = {'user': (0.0, 0.0), 'left': (-0.68, 0.0), 'right': (0.68, 0.0),
                   'up': (0.0, 0.46), 'down': (0.0, -0.5)}
GAZE_HEAD_SHARE: Final = 0.64
# A prompt does not tell the side, and two sides that are equally likely are learnt as the blur
# between them: leaving goes to picture right, and so does what a head does first.
AWAY_M: Final = 0.75
FIRST_SIDE: Final = 1.0
STEP_FRAMES: Final = 25
# A prompt is to be seen in the chunk that is the first to have it (Cache-Switching), so
# motion begins with it, and a face that is to change has most of it done by the chunk's end.
FACE_FRAMES: Final = 5
# How long a face takes to what the world after an action has, which is mostly back to rest.
FACE_BACK_S: Final = (0.2, 0.28)
OBJECT_FRAMES: Final = 12
OBJECT_DELAY_FRAMES: Final = 3
CANONICAL_SHARE: Final = 0.35
# Prompts that do not name what is worn, in training: so that it is memory that keeps it on, and
# only a prompt to take it off that takes it off. How often a segment falls silent about it, and
# one that leaves the view; how often it stays silent.
UNTOLD_SHARE: Final = 0.15
UNTOLD_AWAY_SHARE: Final = 0.5
UNTOLD_AGAIN_SHARE: Final = 0.6
# In training people leave the view more often, and longer, than chance would have it, and move
# their heads more: turned and tilted faces are what is hardest to draw. Faces move more often too.
TRAINING_WEIGHTS: Final = {'step_out': 2.2, 'look': 6.5, 'tilt_head': 4.0, 'shake_head': 2.4,
                           'nod': 1.8, 'smile': 2.0, 'frown': 1.5, 'look_surprised': 1.5,
                           'raise_eyebrows': 2.5}
LONG_AWAY_SHARE: Final = 0.4
LONG_CHUNKS: Final = (30, 60)
# Of the performances for training, so many are of somebody who wears something, leaves for longer
# than the short memory lasts, and comes back: by chance one chunk in two hundred shows what only
# the long memory can tell, too few to learn it from. How often prompts fall silent about it, how
# many chunks are played before, and how many away.
ABSENCE_SHARE: Final = 0.25
ABSENCE_UNTOLD_SHARE: Final = 0.8
ABSENCE_BEFORE_CHUNKS: Final = (8, 25)
ABSENCE_CHUNKS: Final = (16, 56)

# How often each action is drawn, given that it is possible in the world.
_WEIGHTS: Final = {
    'talk': 6.0, 'nod': 1.2, 'shake_head': 1.2, 'smile': 1.0, 'frown': 0.9, 'look_surprised': 0.9,
    'look': 2.6, 'tilt_head': 1.4, 'raise_eyebrows': 1.0, 'think': 1.0, 'lean_closer': 1.0,
    'wear': 2.0, 'remove': 2.4, 'step_out': 1.0, 'come_back': 1.0, 'listen': 1.0}
_SPEECH_CHANCE: Final = {
    'talk': 1.0, 'nod': 0.7, 'shake_head': 0.7, 'smile': 0.6, 'frown': 0.6, 'look_surprised': 0.6,
    'look': 0.6, 'tilt_head': 0.5, 'raise_eyebrows': 0.6, 'think': 0.4, 'lean_closer': 0.6,
    'wear': 0.6, 'remove': 0.6, 'step_out': 0.4, 'come_back': 0.6, 'listen': 0.0}

# Faces: unit (Left and Right where paired) and level at full expression.
_FACES: Final[dict[str, dict[str, float]]] = {
    'neutral': {'browInnerUp': .05, 'mouthSmile': .08},
    'smile': {'mouthSmile': .78, 'cheekSquint': .5, 'eyeSquint': .22, 'mouthDimple': .2,
              'browInnerUp': .08, 'browOuterUp': .1},
    'frown': {'mouthFrown': 1.0, 'browDown': 1.0, 'mouthShrugLower': .45, 'eyeSquint': .25,
              'noseSneer': .25, 'mouthSmile': -.08, 'browInnerUp': -.05},
    'sad': {'mouthFrown': .8, 'browInnerUp': .95, 'mouthShrugLower': .25, 'eyeSquint': .08,
            'mouthSmile': -.08},
    'surprise': {'browInnerUp': .9, 'browOuterUp': 1.0, 'eyeWide': .95, 'mouthSmile': -.06},
    'agape': {'jawOpen': .34, 'mouthFunnel': .25},
    'brows': {'browInnerUp': .95, 'browOuterUp': 1.0, 'eyeWide': .75},
    'think': {'browDown': .4, 'browInnerUp': .1, 'mouthPress': .35, 'mouthRight': .4,
              'eyeSquint': .2, 'mouthSmile': -.06},
    'attention': {'browInnerUp': .12, 'browOuterUp': .1, 'mouthSmile': .08},
}
_EMOTION_FACE: Final = {'happy': ('smile', .8), 'sad': ('sad', 1.0), 'surprised': ('surprise', .8)}


@dataclass(frozen=True)
class Event:
    """An action in a performance: name, frames [start, end), slots."""

    action: str
    start_frame: int
    end_frame: int
    slots: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Placed:
    """An utterance in a performance: number in the library, first frame."""

    utterance: int
    start_frame: int


@dataclass
class Performance:
    """What one person says and does.

    Attributes:
        identity: who.
        split: train or test.
        units: float32 [n, 52], 0 to 1, in the order of `training.units.UNITS`.
        head: float32 [n, 6]: yaw (+ turns to picture right), pitch (+ up), roll (+ top toward
            picture right) in radians; x (+ picture right), y (+ up), z (+ to the camera), metres.
        glasses: float32 [n], 0 absent, 1 worn, between while they slide in.
        hat: the same.
        mel: uint8 [4 n, 64], spectrogram of the sound.
        mouth_open: float32 [n], true opening of the mouth, 1 for a fully open jaw.
        prompt_ids: int32 [n / 4], per chunk, into `prompts`.
        prompts: the whole table (`generator.prompts.prompt_table`).
        events: the actions, in order.
        speech: the utterances, in order.
        worlds: the world that holds from each frame on, as (frame, world).
    """

    identity: int
    split: str
    units: NDArray[np.float32]
    head: NDArray[np.float32]
    glasses: NDArray[np.float32]
    hat: NDArray[np.float32]
    mel: NDArray[np.uint8]
    mouth_open: NDArray[np.float32]
    prompt_ids: NDArray[np.int32]
    prompts: tuple[str, ...]
    events: list[Event] = field(default_factory=list)
    speech: list[Placed] = field(default_factory=list)
    worlds: list[tuple[int, WorldState]] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.units)

    def audio(self, library: SpeechLibrary) -> NDArray[np.int16]:
        """The sound, int16 [640 n]; needs the library's `audio.npz`.

        Raises:
            FileNotFoundError: if the sound is not on this machine.
        """
        sound = np.zeros(self.frames * SAMPLES_PER_FRAME, np.int16)
        for placed in self.speech:
            part = library.audio_of(library.utterances[placed.utterance])
            start = placed.start_frame * SAMPLES_PER_FRAME
            end = min(start + part.size, sound.size)
            sound[start:end] = part[:end - start]
        return sound

    def prompt_at(self, frame: int) -> str:
        """The prompt in force at a frame."""
        return self.prompts[int(self.prompt_ids[frame // FRAMES_PER_CHUNK])]


def is_held_out(identity: int) -> bool:
    """Whether an identity is kept for tests."""
    return identity % HELD_OUT_MODULUS == HELD_OUT_REMAINDER


def _columns(name: str) -> list[int]:
    if name in UNITS:
        return [UNITS.index(name)]
    return [UNITS.index(f'{name}Left'), UNITS.index(f'{name}Right')]


_COLUMNS: Final = {name: _columns(name) for face in _FACES.values() for name in face}
_TABLE: Final = tuple(prompt.text for prompt in prompt_table())


class _Composer:
    """State while one performance is being put together."""

    def __init__(self, rng: np.random.Generator, library: SpeechLibrary, split: str,
                 frames: int) -> None:
        self.rng = rng
        self.split = split
        self.library = library
        self.frames = frames
        self.faces = {name: Track(frames) for name in _FACES if name != 'neutral'}
        self.gaze_yaw, self.gaze_pitch = Track(frames), Track(frames)
        self.yaw, self.pitch, self.roll = Track(frames), Track(frames), Track(frames)
        self.x, self.z = Track(frames), Track(frames)
        self.swing_yaw = np.zeros(frames, np.float32)
        self.swing_pitch = np.zeros(frames, np.float32)
        self.worn = {'glasses': Track(frames), 'hat': Track(frames)}
        self.mel = np.zeros((frames * MEL_FRAMES_PER_FRAME, library.mel.shape[1]), np.uint8)
        self.mouth = np.zeros((frames, len(library.units)), np.float32)
        self.prompt_ids = np.zeros(frames // FRAMES_PER_CHUNK, np.int32)
        self.shifts: list[int] = []
        self.events: list[Event] = []
        self.speech: list[Placed] = []
        self.worlds: list[tuple[int, WorldState]] = []
        self.told = True
        self.untold_away_share = UNTOLD_AWAY_SHARE
        self.to_do: list[tuple[str, dict[str, str]]] = []
        self.voice = self._pick_voice(split)
        self.level = self._between(0.85, 1.0)

    def _pick_voice(self, split: str) -> list[Utterance]:
        """Utterances of one voice (copies at other speeds count to it)."""
        by_voice: dict[str, list[Utterance]] = {}
        for utterance in self.library.of_split(split):
            by_voice.setdefault(utterance.voice.split('*')[0], []).append(utterance)
        names = sorted(by_voice)
        weights = np.sqrt([len(by_voice[name]) for name in names])
        return by_voice[names[int(self.rng.choice(len(names), p=weights / weights.sum()))]]

    # --- small helpers ---------------------------------------------------------------------
    def _between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _frames(self, low_s: float, high_s: float) -> int:
        return round(self._between(low_s, high_s) * FRAME_RATE_HZ)

    def _variant(self, world: WorldState, action: str | None = None) -> int:
        if self.rng.random() < CANONICAL_SHARE:
            return 0
        return int(self.rng.choice(trained_variants(world, action)))

    def _draw_told(self, action: str) -> None:
        """Whether prompts name what is worn, from this action on."""
        if action in ('wear', 'remove'):
            self.told = True
        elif action == 'step_out':
            self.told = self.rng.random() >= self.untold_away_share
        elif action != 'come_back':
            self.told = self.rng.random() >= (UNTOLD_SHARE if self.told else UNTOLD_AGAIN_SHARE)

    def _as_told(self, world: WorldState) -> WorldState:
        """The world that a prompt describes."""
        return world if self.told else replace(world, glasses=False, hat=False)

    def _set_prompt(self, start: int, text: str) -> None:
        self.prompt_ids[start // FRAMES_PER_CHUNK:] = prompt_id(text)

    def _say(self, start: int, limit: int) -> int:
        """Place an utterance; returns its end frame, or `start` if none fits."""
        for _ in range(4):
            utterance = self.voice[int(self.rng.integers(len(self.voice)))]
            end = start + utterance.length
            if end <= min(limit, self.frames):
                break
        else:
            return start
        self.mel[start * MEL_FRAMES_PER_FRAME:end * MEL_FRAMES_PER_FRAME] = \
            self.library.mel_of(utterance)
        self.mouth[start:end] = self.library.curves_of(utterance)
        self.speech.append(Placed(utterance.index, start))
        return end

    def _face(self, name: str, start: int, level: float, duration: int = 6) -> None:
        if abs(float(self.faces[name].values[min(start, self.frames) - 1]) - level) > 1e-3:
            self.faces[name].move(start, duration, level, spring)

    def _look(self, start: int, yaw_rad: float, pitch_rad: float, head_share: float) -> None:
        """Eyes jump in two frames, the head follows in half a second."""
        now = (self.gaze_yaw.values[min(start, self.frames) - 1],
               self.gaze_pitch.values[min(start, self.frames) - 1])
        if abs(now[0] - yaw_rad) + abs(now[1] - pitch_rad) < 1e-3:
            return
        self.shifts.append(start)
        self.gaze_yaw.move(start, 3, yaw_rad)
        self.gaze_pitch.move(start, 3, pitch_rad)
        duration = self._frames(0.4, 0.6)
        self.yaw.move(start + 1, duration, yaw_rad * head_share)
        self.pitch.move(start + 1, duration, pitch_rad * head_share)

    # --- segments --------------------------------------------------------------------------
    def hold(self, start: int, world: WorldState) -> None:
        """Bring the held parts of the face to a world: expression, gaze, attention."""
        for name in ('smile', 'frown', 'surprise'):
            self._face(name, start, self.level if world.expression == name else 0.0,
                       self._frames(*FACE_BACK_S))
        for name in ('sad', 'agape', 'brows', 'think'):
            self._face(name, start, 0.0)
        self._face('attention', start, 1.0 if world.listening else 0.0, 12)
        self._look(start, *GAZE_RAD[world.gaze], GAZE_HEAD_SHARE)
        self.z.move(start, 15, 0.018 if world.listening else 0.0)
        self.roll.move(start, 15, self._between(-.06, .06) if world.listening else 0.0)

    def settle(self, world: WorldState) -> None:
        """Begin in a world, as if it had held for long."""
        for name in world.worn:
            self.worn[name].values[:] = 1.0
        if not world.in_view:
            self.x.values[:] = AWAY_M
        self.hold(0, world)
        for track in (*self.faces.values(), self.gaze_yaw, self.gaze_pitch, self.yaw, self.pitch,
                      self.z, self.roll):
            track.values[:] = track.values[-1]

    def stable(self, start: int, world: WorldState, length: int) -> int:
        """A stable segment; returns its end frame."""
        self._set_prompt(start, stable_prompt(self._as_told(world), self._variant(world)))
        self.worlds.append((start, world))
        end = start + length
        if not world.in_view:
            return end
        self.hold(start, world)
        if world.listening:
            self._listening_nods(start + 12, end)
        return end

    def _listening_nods(self, start: int, end: int) -> None:
        frame = start + self._frames(0.3, 1.5)
        while frame + 20 < end:
            nod = bob(int(self.rng.integers(1, 3)), self._between(1.3, 1.7),
                      self._between(.07, .11))
            add(self.swing_pitch, frame, nod)
            frame += nod.size + self._frames(1.0, 2.8)

    def choose(self, world: WorldState) -> tuple[str, dict[str, str]]:
        """What is to be done next; else draw an action that is possible in a world, with its
        slots."""
        if self.to_do:
            return self.to_do.pop(0)
        if not world.in_view:
            return 'come_back', {}
        if world.gaze != 'user' and self.rng.random() < .35:
            return 'look', {'direction': 'user'}
        names = [name for name in _WEIGHTS if not (
            name == 'come_back' or (name == 'remove' and not world.worn)
            or (name == 'wear' and len(world.worn) == 2))]
        often = _WEIGHTS if self.split == 'test' else _WEIGHTS | TRAINING_WEIGHTS
        weights = np.array([often[name] for name in names])
        action = names[int(self.rng.choice(len(names), p=weights / weights.sum()))]
        slots: dict[str, str] = {}
        for slot, values in ACTION_SLOTS[action].items():
            options = list(values)
            if action == 'wear':
                options = [name for name in options if name not in world.worn]
            elif action == 'remove':
                options = list(world.worn)
            elif action == 'look':
                options = [gaze for gaze in GAZES if gaze != world.gaze]
            elif slot == 'emotion' and self.rng.random() < 0.4:
                options = [EMOTIONS[0]]
            slots[slot] = options[int(self.rng.integers(len(options)))]
        return action, slots

    def act(self, start: int, world: WorldState) -> tuple[int, WorldState]:
        """An action segment; returns its end frame and the world after it."""
        action, slots = self.choose(world)
        if self.split == 'train':
            self._draw_told(action)
        self._set_prompt(start, action_prompt(action, self._as_told(world),
                                              self._variant(world, action), **slots))
        then = after(action, world, **slots)
        # The face first goes where the world after the action has it; the action adds to that.
        self.hold(start, replace(then, listening=action == 'listen') if then.in_view
                  else replace(world, listening=False, gaze='user'))
        end = self._gesture(action, slots, start)
        if self.rng.random() < _SPEECH_CHANCE[action]:
            sentences = 1
            if action == 'talk':
                sentences = int(self.rng.choice([1, 2, 3], p=[.4, .35, .25]))
            said = start if action not in ('step_out', 'come_back') else start + 6
            for _ in range(sentences):
                said = self._say(said, self.frames)
            end = max(end, said)
        elif action == 'talk':
            end = start + FRAMES_PER_CHUNK
        end = -(-end // FRAMES_PER_CHUNK) * FRAMES_PER_CHUNK
        self._release(action, slots, start, end)
        self.events.append(Event(action, start, min(end, self.frames), tuple(slots.items())))
        return end, then

    def _gesture(self, action: str, slots: dict[str, str], begin: int) -> int:
        """Motion of an action; returns the frame at which it can end."""
        if action == 'nod':
            swing = bob(int(self.rng.integers(2, 5)), self._between(1.4, 1.9),
                        self._between(.2, .3))
            add(self.swing_pitch, begin, swing)
            return begin + swing.size + 4
        if action == 'shake_head':
            swing = oscillation(int(self.rng.integers(2, 4)), self._between(1.3, 1.6),
                                FIRST_SIDE * self._between(.26, .34))
            add(self.swing_yaw, begin, swing)
            return begin + swing.size + 4
        if action == 'look':
            return begin + self._frames(0.8, 1.4)
        if action == 'tilt_head':
            self.roll.move(begin, 12, FIRST_SIDE * self._between(.24, .3))
            return begin + self._frames(1.4, 2.2)
        if action == 'lean_closer':
            self.z.move(begin, 18, self._between(.18, .24))
            self.pitch.move(begin, 18, -.05)
            return begin + self._frames(1.8, 2.6)
        if action in ('wear', 'remove'):
            name = slots['object']
            shift = begin + OBJECT_DELAY_FRAMES
            self.worn[name].move(shift, OBJECT_FRAMES, 1.0 if action == 'wear' else 0.0)
            add(self.swing_pitch, shift - 2, bob(1, 1.0, self._between(.05, .09)))
            return shift + OBJECT_FRAMES + self._frames(0.4, 0.8)
        if action == 'step_out':
            self.x.move(begin, STEP_FRAMES, AWAY_M)
            self.yaw.pulse(begin, 8, 8, 10, .3)
            return begin + STEP_FRAMES + 3
        if action == 'come_back':
            self.x.move(begin, STEP_FRAMES, 0.0)
            self.yaw.pulse(begin, 3, 8, 14, -.25)
            return begin + STEP_FRAMES + 8
        if action == 'think':
            self._face('think', begin, 1.0, 10)
            self._look(begin, FIRST_SIDE * .3, .3, .45)
            self.roll.move(begin, 14, FIRST_SIDE * .1)
            return begin + self._frames(1.8, 2.8)
        if action == 'listen':
            end = begin + self._frames(2.0, 4.0)
            self._listening_nods(begin + 8, end)
            return end
        faces = {'smile': 'smile', 'frown': 'frown', 'look_surprised': 'surprise',
                 'raise_eyebrows': 'brows'}
        if action in faces:
            if action in ('frown', 'look_surprised'):
                self._face('smile', begin, 0.0)
            self._face(faces[action], begin, self._between(0.9, 1.0), FACE_FRAMES)
            if action == 'look_surprised':
                self._face('agape', begin, 1.0, FACE_FRAMES)
                self.pitch.move(begin, 8, .06)
            return begin + self._frames(1.4, 2.2)
        if action == 'talk' and slots['emotion'] in _EMOTION_FACE:
            name, level = _EMOTION_FACE[slots['emotion']]
            if name != 'smile':
                self._face('smile', begin, 0.0)
            self._face(name, begin, level, 10)
            self.pitch.move(begin, 15, -.05 if name == 'sad' else 0.0)
        return begin + FRAMES_PER_CHUNK

    def _release(self, action: str, slots: dict[str, str], begin: int, end: int) -> None:
        """What an action held goes back at its end; `hold` of the next segment does faces."""
        if action in ('tilt_head', 'think'):
            self.roll.move(end, 14, 0.0)
        if action == 'lean_closer':
            self.z.move(end, 18, 0.0)
        if action in ('lean_closer', 'look_surprised', 'talk'):
            self.pitch.move(end, 15, 0.0)

    # --- the sum ---------------------------------------------------------------------------
    def performance(self, identity: int, split: str) -> Performance:
        """What has been composed."""
        units, head = self.units_and_head()
        return Performance(
            identity=identity, split=split, units=units, head=head,
            glasses=self.worn['glasses'].values, hat=self.worn['hat'].values, mel=self.mel,
            mouth_open=mouth_opening(units), prompt_ids=self.prompt_ids, prompts=_TABLE,
            events=self.events, speech=self.speech, worlds=self.worlds)

    def units_and_head(self) -> tuple[Floats, Floats]:
        """Blend all tracks: units float32 [n, 52], head float32 [n, 6]."""
        rng, n = self.rng, self.frames
        units = np.zeros((n, len(UNITS)), np.float32)
        for name, level in _FACES['neutral'].items():
            for column in _COLUMNS[name]:
                units[:, column] += level
        # Brows of the two sides never move quite together.
        lean = {name: self._between(-.12, .12) for name in ('browOuterUp', 'mouthSmile')}
        for face, track in self.faces.items():
            if not track.values.any():
                continue
            for name, level in _FACES[face].items():
                for side, column in enumerate(_COLUMNS[name]):
                    uneven = 1.0 + lean.get(name, 0.0) * (1 - 2 * side)
                    units[:, column] += level * uneven * track.values
        speaking, accents = self._prosody()
        jaw = UNITS.index('jawOpen')
        units[:, [jaw, UNITS.index('mouthFunnel')]] *= (1.0 - speaking)[:, None]
        self._add_mouth(units, speaking)
        for column in _columns('browOuterUp') + _columns('browInnerUp'):
            units[:, column] += .22 * accents

        yaw = (self.yaw.values + self.swing_yaw + sway(rng, n, .022)
               + speaking * sway(rng, n, .03, .15, .6))
        pitch = (self.pitch.values + self.swing_pitch + sway(rng, n, .014)
                 + speaking * sway(rng, n, .012, .2, .7) - .05 * accents)
        roll = self.roll.values + sway(rng, n, .012) + speaking * sway(rng, n, .016, .15, .6)
        breath = np.sin(2 * np.pi * (np.arange(n) / FRAME_RATE_HZ * self._between(.22, .3)
                                     + rng.random()))
        head = np.stack([
            yaw, pitch, roll, self.x.values + sway(rng, n, .003),
            .0022 * breath + sway(rng, n, .001), self.z.values + sway(rng, n, .003)], axis=1)
        self._add_eyes(units, yaw, pitch)
        return np.clip(units, 0.0, 1.0).astype(np.float32), head.astype(np.float32)

    def _prosody(self) -> tuple[Floats, Floats]:
        """Speaking 0 to 1 and accents 0 to 1 per frame, from the sound."""
        speaking = np.zeros(self.frames, np.float32)
        accents = np.zeros(self.frames, np.float32)
        for placed in self.speech:
            utterance = self.library.utterances[placed.utterance]
            first, last = utterance.speech_start, utterance.speech_end
            speaking[placed.start_frame + first:placed.start_frame + last] = 1.0
            energy = self.library.mel_of(utterance)[:, 3:40].astype(np.float32).mean(axis=1)
            energy = energy.reshape(-1, MEL_FRAMES_PER_FRAME).mean(axis=1)
            smooth = np.convolve(energy, np.hanning(9)[1:-1] / np.hanning(9).sum(), 'same')
            inner = smooth[first:last]
            peaks = np.flatnonzero((inner[1:-1] > inner[:-2]) & (inner[1:-1] >= inner[2:])) + 1
            keep = peaks[np.argsort(-inner[peaks])[:max(1, len(inner) // 22)]]
            for peak in keep:
                bump = self._between(.4, 1.0) * np.hanning(13)[1:-1]
                at = placed.start_frame + first + int(peak) - 5
                add(accents, max(at, 0), bump.astype(np.float32))
        kernel = np.hanning(9)[1:-1] / np.hanning(9).sum()
        return (np.convolve(speaking, kernel, 'same').astype(np.float32),
                np.clip(accents, 0.0, 1.0))

    def _add_mouth(self, units: Floats, speaking: Floats) -> None:
        """Speech on top of the expression, which gives way where lips round or meet."""
        curves = dict(zip(self.library.units, self.mouth.T, strict=True))
        rounding = np.clip(curves['mouthPucker'] + .6 * curves['mouthFunnel'], 0.0, 1.0)
        smile = _columns('mouthSmile')
        units[:, smile] *= (1.0 - .6 * rounding - .15 * speaking)[:, None]
        units[:, _columns('mouthFrown')] *= (1.0 - .35 * speaking)[:, None]
        units[:, [*_columns('mouthPress'), UNITS.index('mouthRight'),
                  UNITS.index('mouthShrugLower')]] *= (1.0 - speaking)[:, None]
        for name, values in curves.items():
            for column in _columns(name) if name in PAIRED_UNITS else [UNITS.index(name)]:
                units[:, column] += values

    def _add_eyes(self, units: Floats, yaw: Floats, pitch: Floats) -> None:
        """Eyes keep to the line of sight while the head moves; saccades, lids, blinks."""
        rng, n = self.rng, self.frames
        aim_yaw, aim_pitch = self.gaze_yaw.values.copy(), self.gaze_pitch.values.copy()
        frame = self._frames(0.5, 2.0)
        while frame < n:
            length = self._frames(0.5, 2.4)
            aim_yaw[frame:frame + length] += self._between(-.05, .05)
            aim_pitch[frame:frame + length] += self._between(-.03, .03)
            frame += length
            if rng.random() < 0.5:
                frame += self._frames(0.4, 2.0)
        # In quick swings (nods) the eyes give up a part, or only their whites would show.
        spare = 1.0 - SWING_FOLLOWED
        eye_yaw = (aim_yaw - yaw + spare * self.swing_yaw) / EYE_YAW_RANGE_RAD
        eye_pitch = aim_pitch - pitch + spare * self.swing_pitch
        right = np.clip(eye_yaw, 0.0, EYE_MOST)
        left = np.clip(-eye_yaw, 0.0, EYE_MOST)
        # The person's left eye is on the picture's right: toward picture right it turns out.
        units[:, UNITS.index('eyeLookOutLeft')] = right
        units[:, UNITS.index('eyeLookInRight')] = right
        units[:, UNITS.index('eyeLookInLeft')] = left
        units[:, UNITS.index('eyeLookOutRight')] = left
        up = np.clip(eye_pitch / EYE_UP_RANGE_RAD, 0.0, EYE_MOST)
        down = np.clip(-eye_pitch / EYE_DOWN_RANGE_RAD, 0.0, EYE_MOST)
        units[:, _columns('eyeLookUp')] = up[:, None]
        units[:, _columns('eyeLookDown')] = down[:, None]
        closure = blinks(rng, n, self.shifts)
        lids = np.maximum(.3 * down, closure)
        units[:, _columns('eyeBlink')] = lids[:, None]
        # A shut eye is not wide open as well.
        units[:, _columns('eyeWide') + _columns('eyeSquint')] *= (1.0 - closure)[:, None]


class _Rehearsal(_Composer):
    """Composes one given action, silently."""

    def __init__(self, rng: np.random.Generator, frames: int, action: str,
                 slots: dict[str, str]) -> None:
        silent = SpeechLibrary(np.zeros((0, MEL_BANDS), np.uint8),
                               np.zeros((0, len(MOUTH_UNITS)), np.uint8), MOUTH_UNITS, [])
        # As in tests: an action alone is told and drawn as it is, whoever carries it out.
        super().__init__(rng, silent, 'test', frames)
        self._action, self._slots = action, slots

    def _pick_voice(self, split: str) -> list[Utterance]:
        return []

    def _say(self, start: int, limit: int) -> int:
        return start

    def choose(self, world: WorldState) -> tuple[str, dict[str, str]]:
        """The given action."""
        return self._action, self._slots


def _first_world(rng: np.random.Generator) -> WorldState:
    expression = EXPRESSIONS[int(rng.choice(4, p=[.62, .2, .09, .09]))]
    return WorldState(glasses=bool(rng.random() < .3), hat=bool(rng.random() < .25),
                      expression=expression, listening=bool(rng.random() < .2))


def _drift(rng: np.random.Generator, world: WorldState) -> WorldState:
    """The world may change between stable segments without an action: listening, mood."""
    if not world.in_view:
        return world
    expression = world.expression
    if rng.random() < .3:
        expression = EXPRESSIONS[int(rng.choice(4, p=[.55, .2, .13, .12]))]
    return replace(world, expression=expression, listening=bool(rng.random() < .3))


def _absence(composer: _Composer, world: WorldState) -> tuple[int, WorldState]:
    """Begin a performance with something worn, or put on, and an absence; the frame at which
    the person is back, and the world then."""
    rng = composer.rng
    if not world.worn:
        name = str(rng.choice(ACTION_SLOTS['wear']['object']))
        if rng.random() < .5:
            world = after('wear', world, object=name)
        else:
            composer.to_do.append(('wear', {'object': name}))
    composer.untold_away_share = ABSENCE_UNTOLD_SHARE
    composer.to_do.append(('step_out', {}))
    composer.settle(world)
    frame = 0
    while world.in_view and frame < composer.frames:
        chunks = int(rng.integers(*ABSENCE_BEFORE_CHUNKS))
        frame = composer.stable(frame, world, chunks * FRAMES_PER_CHUNK)
        if frame < composer.frames:
            frame, world = composer.act(frame, world)
    if frame < composer.frames:
        chunks = int(rng.integers(*ABSENCE_CHUNKS))
        frame = composer.stable(frame, world, chunks * FRAMES_PER_CHUNK)
    composer.untold_away_share = UNTOLD_AWAY_SHARE
    composer.to_do.clear()
    return composer.act(frame, world) if frame < composer.frames else (frame, world)


def compose(seed: int, people: Sequence[int], speech: SpeechLibrary, seconds: float = 40.0,
            split: str = 'train') -> Performance:
    """Compose one performance; the same arguments give the same performance everywhere.

    Args:
        seed: any non-negative integer.
        people: identities to draw from; those of the other split are left out.
        speech: the library; utterances of the other split are left out.
        seconds: length, rounded down to a multiple of 0.8 s.
        split: train or test.

    Returns:
        The performance.

    Raises:
        ValueError: if no identity or utterance is of the split, or it is shorter than 0.8 s.
    """
    frames = int(seconds * FRAME_RATE_HZ) // LENGTH_MULTIPLE_FRAMES * LENGTH_MULTIPLE_FRAMES
    if frames <= 0:
        raise ValueError(f'a performance of {seconds} s is too short; ask for at least 0.8 s')
    identities = [person for person in people if is_held_out(person) == (split == 'test')]
    if not identities:
        raise ValueError(f'no identity of split {split!r} among {len(people)}; those with '
                         f'% {HELD_OUT_MODULUS} == {HELD_OUT_REMAINDER} are for test')
    rng = np.random.default_rng([seed, 1 if split == 'test' else 0])
    identity = identities[int(rng.integers(len(identities)))]
    composer = _Composer(rng, speech, split, frames)
    world = _first_world(rng)
    if split == 'train' and rng.random() < ABSENCE_SHARE:
        frame, world = _absence(composer, world)
    else:
        composer.settle(world)
        frame = 0
    while frame < frames:
        long = LONG_AWAY_SHARE if split == 'train' and not world.in_view else .06
        chunks = int(rng.integers(*LONG_CHUNKS) if rng.random() < long else rng.integers(4, 15))
        frame = composer.stable(frame, world, chunks * FRAMES_PER_CHUNK)
        if frame < frames and rng.random() < .2 and world.in_view:
            world = _drift(rng, world)
            frame = composer.stable(frame, world, int(rng.integers(6, 16)) * FRAMES_PER_CHUNK)
        actions = 1 if rng.random() < .7 else 2
        for _ in range(actions):
            if frame < frames:
                frame, world = composer.act(frame, world)
    return composer.performance(identity, split)


def compose_action(seed: int, identity: int, action: str | None, world: WorldState,
                   before: int, after_frames: int, **slots: str) -> Performance:
    """A silent performance of one action, for judges to be fitted on and checked against.

    Args:
        seed: any non-negative integer.
        identity: who.
        action: one of `generator.prompts.ACTIONS`, or None for a rest.
        world: the world before it.
        before: frames at rest before the action, whole chunks.
        after_frames: frames from its start to the end, whole chunks; what is left of them after
            the action shows the world that it leaves.
        **slots: of the action.

    Returns:
        The performance, of ``before + after_frames`` frames.

    Raises:
        ValueError: if a length is not a whole number of chunks.
    """
    if before % FRAMES_PER_CHUNK or after_frames % FRAMES_PER_CHUNK:
        raise ValueError(f'{before} and {after_frames} frames: use multiples of '
                         f'{FRAMES_PER_CHUNK}')
    rng = np.random.default_rng([seed, identity])
    frames = before + after_frames
    composer = _Rehearsal(rng, frames, action or '', dict(slots))
    composer.settle(world)
    frame = composer.stable(0, world, before)
    if action is not None:
        frame, world = composer.act(frame, world)
    if frame < frames:
        composer.stable(frame, world, frames - frame)
    return composer.performance(identity, 'test' if is_held_out(identity) else 'train')
