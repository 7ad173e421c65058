# SPDX-License-Identifier: Apache-2.0
"""Two cards make one block: what a pass computes is split between them by sequence.

Each card has all weights and works on some rows of every latent frame (context parallelism).
Layers are local to a token but for self-attention, before which the cards exchange the rotated
keys and values of their tokens; both see the same context, which the first card alone keeps and
copies over.

One process drives both. Their layers are recorded as small CUDA graphs of one card each, between
which copies go from card to card, ordered by events: no collective that one side could wait in for
ever, no copying kernel that takes processors from what runs beside it.

A decoder beside a split pass would hold up both cards in every layer. So for as long as the second
card decodes, the first one works alone: ``alone`` passes of a block, counted from the clean pass,
with which decoding begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interactive_avatar.generator.wan.attention import AttentionPlan, attention_kernel
from interactive_avatar.generator.wan.cache import Entry, WanCache
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.runner import BlockRunner, Span


def replica(network: WanTransformer, device: torch.device) -> WanTransformer:
    """The same network on another device; nothing is held twice on the network's own."""
    moved: dict[int, Any] = {id(parameter): nn.Parameter(parameter.detach().to(device, copy=True),
                                                         requires_grad=False)
                             for parameter in network.parameters()}
    moved |= {id(buffer): buffer.detach().to(device, copy=True) for buffer in network.buffers()}
    made: WanTransformer = copy.deepcopy(network, moved)
    return made.eval()


def first_rows(side: int, share: float) -> int:
    """Rows of a grid of ``side`` that a share comes to; each card has one at least."""
    return min(max(round(side * share), 1), side - 1)


class Part:
    """One card's part of split passes: its tokens, its streams, its recorded pieces.

    Args:
        runner: holds the weights and buffers. span: the tokens.
        kept: the runner's keys and values that attention reads, [L, 1, tokens, H, hw].

    Attributes:
        plan: how its self-attention is run.
        velocity: float32 [1, F, C, rows · patch, w], of the last pass.
    """

    def __init__(self, runner: BlockRunner, span: Span, kept: tuple[Tensor, Tensor]) -> None:
        self.runner, self.span, self.plan = runner, span, AttentionPlan()
        self._kept = kept
        c = runner.config
        height = (span.rows.stop - span.rows.start) * c.network.patch
        channels, _, width = c.latent_shape
        self.velocity = torch.zeros((1, c.chunk_latents, channels, height, width),
                                    device=runner.device)
        self.on_gpu = runner.device.type == 'cuda'
        self._graphs: dict[str, Any] = {}
        self._x: Tensor | None = None
        self._q: Tensor | None = None
        self._remembered: Tensor | None = None
        if self.on_gpu:
            # The denoiser has the right of way over a decoder on the same card.
            self._stream, self._send, self._receive = (
                torch.cuda.Stream(runner.device, priority=-1) for _ in range(3))
            self._opened, self.arrived = torch.cuda.Event(), torch.cuda.Event()

    def on(self) -> Any:
        """A context in which this card and its stream are current."""
        return torch.cuda.stream(self._stream) if self.on_gpu else nullcontext()

    @contextmanager
    def sending(self, to: Part) -> Iterator[None]:
        """A context in which copies to the other card run beside both cards' own work: PyTorch
        lets a copy wait for, and be waited for by, the current streams of both devices."""
        with ExitStack() as stack:
            if self.on_gpu:
                stack.enter_context(torch.cuda.stream(to._receive))
                stack.enter_context(torch.cuda.stream(self._send))
            yield

    def after_caller(self) -> None:
        """Let this part, and what it sends, wait for the caller's stream."""
        if self.on_gpu:
            caller = torch.cuda.current_stream(self.runner.device)
            self._stream.wait_stream(caller)
            self._send.wait_stream(caller)

    def before_caller(self) -> None:
        """Let the caller's stream wait for this part."""
        if self.on_gpu:
            torch.cuda.current_stream(self.runner.device).wait_stream(self._stream)

    # Exchange -------------------------------------------------------------------------------

    def give(self, to: Part, pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        """Copy each (own, other's) pair of tensors to the other card once this part's work so far
        is done, and let the other part wait; pairs are contiguous, so no kernel is needed."""
        if self.on_gpu:
            self._opened.record(self._stream)
            self._send.wait_event(self._opened)
        with self.sending(to):
            for own, others in pairs():
                others.copy_(own, non_blocking=True)
        if self.on_gpu:
            self.arrived.record(self._send)

    def wait_for(self, other: Part) -> None:
        """Let this part's further work wait for what the other has given last."""
        if self.on_gpu:
            self._stream.wait_event(other.arrived)

    def give_keys(self, layer: int, to: Part) -> None:
        """Send the keys and values that a layer has made of this part's tokens."""
        tokens = self.span.tokens
        self.give(to, lambda: ((own[layer, 0, tokens], others[layer, 0, tokens])
                               for own, others in zip(self._kept, to._kept, strict=True)))

    # Pieces of a pass, in their order ---------------------------------------------------------

    def pieces(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Every piece of a pass by its name, in the order in which they run."""
        yield 'enter', self._enter
        for layer in range(len(self.runner.network.layers)):
            yield f'remember {layer}', partial(self._remember, layer)
            yield f'pass {layer}', partial(self._pass, layer)

    def _enter(self) -> None:
        self._x = self.runner.enter(self.span)
        self._q = self.runner.open(0, self._x, self.span)

    def _remember(self, layer: int) -> None:
        assert self._q is not None
        self._remembered = self.runner.remember(layer, self._q)

    def _pass(self, layer: int) -> None:
        """From one layer's attention to the next one's, or to the end."""
        assert self._x is not None and self._q is not None
        self._x = self.runner.close(layer, self._x, self._q, self._remembered, self.plan)
        if layer + 1 < len(self.runner.network.layers):
            self._q = self.runner.open(layer + 1, self._x, self.span)
        else:
            self.velocity.copy_(self.runner.leave(self._x, self.span))
            self._x = self._q = self._remembered = None

    def run(self, name: str, piece: Callable[[], None], recorded: bool) -> None:
        """Run one of `pieces`, as recorded or as it is."""
        with self.on():
            if recorded:
                graph = self._graphs[name]
                if graph is not None:
                    graph.replay()
                return
            with attention_kernel(self.plan.kernel):
                piece()

    @property
    def recorded(self) -> bool:
        """Whether the pieces have been recorded as CUDA graphs."""
        return bool(self._graphs)

    def record(self) -> None:
        """Record the pieces as CUDA graphs; they must have run, so that nothing is compiled or
        chosen meanwhile. They share one pool of memory, as they run in one order only."""
        torch.cuda.synchronize(self.runner.device)
        pool = torch.cuda.graph_pool_handle()
        made: dict[str, Any] = {}
        with self.on(), attention_kernel(self.plan.kernel):
            for name, piece in self.pieces():
                if name.startswith('remember') and not self.runner.remembers:
                    made[name] = None
                    self._remembered = None
                    continue
                # Not torch.cuda.graph, which gives all free memory back before every one.
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=pool)
                try:
                    piece()
                finally:
                    graph.capture_end()
                made[name] = graph
        self._graphs = made


class TwoCardRunner(BlockRunner):
    """A `BlockRunner` whose passes are split between two cards, but for the first ``alone`` of a
    block.

    Args:
        network: on the first card, which keeps the cache and runs all but passes.
        second: the other card. compiled, graphs: as of `BlockRunner`.
        share: of each frame's rows in split passes that are the first card's.
        alone: passes that the first card runs by itself, counted from the clean pass: it, then
            the first steps of the next block.

    Raises:
        ValueError: if a frame has one row of tokens only.
    """

    def __init__(self, network: WanTransformer, second: torch.device, compiled: bool = False,
                 graphs: bool = False, share: float = 0.5, alone: int = 1) -> None:
        super().__init__(network, compiled, graphs)
        side = self.config.grid_side
        if side < 2:
            raise ValueError('a frame with one row of tokens cannot be split between two cards')
        self.alone = alone
        self._passed = 1
        self.helper = helper = BlockRunner(replica(network, second), compiled, False)
        rows = first_rows(side, share)
        mine = self.span(slice(0, rows), 0)
        self.parts = (Part(self, mine, (self._k, self._v)),
                      Part(helper, helper.span(slice(rows, side), mine.count),
                           (helper._k, helper._v)))
        self._joined = torch.zeros_like(self._x)
        self._other = torch.zeros_like(self.parts[1].velocity, device=self.device)

    @property
    def splits(self) -> bool:
        """Whether any pass of a block is split; the second card gets nothing where none is."""
        return self.alone <= len(self.config.sampler.levels)

    def condition(self, text: tuple[Tensor, Tensor], audio: tuple[Tensor, Tensor] | None) -> None:
        """See `BlockRunner.condition`; both cards get them."""
        super().condition(text, audio)
        own, others = [*self._text], [*self.helper._text]
        if self._audio is not None and self.helper._audio is not None:
            own += self._audio
            others += self.helper._audio
        self._mirror(lambda: iter(zip(own, others, strict=True)))

    @torch.no_grad()
    def see(self, cache: WanCache) -> None:
        """See `BlockRunner.see`; the second card gets what the first one has turned."""
        super().see(cache)
        self._passed, helper = 1, self.helper
        helper._frame_tokens, helper._entry_tokens = self._frame_tokens, self._entry_tokens
        seen = slice(self._own, self._own + self._frame_tokens)

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for own, others in ((self._k, helper._k), (self._v, helper._v)):
                for layer in range(len(self.network.layers)):
                    yield own[layer, 0, seen], others[layer, 0, seen]
            if self._entry_tokens:  # all slots, the empty ones too: one copy each
                yield self._entry_k, helper._entry_k
                yield self._entry_v, helper._entry_v

        self._mirror(pairs)

    def _mirror(self, pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        """Copy to the second card beside what the first does next."""
        if self.splits:
            first, second = self.parts
            first.after_caller()
            first.give(second, pairs)
            second.wait_for(first)

    @torch.no_grad()
    def forward(self, latents: Tensor, level: float) -> Tensor:
        """See `BlockRunner.forward`; split unless it is one of the block's first ``alone``."""
        self._passed += 1
        if self._passed <= self.alone:
            return self.forward_alone(latents, level)
        return self.forward_together(latents, level)

    def forward_alone(self, latents: Tensor, level: float) -> Tensor:
        """`forward` on the first card."""
        return super().forward(latents, level)

    @torch.no_grad()
    def forward_together(self, latents: Tensor, level: float) -> Tensor:
        """`forward` on both cards; see there. The result is overwritten by the next one.

        Raises:
            ValueError: if no pass is to be split, so that the second card has no context.
        """
        if not self.splits:
            raise ValueError(f'alone is {self.alone}: no pass of a block is split')
        first, second = self.parts
        first.after_caller()
        with second.on(), first.on():
            first.runner.set_pass(latents, level)
            second.runner.set_pass(self._x, level)
        recorded = self._graphs and self.full
        if recorded and not first.recorded:
            for _ in range(2):
                self._exchange(False)
            for part in self.parts:
                part.record()
        self._exchange(recorded)
        with second.on(), first.on():
            self._other.copy_(second.velocity, non_blocking=True)
            border = first.velocity.shape[3]
            self._joined[..., :border, :] = first.velocity
            self._joined[..., border:, :] = self._other
        first.before_caller()
        return self._joined

    def _exchange(self, recorded: bool) -> None:
        """All pieces of both parts, and what goes from one to the other between them."""
        first, second = self.parts
        for index, ((name, one), (_, other)) in enumerate(
                zip(first.pieces(), second.pieces(), strict=True)):
            if name.startswith('pass'):
                first.wait_for(second)
                second.wait_for(first)
            elif index:
                # Before the entries are attended to, so that keys travel meanwhile.
                layer = (index - 1) // 2
                first.give_keys(layer, second)
                second.give_keys(layer, first)
            first.run(name, one, recorded)
            second.run(name, other, recorded)

    @torch.no_grad()
    def commit(self, latents: Tensor, level: float) -> list[Entry]:
        """See `BlockRunner.commit`."""
        self._passed = 0
        if self.alone:
            return super().commit(latents, level)
        self.forward(latents, level)
        first, second = self.parts
        mine, others = first.span.count, second.span.count
        # Where the second part's keys lie among the block's, those before rotation lie free.
        second.give(first, lambda: (
            (self.helper._raw[i, 0, :others], self._raw[i, 0, mine:])
            for i in range(len(self.network.layers))))
        first.wait_for(second)
        first.before_caller()
        frames = self.config.chunk_latents

        def in_order(tokens: Tensor) -> list[Tensor]:
            """Frame by frame of [L, F · n, H, hw], where the first part's rows lie in front."""
            upper = tokens[:, :mine].unflatten(1, (frames, -1))
            lower = tokens[:, mine:].unflatten(1, (frames, -1))
            return list(torch.cat([upper, lower], 2).unbind(1))

        return list(zip(in_order(self._raw[:, 0]), in_order(self._v[:, 0, :self._own])))

    @torch.no_grad()
    def tune(self) -> dict[str, Any]:
        """See `BlockRunner.tune`; also how each card attends in split passes."""
        found = super().tune()
        if self.device.type != 'cuda':
            return found
        self.helper._open = self._open
        cards = {}
        for part in self.parts:
            device = part.runner.device
            with torch.cuda.device(device):
                part.plan, times = part.runner.choose_plan(part.span.count)
            cards[str(device)] = {'tokens': part.span.count, 'attention': str(part.plan),
                                  'attention_ms': times}
        direct = torch.cuda.can_device_access_peer(self.device, self.helper.device)
        found['two_cards'] = {'alone': self.alone, 'peer_access': direct, **cards}
        return found
