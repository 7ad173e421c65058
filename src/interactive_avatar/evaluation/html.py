# SPDX-License-Identifier: Apache-2.0
"""Reports as one HTML file: no outside reference, readable on a phone, in light and in dark.

A report is a list of sections; a section is a list of blocks (text, tables, cards, plots,
pictures, videos with their time line, commands). Pictures and videos travel inside the file as
data URIs, and the page forbids itself to load anything else (Content-Security-Policy), so a report
that was sent by mail shows what its writer saw. Nothing here depends on the time of day: the same
blocks give the same bytes.

    report = HtmlReport('Session morning', 'what a bag of 60 s holds')
    section = report.section('Stream')
    section.table(['figure', 'measured'], [['pictures per second', '25.00']])
    section.plot(figure, 'Lateness of sound', 'how late each chunk came')  # a matplotlib figure
    report.write(Path('report.html'))
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A browser holds a data URI in memory several times over: more than this makes phones give up.
MAX_MEDIA_BYTES = 48 * 2**20
MIME_TYPES = {'.png': 'image/png', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg',
              '.svg': 'image/svg+xml', '.webp': 'image/webp', '.mp4': 'video/mp4',
              '.webm': 'video/webm', '.wav': 'audio/wav'}
POLICY = ("default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline'")
Tone = Literal['plain', 'good', 'bad', 'warn']


class HtmlReportError(ValueError):
    """A block that cannot be put into a report; the message says why and what to do."""


@dataclass(frozen=True)
class Card:
    """One headline figure.

    Attributes:
        label: what it is.
        value: the figure with its unit.
        note: how it was measured, or the aim.
        tone: whether it reaches what it should.
    """

    label: str
    value: str
    note: str = ''
    tone: Tone = 'plain'


@dataclass(frozen=True)
class Span:
    """One stretch on a lane of a time line.

    Attributes:
        start_s: seconds from the video's first frame.
        end_s: seconds; equal to ``start_s`` for a mark.
        label: shown on it where it fits, and when pointed at.
        tone: colour.
    """

    start_s: float
    end_s: float
    label: str = ''
    tone: str = 'a'


@dataclass(frozen=True)
class Lane:
    """A named row of a time line."""

    name: str
    spans: Sequence[Span]


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a data URI."""
    return f'data:{mime};base64,{base64.b64encode(data).decode("ascii")}'


def png_bytes(frame: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] RGB as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'PNG', optimize=True)
    return buffer.getvalue()


def figure_svg(figure: Any, name: str) -> str:
    """A matplotlib figure as inline SVG that takes the page's own text colour.

    Backgrounds become transparent and black becomes ``currentColor``, so one drawing serves light
    and dark. Ids get the plot's name in front: ids of two inline drawings must not be equal.

    Args:
        figure: `matplotlib.figure.Figure`.
        name: unique within the report; letters, digits and ``-``.
    """
    import matplotlib

    buffer = io.StringIO()
    # Text stays text (small, searchable); the salt makes the ids the same in every run.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name,
                                'path.simplify_threshold': 0.4}):
        figure.savefig(buffer, format='svg', transparent=True,
                       metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    text = buffer.getvalue()
    text = text[text.index('<svg'):]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    for pattern in (r'\bid="', r'url\(#', r'href="#'):
        text = re.sub(pattern, lambda found: f'{found.group(0)}{name}-', text)
    # Matplotlib's defaults for text, ticks and frames; a series never has pure black.
    text = re.sub(r'#000000|(?<=[: ])black\b', 'currentColor', text)
    # Text without a fill is black by the standard of SVG.
    text = text.replace('<svg ', f'<svg role="img" aria-label="{html.escape(name)}" '
                        'fill="currentColor" ', 1)
    # The page decides the width; the drawing keeps its proportions.
    head, rest = text.split('>', 1)
    head = re.sub(r' (width|height)="[^"]*"', '', head)
    return f'{head}>{rest}'.strip()


class Section:
    """A part of a report with its own heading; made by `HtmlReport.section`."""

    def __init__(self, report: HtmlReport, title: str, anchor: str) -> None:
        self.title = title
        self.anchor = anchor
        self._report = report
        self._blocks: list[str] = []

    def raw(self, markup: str) -> None:
        """Append trusted HTML."""
        self._blocks.append(markup)

    def text(self, *paragraphs: str) -> None:
        """Append paragraphs of plain text; `` `code` `` and ``**bold**`` are understood."""
        self.raw(''.join(f'<p>{inline(paragraph)}</p>' for paragraph in paragraphs))

    def bullets(self, items: Sequence[str]) -> None:
        """Append a list of plain texts."""
        self.raw('<ul>' + ''.join(f'<li>{inline(item)}</li>' for item in items) + '</ul>')

    def cards(self, cards: Sequence[Card]) -> None:
        """Append headline figures."""
        self.raw('<div class="cards">' + ''.join(
            f'<div class="card {card.tone}"><span class="label">{inline(card.label)}</span>'
            f'<span class="value">{inline(card.value)}</span>'
            f'<span class="note">{inline(card.note)}</span></div>' for card in cards) + '</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = '',
              tones: Sequence[Tone] | None = None) -> None:
        """Append a table; on narrow screens it scrolls within itself.

        Args:
            head: names of the columns.
            rows: cells, turned to text.
            caption: a line above it.
            tones: one per row, to colour rows.

        Raises:
            HtmlReportError: if a row has another number of cells than the head.
        """
        for row in rows:
            if len(row) != len(head):
                raise HtmlReportError(f'row {list(row)} has {len(row)} cells under {len(head)} '
                                      f'columns {list(head)}: give one cell a column')
        body = ''.join(
            f'<tr class="{(tones[index] if tones else "plain")}">'
            + ''.join(f'<td{_numeric(cell)}>{inline(str(cell))}</td>' for cell in row) + '</tr>'
            for index, row in enumerate(rows))
        self.raw('<div class="scroll"><table>'
                 + (f'<caption>{inline(caption)}</caption>' if caption else '')
                 + '<thead><tr>' + ''.join(f'<th scope="col">{inline(name)}</th>' for name in head)
                 + f'</tr></thead><tbody>{body}</tbody></table></div>')

    def plot(self, figure: Any, title: str, caption: str = '') -> None:
        """Append a matplotlib figure as SVG.

        Args:
            figure: the figure; may be reused afterwards.
            title: what is seen; heading of the drawing.
            caption: how to read it.
        """
        name = self._report.unique(f'plot-{title}')
        self.raw(f'<figure class="plot" id="{name}"><h3>{inline(title)}</h3>'
                 f'{figure_svg(figure, name)}{_caption(caption)}</figure>')

    def picture(self, source: Path | bytes | NDArray[np.uint8], alt: str,
                caption: str = '') -> None:
        """Append a picture.

        Args:
            source: a file, PNG bytes, or uint8 [H, W, 3] RGB.
            alt: what is on it, for those who cannot see it.
            caption: a line below it.
        """
        if isinstance(source, np.ndarray):
            uri = data_uri(png_bytes(source), 'image/png')
        else:
            uri = _media_uri(source, 'image/png')
        self.raw(f'<figure class="picture"><img src="{uri}" alt="{html.escape(alt)}" '
                 f'loading="lazy">{_caption(caption)}</figure>')

    def video(self, source: Path | bytes, caption: str = '', lanes: Sequence[Lane] = (),
              seconds: float = 0.0, mime: str = 'video/mp4') -> None:
        """Append a video, with lanes of a time line below that follow it and seek by click.

        Args:
            source: a file, or its bytes.
            caption: a line below it.
            lanes: rows of the time line, on the video's own time.
            seconds: length of the time line; needed with lanes.
            mime: kind of bytes; a file's is taken from its name.

        Raises:
            HtmlReportError: on an unknown kind of file, one that is too large, or lanes without a
                length.
        """
        if lanes and seconds <= 0.0:
            raise HtmlReportError(f'a time line of {seconds} s: give the length of the video')
        uri = _media_uri(source, mime)
        self.raw('<figure class="video"><video controls playsinline preload="metadata" '
                 f'src="{uri}"></video>{_timeline(lanes, seconds) if lanes else ""}'
                 f'{_caption(caption)}</figure>')

    def code(self, text: str, caption: str = '') -> None:
        """Append commands or output as they are."""
        self.raw(f'{"<p>" + inline(caption) + "</p>" if caption else ""}'
                 f'<pre><code>{html.escape(text)}</code></pre>')

    def details(self, summary: str, text: str) -> None:
        """Append text that is folded away until asked for."""
        self.raw(f'<details><summary>{inline(summary)}</summary>'
                 f'<pre><code>{html.escape(text)}</code></pre></details>')

    def markup(self) -> str:
        """The section as HTML."""
        return (f'<section id="{self.anchor}"><h2>{inline(self.title)}</h2>'
                + '\n'.join(self._blocks) + '</section>')


@dataclass
class HtmlReport:
    """A report under construction.

    Attributes:
        title: heading and name of the page.
        subtitle: one line below it.
        sections: in order.
    """

    title: str
    subtitle: str = ''
    sections: list[Section] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    _data: dict[str, Any] = field(default_factory=dict)

    def unique(self, text: str) -> str:
        """A name for an element, made of a text and unique in this report."""
        base = re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-') or 'part'
        count = self._names[base] = self._names.get(base, 0) + 1
        return base if count == 1 else f'{base}-{count}'

    def section(self, title: str) -> Section:
        """Append a section."""
        section = Section(self, title, self.unique(title))
        self.sections.append(section)
        return section

    def provenance(self, machine: Mapping[str, Any], commands: Sequence[str],
                   seeds: Mapping[str, Any] | None = None,
                   extra: Mapping[str, Any] | None = None) -> Section:
        """Append how to do it again: commands, machine, versions, seeds.

        Args:
            machine: what `report.machine` gives.
            commands: lines for a shell, in order.
            seeds: seeds and settings by name.
            extra: other rows, such as a model's name and checksum.
        """
        section = self.section('How to do it again')
        section.code('\n'.join(commands))
        rows = [['processor', f'{machine.get("processor", "unknown")}, '
                              f'{machine.get("cores", "?")} cores, '
                              f'{machine.get("memory_gib", "?")} GiB'],
                ['system', machine.get('system', 'unknown')],
                ['Python', machine.get('python', 'unknown')],
                ['interactive_avatar', machine.get('interactive_avatar', 'unknown')]]
        rows += [[name, value] for name, value in sorted(machine.get('packages', {}).items())]
        rows += [[f'seed or setting: {name}', value] for name, value in (seeds or {}).items()]
        rows += [[name, value] for name, value in (extra or {}).items()]
        section.table(['what', 'which'], rows)
        return section

    def data(self, name: str, tree: Any) -> None:
        """Put plain values into the page as JSON, under ``<script id=name>``, for machines.

        Raises:
            ValueError: on NaN or infinity, which JSON does not know.
        """
        json.dumps(tree, allow_nan=False)
        self._data[name] = tree

    def render(self) -> str:
        """The page as text."""
        links = ''.join(f'<a href="#{section.anchor}">{inline(section.title)}</a>'
                        for section in self.sections)
        blobs = ''.join(
            f'<script type="application/json" id="{html.escape(name)}">'
            # "</script>" inside a string would end the element.
            + json.dumps(tree, ensure_ascii=False, allow_nan=False).replace('</', '<\\/')
            + '</script>' for name, tree in self._data.items())
        body = '\n'.join(section.markup() for section in self.sections)
        return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
                '<meta name="color-scheme" content="light dark">'
                f'<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>'
                f'<header><h1>{inline(self.title)}</h1><p>{inline(self.subtitle)}</p></header>'
                f'<nav aria-label="sections">{links}</nav><main>{body}</main>'
                f'{blobs}<script>{SCRIPT}</script></body></html>\n')

    def write(self, path: Path) -> Path:
        """Write the page; the file appears under its name only when it is complete."""
        part = path.with_name(path.name + '.part')
        part.write_text(self.render(), encoding='utf-8')
        part.replace(path)
        return path


def inline(text: str) -> str:
    """Plain text as HTML; `` `code` `` and ``**bold**`` are understood."""
    safe = html.escape(str(text))
    safe = re.sub(r'`([^`]+)`', r'<code>\1</code>', safe)
    return re.sub(r'\*\*([^*]+)\*\*', r'<strong>\1</strong>', safe)


def _numeric(cell: Any) -> str:
    text = str(cell)
    return ' class="number"' if re.match(r'^[−+\-±≤≥<>]?\s?\d', text) and len(text) < 24 else ''


def _caption(text: str) -> str:
    return f'<figcaption>{inline(text)}</figcaption>' if text else ''


def _media_uri(source: Path | bytes, mime: str) -> str:
    if isinstance(source, Path):
        kind = MIME_TYPES.get(source.suffix.lower())
        if kind is None:
            raise HtmlReportError(f'{source} is no picture or video that browsers show: give one '
                                  f'of {", ".join(MIME_TYPES)}')
        mime, source = kind, source.read_bytes()
    if len(source) > MAX_MEDIA_BYTES:
        raise HtmlReportError(f'{len(source) / 2**20:.0f} MiB are too much for one page (at most '
                              f'{MAX_MEDIA_BYTES / 2**20:.0f}): cut the video, or encode it '
                              f'smaller')
    return data_uri(source, mime)


def _timeline(lanes: Sequence[Lane], seconds: float) -> str:
    rows = []
    for lane in lanes:
        spans = []
        for span in lane.spans:
            left = 100.0 * min(max(span.start_s / seconds, 0.0), 1.0)
            right = 100.0 * min(max(span.end_s / seconds, 0.0), 1.0)
            kind = 'span' if span.end_s > span.start_s else 'mark'
            width = f'width:{right - left:.3f}%;' if kind == 'span' else ''
            tip = f'{span.start_s:.1f} s {span.label}'.strip()
            shown = html.escape(span.label) if kind == 'span' else ''
            spans.append(f'<i class="{kind} tone-{html.escape(span.tone)}" '
                         f'style="left:{left:.3f}%;{width}" title="{html.escape(tip)}">'
                         f'{shown}</i>')
        rows.append(f'<div class="lane"><b>{inline(lane.name)}</b>'
                    f'<div class="track">{"".join(spans)}</div></div>')
    return (f'<div class="timeline" data-seconds="{seconds:.3f}">{"".join(rows)}'
            '<div class="lane axis"><b></b><div class="track"></div></div>'
            '<div class="lane over"><b></b><div class="track"><i class="cursor"></i></div></div>'
            '</div>')


STYLE = """
:root{--bg:#fbfbfa;--fg:#1d2126;--quiet:#5d6670;--line:#d9dde1;--panel:#fff;--link:#1659a8;
--good:#1c7a3d;--bad:#b3261e;--warn:#8a5a00;--a:#3b7dd8;--b:#d9822b;--c:#2f9e5b;--d:#c23b4b;
--e:#7a57c2;--f:#8b949e}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e8ea;--quiet:#9aa4ae;--line:#30363d;
--panel:#1b1f24;--link:#7db4f5;--good:#5cc480;--bad:#ff8a80;--warn:#e3b341}}
*{box-sizing:border-box}
html{scroll-padding-top:3.2rem}
body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:72rem;margin:0 auto;padding:0 1rem}
header h1{margin:1.4rem 0 .2rem;font-size:1.7rem;line-height:1.2}
header p{margin:0 0 .8rem;color:var(--quiet)}
nav{position:sticky;top:0;z-index:5;background:var(--bg);border-bottom:1px solid var(--line);
padding:.5rem max(1rem,calc((100vw - 70rem)/2));overflow-x:auto;white-space:nowrap}
nav a{margin-right:1rem;color:var(--link);text-decoration:none;font-size:.92rem}
section{margin:1.6rem 0 2.4rem}
h2{font-size:1.25rem;margin:0 0 .7rem;border-bottom:1px solid var(--line);padding-bottom:.25rem}
h3{font-size:1rem;margin:0 0 .4rem}
p{max-width:48rem;margin:.5rem 0}
a{color:var(--link)}
code{font:.88em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.7rem;
overflow-x:auto}
pre code{overflow-wrap:normal}
details{margin:.6rem 0}summary{cursor:pointer}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.2rem,1fr));gap:.6rem;
margin:.8rem 0}
.card{background:var(--panel);border:1px solid var(--line);border-left:4px solid var(--line);
border-radius:6px;padding:.55rem .7rem;display:flex;flex-direction:column}
.card .label{font-size:.82rem;color:var(--quiet)}
.card .value{font-size:1.35rem;font-variant-numeric:tabular-nums}
.card .note{font-size:.8rem;color:var(--quiet)}
.card.good{border-left-color:var(--good)}.card.bad{border-left-color:var(--bad)}
.card.warn{border-left-color:var(--warn)}
.scroll{overflow-x:auto;margin:.7rem 0}
table{border-collapse:collapse;font-size:.92rem;min-width:min(100%,24rem)}
caption{text-align:left;color:var(--quiet);padding-bottom:.3rem}
th,td{text-align:left;padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
th{color:var(--quiet);font-weight:600}
td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
tr.good td:first-child{color:var(--good)}tr.bad td:first-child{color:var(--bad)}
tr.warn td:first-child{color:var(--warn)}
figure{margin:1rem 0;background:var(--panel);border:1px solid var(--line);border-radius:6px;
padding:.8rem}
figure.plot{overflow-x:auto}
figure.plot svg{display:block;width:100%;min-width:34rem;height:auto}
figure img,figure video{display:block;max-width:100%;height:auto;margin:0 auto;border-radius:4px}
figure video{max-height:80vh;background:#000}
figcaption{color:var(--quiet);font-size:.9rem;margin-top:.5rem}
.timeline{position:relative;margin-top:.7rem;font-size:.78rem;cursor:pointer;user-select:none}
.lane{display:flex;align-items:center;height:1.45rem}
.lane b{flex:0 0 5.6rem;font-weight:500;color:var(--quiet);overflow:hidden;white-space:nowrap;
text-overflow:ellipsis}
.track{position:relative;flex:1;height:100%;border-bottom:1px solid var(--line)}
.track i{position:absolute;font-style:normal}
.track .span{top:2px;bottom:2px;border-radius:2px;color:#fff;overflow:hidden;white-space:nowrap;
padding:0 2px;line-height:1.15rem;min-width:2px}
.track .mark{top:0;bottom:0;width:2px}
.tone-a{background:#2f6fc4}.tone-b{background:#b8661a}.tone-c{background:#27814a}
.tone-d{background:#b8323f}.tone-e{background:#6b48b0}.tone-f{background:#6d7680}
.axis .track{border:0;height:1.1rem}
.axis .track i{color:var(--quiet);transform:translateX(-50%);white-space:nowrap}
.axis .track i:first-child{transform:none}
.over{position:absolute;inset:0;height:auto;pointer-events:none}
.over .track{border:0}
.cursor{top:0;bottom:0;left:0;width:2px;background:var(--fg);opacity:.75}
@media (max-width:40rem){body{font-size:15px}.lane b{flex-basis:3.6rem}header h1{font-size:1.35rem}
td.number{white-space:normal}}
@media print{nav{display:none}figure,table,pre{break-inside:avoid}}
""".strip()

SCRIPT = """
for (const line of document.querySelectorAll('.timeline')) {
  const video = line.parentElement.querySelector('video');
  const seconds = Number(line.dataset.seconds);
  const axis = line.querySelector('.axis .track');
  const cursor = line.querySelector('.cursor');
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600].find(
    (width) => seconds / width <= axis.clientWidth / 56) || 7200;
  for (let at = 0; at <= seconds; at += step) {
    const tick = document.createElement('i');
    tick.style.left = `${100 * at / seconds}%`;
    tick.textContent = seconds - at < step / 2 ? '' : `${at} s`;
    axis.append(tick);
  }
  const follow = () => {
    cursor.style.left = `${100 * Math.min(1, video.currentTime / seconds)}%`;
  };
  const run = () => {
    follow();
    if (!video.paused && !video.ended) requestAnimationFrame(run);
  };
  video.addEventListener('play', run);
  video.addEventListener('timeupdate', follow);
  video.addEventListener('seeked', follow);
  line.addEventListener('click', (event) => {
    const box = axis.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    if (share >= 0) video.currentTime = Math.min(1, share) * (video.duration || seconds);
  });
}
""".strip()
