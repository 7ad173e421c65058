# SPDX-License-Identifier: Apache-2.0
"""A wan model small enough for unit tests, with weights that give every path a say."""

import os

import pytest
import torch

from interactive_avatar.generator.wan.config import WAN_TINY, WanConfig
from interactive_avatar.generator.wan.network import WanTransformer


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def randomise(module: torch.nn.Module) -> None:
    """Normal weights scaled by their fan-in, everything else drawn at 0.3."""
    for parameter in module.parameters():
        std = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        torch.nn.init.normal_(parameter, std=std)


def random_network(config: WanConfig = WAN_TINY, seed: int = 0) -> WanTransformer:
    """A transformer whose added parts are not at their start."""
    torch.manual_seed(seed)
    network = WanTransformer(config)
    randomise(network)
    return network.eval()


def kernel_device() -> torch.device:
    """Where Triton kernels run: a GPU, or a CPU in Triton's interpreter (TRITON_INTERPRET=1);
    skips the test where neither can be had."""
    pytest.importorskip('triton', reason='triton comes with CUDA builds of torch')
    if torch.cuda.is_available():
        return torch.device('cuda')
    if os.environ.get('TRITON_INTERPRET') != '1':
        pytest.skip('kernels run on a GPU, or with TRITON_INTERPRET=1')
    return torch.device('cpu')
