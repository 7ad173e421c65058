# SPDX-License-Identifier: Apache-2.0
"""A context of its own for each test, on a domain that no running robot or other test uses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed: run `make build`')

from interactive_avatar.graph import prepare_environment

# Above the ids that people use and below the ports that Linux hands out.
FIRST_TEST_DOMAIN = 60
TEST_DOMAINS = 40


@pytest.fixture
def context() -> Iterator[object]:
    """An initialised rclpy context."""
    prepare_environment(os.environ)
    own = rclpy.Context()
    rclpy.init(context=own, domain_id=FIRST_TEST_DOMAIN + os.getpid() % TEST_DOMAINS)
    yield own
    rclpy.try_shutdown(context=own)
