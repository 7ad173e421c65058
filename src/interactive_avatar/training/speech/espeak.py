# SPDX-License-Identifier: Apache-2.0
"""espeak-ng voices with the phone times that espeak-ng itself reports.

Formant voices confuse an aligner trained on people, but the synthesiser knows when it makes each
phone. The library is GPL-3, so it is loaded in a process of its own (`python -m` this module),
which reads a request as JSON and writes an .npz file.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from interactive_avatar.media.clock import SAMPLE_RATE_HZ
from interactive_avatar.training.speech.align import SILENCE, Phone

_SYNCHRONOUS: Final = 2
_PHONEME_EVENTS_IPA: Final = 1 | 2
_EVENT_END: Final = 0
_EVENT_PHONEME: Final = 7
_CHARS_UTF8: Final = 1
_RATE, _PITCH = 1, 3

# IPA as espeak-ng writes English, longest first, in ARPAbet.
_ARPABET: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ('aɪə', ('AY', 'AH')), ('aɪɚ', ('AY', 'ER')), ('aʊɚ', ('AW', 'ER')), ('tʃ', ('CH',)),
    ('dʒ', ('JH',)), ('eɪ', ('EY',)), ('aɪ', ('AY',)), ('aʊ', ('AW',)), ('ɔɪ', ('OY',)),
    ('oʊ', ('OW',)), ('əʊ', ('OW',)), ('iə', ('IY', 'AH')), ('ɪə', ('IH', 'AH')),
    ('eə', ('EH', 'AH')), ('ʊə', ('UH', 'AH')), ('əl', ('AH', 'L')), ('ən', ('AH', 'N')),
    ('ɜː', ('ER',)), ('iː', ('IY',)), ('uː', ('UW',)), ('ɑː', ('AA',)), ('ɔː', ('AO',)),
    ('oː', ('AO',)), ('ɚ', ('ER',)), ('ɝ', ('ER',)), ('ɜ', ('ER',)), ('i', ('IY',)),
    ('u', ('UW',)), ('ʉ', ('UW',)), ('ɑ', ('AA',)), ('ɒ', ('AA',)), ('a', ('AE',)),
    ('æ', ('AE',)), ('ɔ', ('AO',)), ('o', ('OW',)), ('e', ('EH',)), ('ɛ', ('EH',)),
    ('ɪ', ('IH',)), ('ᵻ', ('IH',)), ('ʊ', ('UH',)), ('ʌ', ('AH',)), ('ə', ('AH',)),
    ('ɐ', ('AH',)), ('b', ('B',)), ('p', ('P',)), ('m', ('M',)), ('f', ('F',)), ('v', ('V',)),
    ('θ', ('TH',)), ('ð', ('DH',)), ('t', ('T',)), ('d', ('D',)), ('ɾ', ('T',)), ('ʔ', ('T',)),
    ('n', ('N',)), ('l', ('L',)), ('ɫ', ('L',)), ('s', ('S',)), ('z', ('Z',)), ('ʃ', ('SH',)),
    ('ʒ', ('ZH',)), ('k', ('K',)), ('ɡ', ('G',)), ('g', ('G',)), ('ŋ', ('NG',)), ('ɹ', ('R',)),
    ('r', ('R',)), ('w', ('W',)), ('ʍ', ('W',)), ('j', ('Y',)), ('h', ('HH',)), ('x', ('K',)))


def to_arpabet(ipa: str) -> list[str]:
    """One reported phoneme in ARPAbet phones; empty for stress, length marks and pauses."""
    phones: list[str] = []
    while ipa:
        for symbol, names in _ARPABET:
            if ipa.startswith(symbol):
                phones += names
                ipa = ipa[len(symbol):]
                break
        else:
            ipa = ipa[1:]
    return phones


class _Id(ctypes.Union):
    _fields_: ClassVar = [('number', ctypes.c_int), ('name', ctypes.c_char_p),
                          ('string', ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_: ClassVar = [
        ('type', ctypes.c_int), ('unique_identifier', ctypes.c_uint),
        ('text_position', ctypes.c_int), ('length', ctypes.c_int),
        ('audio_position', ctypes.c_int), ('sample', ctypes.c_int),
        ('user_data', ctypes.c_void_p), ('id', _Id)]


def _speak(request: dict[str, Any]) -> None:
    """Child process: synthesise `texts` and write sound, event times and names to `path`."""
    name = ctypes.util.find_library('espeak-ng')
    if name is None:
        raise SystemExit('espeak-ng is not installed; install it with "apt-get install '
                         'libespeak-ng1"')
    library = ctypes.CDLL(name)
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS_IPA)
    blocks: list[NDArray[np.int16]] = []
    events: list[tuple[float, str]] = []

    def receive(samples: Any, count: int, event: Any) -> int:
        if count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while event[index].type != _EVENT_END:
            if event[index].type == _EVENT_PHONEME:
                ipa = bytes(event[index].id.string).split(b'\0')[0].decode(errors='ignore')
                events.append((event[index].audio_position / 1000.0, ipa))
            index += 1
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int,
                            ctypes.POINTER(_Event))
    callback = kind(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(request['voice'].encode()) != 0:
        raise SystemExit(f'espeak-ng has no voice {request["voice"]!r}')
    library.espeak_SetParameter(_RATE, int(request['words_per_minute']), 0)
    library.espeak_SetParameter(_PITCH, int(request['pitch']), 0)
    sounds, spoken = [], []
    for text in request['texts']:
        blocks.clear()
        events.clear()
        data = text.encode() + b'\0'
        library.espeak_Synth(data, len(data), 0, 0, 0, _CHARS_UTF8, None, None)
        sounds.append(np.concatenate(blocks) if blocks else np.zeros(0, np.int16))
        spoken.append(list(events))
    np.savez(request['path'], audio=np.concatenate(sounds), rate_hz=rate_hz,
             ends=np.cumsum([sound.size for sound in sounds]), events=json.dumps(spoken))


def phones_from_events(events: list[tuple[float, str]], length_s: float) -> list[Phone]:
    """Phones from reported phoneme starts; a pause is a `SIL`, compounds share their time."""
    phones: list[Phone] = []
    for number, (start_s, ipa) in enumerate(events):
        end_s = events[number + 1][0] if number + 1 < len(events) else length_s
        names = to_arpabet(ipa) or [SILENCE]
        step_s = (end_s - start_s) / len(names)
        if step_s > 0.0:
            phones += [Phone(name, start_s + part * step_s, start_s + (part + 1) * step_s)
                       for part, name in enumerate(names)]
    return phones


def espeak(texts: list[str], accent: str, variant: str, pitch: float,
           words_per_minute: float) -> Iterator[tuple[NDArray[np.int16], list[Phone]]]:
    """Speak sentences with an espeak-ng voice.

    Args:
        texts: what to say.
        accent: voice as `en-us`.
        variant: as `f2`, or empty.
        pitch: 0 to 99.
        words_per_minute: speed.

    Yields:
        Sound int16 [n] at 16 kHz and its phones.

    Raises:
        RuntimeError: if espeak-ng is missing or fails, with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'speech.npz'
        request = {'voice': f'{accent}+{variant}' if variant else accent, 'pitch': pitch,
                   'words_per_minute': words_per_minute, 'texts': texts, 'path': str(path)}
        done = subprocess.run([sys.executable, '-m', __name__], input=json.dumps(request),
                              capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f'espeak-ng failed: {done.stderr.strip()[-300:]}')
        with np.load(path) as data:
            audio, ends, rate_hz = data['audio'], data['ends'], int(data['rate_hz'])
            spoken = json.loads(str(data['events']))
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    start = 0
    for end, events in zip(ends, spoken):
        sound = audio[start:end].astype(np.float32)
        start = int(end)
        samples = resample_poly(sound, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)
        yield (np.asarray(np.clip(np.rint(samples), -32768, 32767), np.int16),
               phones_from_events([(float(at), str(ipa)) for at, ipa in events],
                                  sound.size / rate_hz))


if __name__ == '__main__':
    _speak(json.loads(sys.stdin.read()))
