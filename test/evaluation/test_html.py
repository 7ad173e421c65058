# SPDX-License-Identifier: Apache-2.0
"""Reports as one HTML file: nothing from outside, same bytes again, shown by a real browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interactive_avatar.evaluation import html as page
from interactive_avatar.media.video import VideoWriter

figure_module = pytest.importorskip('matplotlib.figure')
CHROMIUM = next((found for name in ('chromium', 'chromium-browser', 'google-chrome')
                 if (found := shutil.which(name))), None)
CHROMEDRIVER = shutil.which('chromedriver')


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='pip install selenium')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run',
                 '--disable-background-networking', '--disable-component-update',
                 '--disable-sync', '--disable-dev-shm-usage', f'--window-size={width},{height}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(executable_path=CHROMEDRIVER))
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


def drawing() -> Any:
    """A small figure with a clip path, text and a line."""
    figure = figure_module.Figure(figsize=(4, 2))
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.0, 1.0, 0.5], label='sound')
    axes.set(xlabel='stream time (s)')
    axes.legend()
    return figure


def build(folder: Path) -> page.HtmlReport:
    """A report with a block of every kind."""
    with VideoWriter(folder / 'clip.mp4', 64, 64) as writer:
        for index in range(50):
            writer.write(np.full((64, 64, 3), 4 * index, np.uint8), np.zeros(640, np.int16))
    report = page.HtmlReport('Session <one>', 'what it holds')
    first = report.section('Stream')
    first.text('Plain & **bold**, `code`')
    first.cards([page.Card('pictures per second', '25.00', 'aim 25', 'good')])
    first.table(['figure', 'measured'], [['lost', 0]], tones=['good'])
    first.plot(drawing(), 'Lateness')
    first.plot(drawing(), 'Lateness')
    second = report.section('Stream')
    second.picture(np.zeros((4, 4, 3), np.uint8), 'a black square')
    second.video(folder / 'clip.mp4', 'the talk',
                 [page.Lane('state', [page.Span(0, 1, 'STABLE', 'c'), page.Span(1.5, 1.5)])], 2.0)
    second.code('avatar evaluate bag x')
    second.details('more', 'a < b')
    second.bullets(['one'])
    report.provenance({'processor': 'p', 'packages': {'numpy': '1'}}, ['avatar demo'], {'seed': 3})
    report.data('report', {'text': '</script><b>', 'value': 1.5})
    return report


class _Parser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == 'id' and value:
                self.ids.append(value)
            if name in ('src', 'href', 'xlink:href') and value:
                self.sources.append(value)


def test_the_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    text = build(tmp_path).render()
    parser = _Parser()
    parser.feed(text)
    assert parser.sources
    for source in parser.sources:
        assert source.startswith(('data:', '#')), source[:80]
    assert not re.search(r'url\((?!#)', text)
    assert len(parser.ids) == len(set(parser.ids))
    # Every reference of a drawing to its own parts was renamed with them.
    for target in re.findall(r'(?:url\(|href=")#([^)"]+)', text):
        assert target in parser.ids, target
    assert 'Session &lt;one&gt;' in text and '<strong>bold</strong>' in text


def test_the_same_blocks_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    first, second = build(tmp_path / 'a').render(), build(tmp_path / 'b').render()
    assert first == second


def test_data_survives_the_way_into_the_page(tmp_path: Path) -> None:
    text = build(tmp_path).render()
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert found
    assert json.loads(found.group(1)) == {'text': '</script><b>', 'value': 1.5}
    with pytest.raises(ValueError, match='JSON'):
        build(tmp_path).data('bad', float('nan'))


@pytest.mark.parametrize('act, words', [
    (lambda section: section.table(['a', 'b'], [[1]]), '1 cells under 2'),
    (lambda section: section.picture(Path('clip.avi'), 'x'), 'clip.avi is no picture'),
    (lambda section: section.video(b'x', lanes=[page.Lane('a', [])]), 'length of the video'),
    (lambda section: section.video(bytes(page.MAX_MEDIA_BYTES + 1)), 'cut the video'),
])
def test_bad_blocks_are_refused_by_name(act: Any, words: str) -> None:
    with pytest.raises(page.HtmlReportError, match=words):
        act(page.HtmlReport('x').section('y'))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None,
                    reason='apt install chromium chromium-driver')
def test_a_browser_shows_it_and_the_time_line_seeks(tmp_path: Path) -> None:
    path = build(tmp_path).write(tmp_path / 'report.html')
    with browser() as driver:
        driver.get(path.as_uri())
        driver.execute_async_script(
            'const done = arguments[0], video = document.querySelector("video");'
            'if (video.readyState >= 1) done(); else video.onloadedmetadata = () => done();')
        assert driver.execute_script('return document.querySelector("video").duration') \
            == pytest.approx(2.0, abs=0.1)
        # A click in the middle of the track goes to the middle of the video.
        seconds = driver.execute_script(
            'const box = document.querySelector(".axis .track").getBoundingClientRect();'
            'document.querySelector(".timeline").dispatchEvent(new MouseEvent("click",'
            ' {clientX: box.left + box.width / 2, clientY: box.top}));'
            'return document.querySelector("video").currentTime')
        assert seconds == pytest.approx(1.0, abs=0.1)
        assert driver.execute_script('return document.querySelectorAll("figure svg").length') == 2
        assert driver.execute_script('return document.querySelector("img").naturalWidth') == 4
        for width in (1280, 390):
            driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
                'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 600})
            assert driver.execute_script(
                'return document.documentElement.scrollWidth') <= width
        assert not driver.get_log('browser')
