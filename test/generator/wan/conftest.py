# SPDX-License-Identifier: Apache-2.0
"""Makes the shared tiny model importable from the tests beside it, and keeps them quick."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors wait for a second thread longer than it helps, most of all on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
