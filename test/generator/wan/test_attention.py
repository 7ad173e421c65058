# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wan_tiny import relative

from interactive_avatar.generator.wan.attention import (
    AttentionPlan,
    join,
    join_and_add,
    plans,
    split_attention,
    with_sums,
)
from interactive_avatar.generator.wan.network import attend


def heads(*tokens: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    return [torch.randn((1, n, 3, 8), generator=random) * 2 for n in tokens]


@pytest.mark.parametrize(('queries', 'parts'), [(12, 2), (12, 3), (5, 4), (1, 6)])
def test_pieces_joined_are_the_whole(queries: int, parts: int) -> None:
    q, k, v = heads(12, 24, 24)
    plan = AttentionPlan(queries=queries, parts=parts)
    assert plan.fits(24) and not plan.fits(23)
    pieces = split_attention(q, k, v, plan)
    assert (pieces[0] is None) == (queries == 12)
    assert pieces[1].shape == (parts, queries, 3, 8) and pieces[2].shape == (parts, 3, queries)
    expected = attend(q, k, v)
    assert relative(join(*pieces), expected) < 1e-5
    assert relative(join_and_add(*pieces, expected), 2 * expected) < 1e-5


def test_a_whole_plan_never_splits() -> None:
    assert not AttentionPlan('cudnn').fits(24)
    assert str(AttentionPlan('cudnn')) == 'cudnn'
    assert str(AttentionPlan('flash', 256, 4)) == 'flash, last 256 queries with keys in 4'


def test_the_sums_are_those_of_the_scores() -> None:
    q, k, v = heads(4, 6, 6)
    out, sums = with_sums(q, k, v, 'default')
    assert relative(out.flatten(2), attend(q, k, v)) < 1e-5
    scores = torch.einsum('bnhw,bmhw->bhnm', q, k) * 8 ** -0.5
    assert relative(sums, scores.logsumexp(-1)) < 1e-5


def test_an_unfilled_last_wave_is_tried_apart() -> None:
    found = plans(('cudnn',), 3072, 7168, 12, 132)
    assert found[0] == AttentionPlan('cudnn')
    # 24 tiles of 128 queries and 12 heads are two waves of 132 and 24 tiles more: two of queries.
    assert {plan.queries for plan in found[1:]} == {256, 960, 3072}
    assert all(plan.fits(7168) for plan in found[1:])
    assert {plan.parts for plan in found if plan.queries == 256} == {2, 4, 7, 8}
    assert {plan.parts for plan in found if plan.queries == 3072} == {2, 4}
