# SPDX-License-Identifier: Apache-2.0
"""A small synthetic session with known answers, as a bag."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interactive_avatar.evaluation.bag import RECORDED_TOPICS, BagWriter

NS_PER_S = 1_000_000_000
CHUNK_NS = 160_000_000
FRAME_NS = 40_000_000
T0_NS = 1_700_000_000 * NS_PER_S
SIDE_PX = 32
# The user speaks from 1.0 to 2.0 s; the avatar answers from 3.2 to 4.8 s (chunks 20 to 29).
USER_SPEECH_S = (1.0, 2.0)
AVATAR_CHUNKS = range(20, 30)
CHUNKS = 50


def tone(count: int) -> np.ndarray:
    """A loud 200 Hz tone, int16 [count]."""
    return (8000 * np.sin(np.arange(count) * 2 * np.pi * 200 / 16000)).astype(np.int16)


def frame_bytes(index: int, speaking: bool, sharp: np.ndarray) -> bytes:
    """A picture whose mouth window flickers in speech; PNG, so that values are exact."""
    picture = sharp.copy()
    if speaking and index % 2:
        picture[20:24, 12:20] += 60
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture(scope='session')
def make_bag() -> Callable[..., Path]:
    """Factory of bags: ``make_bag(path, drop_chunks=(), skip_topics=(), namespace='avatar')``."""

    def make(path: Path, drop_chunks: tuple[int, ...] = (), skip_topics: tuple[str, ...] = (),
             namespace: str = 'avatar', encoding: str = 'S16LE') -> Path:
        with BagWriter(path) as writer:
            types = writer.typestore.types
            time_type = types['builtin_interfaces/msg/Time']
            names = {name: name if name.startswith('/') else f'/{namespace}/{name}'
                     for name in RECORDED_TOPICS if name not in skip_topics}
            for name, full in names.items():
                writer.add_topic(full, RECORDED_TOPICS[name])

            def header(stamp_ns: int) -> Any:
                sec, nanosec = divmod(stamp_ns, NS_PER_S)
                return types['std_msgs/msg/Header'](time_type(sec, nanosec), '')

            def put(name: str, stamp_ns: int, **fields: Any) -> None:
                if name in names:
                    message = types[RECORDED_TOPICS[name]](header=header(stamp_ns), **fields)
                    writer.write_message(names[name], stamp_ns + 20_000_000, message)

            def sound(name: str, stamp_ns: int, index: int, samples: np.ndarray) -> None:
                put(name, stamp_ns, turn_id=0, sequence=index, sample_rate=16000, channels=1,
                    encoding=encoding, last=False, data=samples.astype('<i2').view(np.uint8))

            def state(time_s: float, phase: int, activity: int, prompt: str) -> None:
                put('state', T0_NS + int(time_s * NS_PER_S), turn_id=1, phase=phase,
                    activity=activity, prompt=prompt, stable_prompt='', next_prompt='')

            def diagnose(stamp_ns: int, index: int) -> None:
                status, value = (types['diagnostic_msgs/msg/DiagnosticStatus'],
                                 types['diagnostic_msgs/msg/KeyValue'])
                # /diagnostics is shared: a second avatar reports there as well.
                put('/diagnostics', stamp_ns, status=[
                    status(level=0, name=f'{who}/generator', message='active', hardware_id='',
                           values=[value('chunks_late', late), value('slots', str(index))])
                    for who, late in ((namespace, '0'), ('neighbour', str(index)))])

            rng = np.random.default_rng(0)
            still = rng.integers(0, 180, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
            state(0.0, 0, 0, 'rest')
            for index in range(CHUNKS):
                stamp_ns = T0_NS + index * CHUNK_NS
                start_s = index * 0.16
                user_on = USER_SPEECH_S[0] <= start_s < USER_SPEECH_S[1]
                sound('user/audio', stamp_ns, index, tone(2560) * user_on)
                speaking = index in AVATAR_CHUNKS
                if index == 15:
                    no_pose = types['geometry_msgs/msg/Pose'](
                        types['geometry_msgs/msg/Point'](np.nan, np.nan, np.nan),
                        types['geometry_msgs/msg/Quaternion'](0.0, 0.0, 0.0, 1.0))
                    put('perception', stamp_ns, source='microphone', user_id='', event=3,
                        speaking=False, text='please nod', confidence=1.0, language='en',
                        duration_s=1.0,
                        face_present=False, expression='', looking=False, people=0,
                        engagement=0.0, engagement_level=0, gesture='', distance_m=0.0,
                        head_pose=no_pose)
                    put('intent', stamp_ns, turn_id=1, user_text='please nod', intent='nod',
                        confidence=0.9, emotion='neutral', action='nod', slot_names=[],
                        slot_values=[], speech='Of course.', action_prompt='nods',
                        stable_prompt='rest', latency_s=0.1)
                if index == 20:
                    state(20 * 0.16, 1, 3, 'nods')
                if index == 30:
                    state(30 * 0.16, 0, 0, 'rest')
                if index % 6 == 0:
                    diagnose(stamp_ns, index)
                if index in drop_chunks:
                    continue
                sound('audio', stamp_ns, index, tone(2560) * speaking)
                for k in range(4):
                    put('image_raw/compressed', stamp_ns + k * FRAME_NS, format='png',
                        data=np.frombuffer(frame_bytes(k, speaking, still), np.uint8))
        return path

    return make


@pytest.fixture(scope='session')
def session_bag(make_bag: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain session, 8 s."""
    return make_bag(tmp_path_factory.mktemp('bags') / 'session')


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an exported model, small and with random weights."""
    torch = pytest.importorskip('torch')
    from interactive_avatar.generator.config import (
        AudioConfig,
        AutoencoderConfig,
        DenoiserConfig,
        GeneratorConfig,
        MemoryConfig,
    )
    from interactive_avatar.generator.export import export
    from interactive_avatar.generator.networks import Generator

    torch.manual_seed(3)
    generator = Generator(GeneratorConfig(
        name='tiny', autoencoder=AutoencoderConfig(
            picture_px=128, latent_channels=8, encoder_widths=(8, 16, 16),
            decoder_widths=(16, 16, 8), decoder_blocks=(1, 1, 1)),
        audio=AudioConfig(width=32, layers=1, heads=2),
        memory=MemoryConfig(entry_side=2, compressor_width=16),
        denoiser=DenoiserConfig(width=64, heads=2, layers=2, ffn_width=128,
                                rope_split=(12, 10, 10))))
    root = tmp_path_factory.mktemp('model')
    export(generator, root)
    return root
