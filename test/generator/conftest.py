# SPDX-License-Identifier: Apache-2.0
"""Makes the shared tiny configuration importable from the tests beside it, and a model of it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='session')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an exported model of the tiny configuration, with random weights."""
    import torch
    from tiny import TINY

    from interactive_avatar.generator.export import export
    from interactive_avatar.generator.networks import Generator

    torch.manual_seed(3)
    generator = Generator(TINY)
    for parameter in generator.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    root = tmp_path_factory.mktemp('model')
    export(generator, root)
    return root


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What backends keep on disk stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield
