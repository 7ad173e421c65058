# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's losses by hand."""

from __future__ import annotations

import pytest
import torch

from interactive_avatar.training.autoencoder import (
    FACE_POINTS,
    AutoencoderOptions,
    flow_loss,
)

SIDE = 32


def moving(chunks: int = 2, speed_px: float = 1.5) -> tuple[torch.Tensor, ...]:
    """Marks that go to the right, and flows that lead back: of the frame before each chunk, and
    of a reference picture four pixels further down."""
    count = 4 * chunks
    start = torch.tensor([[8.0, 10.0], [6.0, 5.0], [12.0, 5.0]])
    right = torch.tensor([speed_px, 0.0])
    marks = torch.stack([start + (n + 1) * right for n in range(count)])[None]
    picture = (start + torch.tensor([0.0, 4.0]))[None]
    flows = torch.zeros(1, count, 2, 2, SIDE, SIDE)
    for n in range(count):
        flows[0, n, 0, 0] = -(n % 4 + 1) * speed_px * 2.0 / SIDE
        flows[0, n, 1, 0] = -(n + 1) * speed_px * 2.0 / SIDE
        flows[0, n, 1, 1] = 4.0 * 2.0 / SIDE
    return flows, marks, start[None], picture


def test_flows_that_lead_to_where_marks_were_cost_nothing() -> None:
    assert flow_loss(*moving()) == pytest.approx(0.0, abs=1e-6)


def test_a_flow_astray_costs_its_distance() -> None:
    flows, marks, last, picture = moving()
    flows[:, :, 0, 1] += 0.3
    # One of two flows, one of two axes.
    assert flow_loss(flows, marks, last, picture) == pytest.approx(0.3 / 4, abs=1e-6)


def test_points_beside_the_marks_follow_a_face_that_grows_and_tilts() -> None:
    """A flow that is right at the marks and wrong beside them costs; one that is right all over
    the face does not."""
    turn = torch.tensor([[1.3, -0.4], [0.4, 1.3]])
    middle = torch.tensor([16.0, 16.0])
    start = middle + torch.tensor([[0.0, 3.0], [-3.0, -2.0], [3.0, -2.0]])
    marks = ((start - middle) @ turn.T + middle).expand(1, 4, 3, 2)
    axis = torch.arange(SIDE) + 0.5
    at = torch.stack(torch.meshgrid(axis, axis, indexing='xy'), -1)
    back = (at - middle) @ torch.linalg.inv(turn).T + middle - at
    flows = (back * 2.0 / SIDE).permute(2, 0, 1).expand(1, 4, 2, 2, SIDE, SIDE)
    assert flow_loss(flows, marks, start[None], start[None]) == pytest.approx(0.0, abs=1e-5)
    still = torch.zeros(1, 4, 2, 2, SIDE, SIDE)
    assert flow_loss(still, marks, start[None], start[None]) > 0.05
    assert all(sum(point) == pytest.approx(1.0) for point in FACE_POINTS)


def test_marks_out_of_view_say_nothing() -> None:
    flows, marks, last, picture = moving()
    flows += 1.0
    assert flow_loss(flows, marks + 2 * SIDE, last, picture) == 0.0


def test_the_loss_draws_flows_home() -> None:
    _, marks, last, picture = moving()
    flows = torch.zeros(1, 8, 2, 2, SIDE, SIDE, requires_grad=True)
    flow_loss(flows, marks, last, picture).backward()
    assert flows.grad is not None
    # Back is to the left: less flow along x.
    assert (flows.grad[0, :, 0, 0].sum((-1, -2)) > 0).all()


def test_options_say_what_is_trained() -> None:
    assert AutoencoderOptions().trained == ('autoencoder.', 'audio.')
    assert AutoencoderOptions(decoder_only=True).trained == ('autoencoder.decoder.',)
    assert AutoencoderOptions(anchor_weight=0.2).trained == ('autoencoder.',)
    with pytest.raises(ValueError, match='leave out one'):
        AutoencoderOptions(decoder_only=True, anchor_weight=0.2)
