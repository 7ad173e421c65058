# SPDX-License-Identifier: Apache-2.0
"""Turns a recorded session into things to look at: a video with sound, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from interactive_avatar.evaluation.bag import NS_PER_S, Event, Picture, Recording, Sound
from interactive_avatar.evaluation.session import ACTION_PHASE, FINAL_EVENT, utterances
from interactive_avatar.media.clock import FRAME_NS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from interactive_avatar.media.picture import contact_sheet, write_image
from interactive_avatar.media.video import VideoWriter

VIDEO_SIDE_PX = 512
CAPTION_HEIGHT_PX = 112
BACKGROUND_RGB = (18, 20, 24)
USER_RGB = (126, 196, 255)
AVATAR_RGB = (240, 240, 236)
QUIET_RGB = (130, 138, 150)
USER_GAIN = 0.8
CAPTION_HOLD_S = 4.0
# Longer than this without a picture, and the video would hang: it is said in the caption instead.
SHEET_COLUMNS = 6
SHEET_ROWS = 4


def place_sound(sounds: Sequence[Sound], t0_ns: int, samples: int,
                shift_ns: int = 0) -> NDArray[np.int16]:
    """Lay pieces of sound on a time line by their stamps.

    Args:
        sounds: the pieces; where two overlap the later one is heard.
        t0_ns: stamp of the line's first sample.
        samples: length of the line.
        shift_ns: added to every stamp.

    Returns:
        int16 [samples], silent where there is no sound.
    """
    line = np.zeros(samples, np.int16)
    for sound in sounds:
        at = round((sound.stamp_ns + shift_ns - t0_ns) * SAMPLE_RATE_HZ / NS_PER_S)
        start, stop = max(0, at), min(samples, at + sound.samples.size)
        if stop > start:
            line[start:stop] = sound.samples[start - at:stop - at]
    return line


class CaptionStrip:
    """Draws the strip under the picture: what was said, what was heard, the state.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._font = ImageFont.load_default(size=16)
        self._small = ImageFont.load_default(size=13)
        self._cache: dict[tuple[str, str, str], NDArray[np.uint8]] = {}

    def draw(self, user: str, avatar: str, state: str) -> NDArray[np.uint8]:
        """The strip as uint8 [height, width, 3]."""
        key = user, avatar, state
        if key not in self._cache:
            image = Image.new('RGB', self._size, BACKGROUND_RGB)
            draw = ImageDraw.Draw(image)
            draw.text((14, 8), state, QUIET_RGB, font=self._small)
            y = 28
            for who, text, colour in (('You: ', user, USER_RGB), ('Avatar: ', avatar, AVATAR_RGB)):
                for line in self._wrap(draw, who + text)[:2] if text else []:
                    draw.text((14, y), line, colour, font=self._font)
                    y += 20
            self._cache[key] = np.asarray(image).copy()
        return self._cache[key]

    def _wrap(self, draw: ImageDraw.ImageDraw, text: str) -> list[str]:
        lines = ['']
        for word in text.split():
            longer = f'{lines[-1]} {word}'.strip()
            if draw.textlength(longer, font=self._font) > self._size[0] - 28 and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines


def _by_stamp(pictures: Sequence[Picture]) -> list[Picture]:
    unique = {picture.stamp_ns: picture for picture in pictures}
    return [unique[stamp] for stamp in sorted(unique)]


def _current(events: Sequence[Event], at_ns: int) -> Event | None:
    found = None
    for event in events:
        if event.stamp_ns > at_ns:
            break
        found = event
    return found


def _state_text(event: Event | None) -> str:
    if event is None:
        return ''
    phase = 'action' if event.fields.get('phase') == ACTION_PHASE else 'stable'
    return f'{phase} · {event.fields.get("prompt", "")}'[:72]


def write_conversation(recording: Recording, path: Path,
                       progress: Callable[[int, int], None] | None = None) -> int:
    """Write the session as MP4: pictures by stamp, both voices, captions below.

    The avatar's sound and pictures keep their stamps exactly. The user's voice is laid where a
    person in front of the avatar would have heard it.

    Args:
        recording: a session with pictures.
        path: the file to write.
        progress: called with (frames written, frames in all).

    Returns:
        The number of frames.

    Raises:
        ValueError: if the session has no pictures.
    """
    pictures = _by_stamp(recording.pictures)
    if not pictures:
        raise ValueError('the session has no pictures: record image_raw/compressed')
    t0_ns = pictures[0].stamp_ns
    count = (pictures[-1].stamp_ns - t0_ns) // FRAME_NS + 1
    samples = count * SAMPLES_PER_FRAME
    # The viewer gets a picture some time after (or before) its stamp; so does the user's voice.
    delay_ns = int(np.median([p.arrival_ns - p.stamp_ns for p in pictures]))
    avatar = place_sound(recording.audio, t0_ns, samples).astype(np.int32)
    user = place_sound(recording.user_audio, t0_ns, samples, -delay_ns).astype(np.float32)
    sound = np.clip(avatar + (user * USER_GAIN).astype(np.int32), -32768, 32767).astype(np.int16)
    heard = [e for e in recording.perceptions
             if e.fields.get('event') == FINAL_EVENT and e.fields.get('text', '').strip()]
    strip = CaptionStrip(VIDEO_SIDE_PX, CAPTION_HEIGHT_PX)
    index = 0
    with VideoWriter(path, VIDEO_SIDE_PX, VIDEO_SIDE_PX + CAPTION_HEIGHT_PX) as writer:
        face: NDArray[np.uint8] | None = None
        for number in range(count):
            stamp_ns = t0_ns + number * FRAME_NS
            changed = face is None
            while index < len(pictures) and pictures[index].stamp_ns <= stamp_ns + FRAME_NS // 2:
                index, changed = index + 1, True
            if changed:
                image = Image.fromarray(pictures[max(0, index - 1)].decode())
                face = np.asarray(image.resize((VIDEO_SIDE_PX, VIDEO_SIDE_PX),
                                               Image.Resampling.BICUBIC))
            assert face is not None
            now_ns = stamp_ns + delay_ns
            said = _current([e for e in heard if e.arrival_ns <= now_ns], now_ns)
            answer = _current(recording.intents, now_ns)
            state = _current(recording.states, stamp_ns)
            hold_ns = int(CAPTION_HOLD_S * NS_PER_S)
            recent = said is not None and (now_ns - said.stamp_ns < 2 * hold_ns)
            fresh = answer is not None and now_ns - answer.stamp_ns < 2 * hold_ns
            caption = strip.draw(said.fields['text'].strip() if recent and said else '',
                                 answer.fields.get('speech', '') if fresh and answer else '',
                                 _state_text(state))
            writer.write(np.concatenate([face, caption]),
                         sound[number * SAMPLES_PER_FRAME:(number + 1) * SAMPLES_PER_FRAME])
            if progress and number % 25 == 0:
                progress(number, count)
    return int(count)


def interesting_moments(recording: Recording, count: int) -> list[tuple[int, str]]:
    """Stamps worth a look, with a label: rest, the user speaking, answers, actions.

    Args:
        recording: a session with pictures.
        count: how many at most.

    Returns:
        (stamp in nanoseconds, label), in order of time.
    """
    pictures = _by_stamp(recording.pictures)
    if not pictures:
        return []
    first_ns, last_ns = pictures[0].stamp_ns, pictures[-1].stamp_ns
    moments = {first_ns: 'at rest'}
    for spoken in utterances(recording.user_audio):
        moments[(spoken.start_ns + spoken.end_ns) // 2] = 'listening'
    states = [e for e in recording.states if e.fields.get('phase') == ACTION_PHASE]
    names = {e.fields.get('turn_id'): e.fields.get('action') or e.fields.get('intent', '')
             for e in recording.intents}
    for event in states:
        name = names.get(event.fields.get('turn_id'), '')
        for late_s in (0.6, 1.0, 1.6):
            moments.setdefault(event.stamp_ns + int(late_s * NS_PER_S), f'{name} +{late_s:g} s')
    moments[last_ns] = 'end'
    inside = sorted((stamp, label) for stamp, label in moments.items()
                    if first_ns <= stamp <= last_ns)
    if len(inside) > count:
        keep = np.unique(np.linspace(0, len(inside) - 1, count).round().astype(int))
        inside = [inside[i] for i in keep]
    return inside


def write_contact_sheet(recording: Recording, path: Path, title: str = '') -> int:
    """Write pictures of the session's moments as one image; returns how many.

    Raises:
        ValueError: if the session has no pictures.
    """
    pictures = _by_stamp(recording.pictures)
    if not pictures:
        raise ValueError('the session has no pictures: record image_raw/compressed')
    stamps = np.array([picture.stamp_ns for picture in pictures])
    frames, labels = [], []
    for stamp_ns, label in interesting_moments(recording, SHEET_COLUMNS * SHEET_ROWS):
        at = min(int(np.searchsorted(stamps, stamp_ns)), len(pictures) - 1)
        frames.append(pictures[at].decode())
        labels.append(f'{(stamp_ns - stamps[0]) / NS_PER_S:5.1f} s  {label}')
    write_image(path, contact_sheet(frames, labels, columns=SHEET_COLUMNS, title=title))
    return len(frames)
