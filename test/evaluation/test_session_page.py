# SPDX-License-Identifier: Apache-2.0
"""A session's page: its plots, its time line, and a real browser that shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('matplotlib')
from interactive_avatar.evaluation import session, session_page
from interactive_avatar.evaluation.bag import read_bag
from interactive_avatar.evaluation.demo import ReportOptions, make_report
from interactive_avatar.evaluation.session import Expected, analyse

CHROMIUM = next((found for name in ('chromium', 'chromium-browser', 'google-chrome')
                 if (found := shutil.which(name))), None)
CHROMEDRIVER = shutil.which('chromedriver')


def test_every_plot_draws_or_says_that_there_is_nothing(session_bag: Path) -> None:
    analysis = analyse(read_bag(session_bag))
    drawn = {name for _, name, _, draw in session_page.PLOTS if draw(analysis) is not None}
    # What needs judges or the generator's own clock is not in the synthetic bag.
    assert len(session_page.PLOTS) - len(drawn) <= 7
    assert {'Motion', 'Seams', 'Voices and decisions', 'Latency of each answer', 'Sharpness',
            'Sound against picture', 'Missed chunks'} <= drawn
    analysis.series['lip_gap'] = np.abs(np.sin(np.arange(analysis.track.stamps_ns.size)))
    analysis.series |= {'identity_s': np.arange(8.0), 'identity_distance': np.full(8, 0.1),
                        'sync_offset_ms': np.arange(-15.0, 16), 'sync_distance': np.ones(31)}
    more = {name for _, name, _, draw in session_page.PLOTS if draw(analysis) is not None}
    assert more - drawn == {'Lips and loudness', 'Lag of the lips', 'Identity', 'In-domain sync'}


def test_lanes_lie_on_the_videos_time(session_bag: Path) -> None:
    lanes, seconds = session_page.timeline_lanes(read_bag(session_bag))
    assert seconds == pytest.approx(8.0, abs=0.05)
    by_name = {lane.name: lane.spans for lane in lanes}
    assert [span.label for span in by_name['state']] == ['idle', 'speaking', 'idle']
    assert by_name['state'][1].start_s == pytest.approx(3.2, abs=0.05)
    assert by_name['avatar'][0].start_s == pytest.approx(3.2, abs=0.05)
    assert by_name['user'][0].start_s == pytest.approx(1.0, abs=0.2)
    assert [span.label for span in by_name['intent']] == ['nod']
    assert by_name['missed'] == []


def test_seams_leave_held_chunks_out(session_bag: Path) -> None:
    """In the synthetic bag the mouth flickers inside the ten chunks of speech alone."""
    recording = read_bag(session_bag)
    analysis = analyse(recording)
    assert analysis.track is not None
    place = session.seam_places(recording, analysis.track)
    chunk = np.arange(place.size) // 4
    assert set(chunk[place > 0]) == set(range(20, 30))
    # A border counts between two chunks that live.
    assert set(chunk[place == 0]) == set(range(21, 30))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None,
                    reason='apt install chromium chromium-driver')
def test_the_page_in_a_browser(session_bag: Path, tmp_path: Path) -> None:
    from selenium import webdriver

    result = make_report(read_bag(session_bag), [Expected('nod', 'please nod', 'nod')], tmp_path,
                         'Session', lambda _: None, ReportOptions(False, ('avatar evaluate',)))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(executable_path=CHROMEDRIVER))
    driver.set_script_timeout(20)
    try:
        driver.get((tmp_path / 'report.html').as_uri())
        assert driver.execute_async_script(
            'const done = arguments[0], video = document.querySelector("video");'
            'const go = () => done(video.videoWidth);'
            'if (video.readyState >= 1) go(); else video.onloadedmetadata = go;') == 512
        assert driver.execute_script('return document.querySelectorAll("figure svg").length') >= 11
        assert driver.execute_script('return document.querySelectorAll(".lane").length') == 7
        seen = json.loads(driver.execute_script(
            'return document.getElementById("report").textContent'))
        assert seen['turns'] == result['turns']
        assert not driver.get_log('browser')
    finally:
        driver.quit()
