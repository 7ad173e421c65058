# SPDX-License-Identifier: Apache-2.0
"""The process in which piper runs: text lines in, framed sound out.

Piper is GPL-3, so it is kept in a process of its own that shares nothing with the avatar but two
pipes. Run by `interactive_avatar.reasoning.voice`, as
`python -m interactive_avatar.reasoning.piper_worker MODEL CONFIG [SEED]`. With a seed the same
sentences in the same order sound the same, sample for sample.

Input, one line each: `{"id": 7, "text": "Hello.", "speed": 1.0}`. Output: frames of
`FRAME_HEADER` (id, kind, sample rate in Hz, bytes that follow) and that many bytes: S16LE mono
samples of one sentence (kind 1), the end of a request (kind 2), an error message (kind 3), or
that the voice is loaded (kind 4).
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from typing import BinaryIO, Final

FRAME_HEADER: Final = struct.Struct('<IBII')
SOUND, END, FAILED, READY = 1, 2, 3, 4
# The user waits for the first clause; the generator goes before all by its own priority.
_THREADS: Final = 2
_NICENESS: Final = 2
_VOLUME: Final = 0.8


def _send(stream: BinaryIO, request: int, kind: int, rate_hz: int = 0, data: bytes = b'') -> None:
    stream.write(FRAME_HEADER.pack(request, kind, rate_hz, len(data)) + data)
    stream.flush()


def main() -> int:
    """Serve requests until the input ends."""
    # Whatever a library prints must not mix with the frames.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), 'wb')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        import onnxruntime
        from piper import PiperVoice, SynthesisConfig
        from piper.config import PiperConfig
        if len(sys.argv) > 3:
            # The voice draws its rhythm and timbre at random; read when the session is made.
            onnxruntime.set_seed(int(sys.argv[3]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _THREADS
        options.inter_op_num_threads = 1
        # A thread that spins while it waits would take the generator's time.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        with open(sys.argv[2], encoding='utf-8') as file:
            config = PiperConfig.from_dict(json.load(file))
        voice = PiperVoice(onnxruntime.InferenceSession(
            sys.argv[1], sess_options=options, providers=['CPUExecutionProvider']), config)
        # The first sentence is slow; nobody waits for this one.
        for _ in voice.synthesize('Hello.'):
            pass
    except Exception as error:
        _send(stream, 0, FAILED, data=f'{type(error).__name__}: {error}'.encode())
        return 1
    os.nice(_NICENESS)
    _send(stream, 0, READY)
    latest = [0]
    pending: list[dict[str, object]] = []
    arrived = threading.Condition()

    def read() -> None:
        # Requests are read while a sentence is being made: a newer one cancels those before it.
        for line in sys.stdin.buffer:
            request = json.loads(line)
            with arrived:
                latest[0] = max(latest[0], int(request['id']))
                if request.get('text'):
                    pending.append(request)
                arrived.notify()
        with arrived:
            pending.append({})
            arrived.notify()

    threading.Thread(target=read, name='requests', daemon=True).start()
    while True:
        with arrived:
            while not pending:
                arrived.wait()
            request = pending.pop(0)
        if not request:
            return 0
        number = int(str(request['id']))
        try:
            # Some headroom, since piper scales to full level and resampling overshoots.
            pace = SynthesisConfig(volume=_VOLUME, length_scale=config.length_scale / float(
                str(request.get('speed', 1.0))))
            if number == latest[0]:
                for sound in voice.synthesize(str(request['text']), syn_config=pace):
                    if number != latest[0]:
                        break
                    _send(stream, number, SOUND, sound.sample_rate, sound.audio_int16_bytes)
            _send(stream, number, END)
        except BrokenPipeError:
            return 0
        except Exception as error:
            _send(stream, number, FAILED, data=f'{type(error).__name__}: {error}'.encode())


if __name__ == '__main__':
    raise SystemExit(main())
