# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium: pictures in step with sound, microphone, captions, faults."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media import decode_image, encode_jpeg, level_dbfs, to_int16
from interactive_avatar.web import AvatarPage

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed: '
                                                             'pip install selenium')
CHROMIUM = next((found for name in ('chromium', 'chromium-browser', 'google-chrome')
                 if (found := shutil.which(name))), None)
CHROMEDRIVER = shutil.which('chromedriver')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None,
                       reason='Chromium or chromedriver is missing: '
                              'apt install chromium chromium-driver'),
]

WHITE = encode_jpeg(np.full((64, 64, 3), 255, np.uint8))
BLACK = encode_jpeg(np.zeros((64, 64, 3), np.uint8))
TONE = to_int16(0.5 * np.sin(2 * np.pi * 500 * np.arange(2560) / 16_000))
SILENCE = np.zeros(2560, np.int16)
# Watches canvas and loudspeaker at once and notes when each comes on.
WATCH = """
const done = arguments[arguments.length - 1];
const {player} = window.avatar;
const meter = new AnalyserNode(player.context, {fftSize: 256});
player.node.connect(meter);
const canvas = player.canvas.getContext('2d');
const level = new Float32Array(256);
const seen = {picture: [], sound: []};
let bright = true, loud = true;
const until = performance.now() + 5000;
const timer = setInterval(() => {
  const now = performance.now();
  const isBright = canvas.getImageData(5, 5, 1, 1).data[0] > 128;
  if (isBright && !bright) seen.picture.push(now);
  bright = isBright;
  meter.getFloatTimeDomainData(level);
  const isLoud = Math.max(...level) > 0.1;
  // The meter is ahead of the ear by what the output still holds.
  if (isLoud && !loud) seen.sound.push(now + 1000 * (player.context.outputLatency || 0));
  loud = isLoud;
  if (now > until) {
    clearInterval(timer);
    player.node.disconnect(meter);
    done(seen);
  }
}, 4);
"""


@contextmanager
def browser(*extra: str) -> Iterator[Any]:
    """Headless Chromium with a fake microphone that beeps."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic',
                 '--no-first-run', '--disable-background-networking',
                 '--disable-component-update', '--disable-sync', '--window-size=1280,800',
                 '--disable-dev-shm-usage', '--use-fake-device-for-media-stream', *extra):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options,
                              service=webdriver.ChromeService(executable_path=CHROMEDRIVER))
    driver.set_script_timeout(20)
    try:
        yield driver
    finally:
        driver.quit()


class Source:
    """Feeds a page in real time: one white chunk with a tone among four black silent ones."""

    def __init__(self, page: AvatarPage) -> None:
        self._page = page
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Source:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start_s, t0_ns, index = time.monotonic(), time.time_ns(), 0
        while not self._stop.is_set():
            on = index % 5 == 0
            self._page.publish_chunk(t0_ns + index * 160_000_000, [WHITE if on else BLACK] * 4,
                                     TONE if on else SILENCE)
            index += 1
            self._stop.wait(max(0.0, start_s + index * 0.16 - time.monotonic()))


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something true and return it."""
    end_s = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end_s, 'timed out'
        time.sleep(0.05)
    return value


def test_a_visit_to_the_page() -> None:
    heard: list[NDArray[np.int16]] = []
    typed: list[str] = []
    page = AvatarPage(0, lambda samples, _: heard.append(samples), typed.append)
    with page, browser('--use-fake-ui-for-media-stream') as driver, Source(page):
        def shown(name: str) -> str:
            return str(driver.find_element('id', name).text)

        def stats() -> dict[str, Any]:
            return dict(driver.execute_script('return window.avatar.player.stats'))

        driver.get(page.url)
        # Pictures come at once; sound waits for a click, as browsers demand.
        wait_for(lambda: stats()['shown'] > 10)
        assert stats()['clock'] == 'machine'
        assert shown('link') == 'connected'
        assert shown('sound-text') == 'Click for sound'

        driver.find_element('id', 'microphone').click()
        wait_for(lambda: len(heard) > 50)
        wait_for(lambda: stats()['clock'] == 'sound')
        sound = np.concatenate(list(heard))
        assert all(block.size == 320 for block in heard)
        # Chromium's fake microphone beeps.
        assert level_dbfs(sound) > -50

        seen = driver.execute_async_script(WATCH)
        assert len(seen['picture']) >= 4
        offsets = [min(seen['sound'], key=lambda at, flash=flash: abs(at - flash)) - flash
                   for flash in seen['picture']]
        print(f'picture to sound, ms: {[round(offset) for offset in offsets]}')
        # A picture lasts 40 ms, a display's refresh 17 ms, the meter's window 16 ms.
        assert abs(float(np.median(offsets))) < 60, offsets

        page.publish_state({'phase': 'ACTION', 'activity': 'SPEAKING', 'prompt': 'a prompt'})
        page.publish_intent({'intent': 'wear', 'confidence': 0.9, 'slots': {'object': 'hat'}})
        page.publish_caption('user', 'put on', final=False)
        page.publish_caption('user', 'put on your <b>hat</b>')
        page.publish_caption('avatar', 'gladly')
        wait_for(lambda: shown('subtitle') == 'gladly')
        assert shown('activity') == 'Speaking'
        assert shown('intent') == 'wear: hat'
        assert shown('prompt') == 'a prompt'
        assert [line.text for line in driver.find_elements('css selector', '#captions li')] == [
            'put on your <b>hat</b>', 'gladly']

        driver.find_element('id', 'text').send_keys('hello\n')
        wait_for(lambda: typed == ['hello'])

        driver.find_element('id', 'microphone').click()
        time.sleep(0.3)
        count = len(heard)
        time.sleep(0.3)
        assert len(heard) == count

        # The server goes away: the page says so, and finds it again by itself.
        port = page.port
        page.close()
        assert page.dropped == 0
        wait_for(lambda: shown('link') == 'connection lost')
        again = AvatarPage(port)
        with again, Source(again):
            wait_for(lambda: shown('link') == 'connected')
            before = stats()['shown']
            wait_for(lambda: stats()['shown'] > before + 10)


# Notes what the browser opens, which it does when `allow` is called, as where the user is asked.
TRACKS = """
window.tracks = [];
const allowed = new Promise((resolve) => { window.allow = resolve; });
const media = navigator.mediaDevices;
const open = media.getUserMedia.bind(media);
media.getUserMedia = async (wanted) => {
  await allowed;
  const stream = await open(wanted);
  window.tracks.push(...stream.getTracks());
  return stream;
};
"""


@pytest.mark.parametrize('device', ['microphone', 'camera'])
def test_a_double_click_opens_one_device_and_the_next_click_closes_it(device: str) -> None:
    sent: list[Any] = []
    page = AvatarPage(0, on_audio=lambda samples, _: sent.append(samples),
                      on_picture=lambda data, _: sent.append(data))
    with page, browser('--use-fake-ui-for-media-stream') as driver:
        def tracks() -> list[str]:
            return list(driver.execute_script(
                'return window.tracks.map((track) => track.readyState)'))

        driver.get(page.url)
        wait_for(lambda: driver.find_element('id', 'link').text == 'connected')
        driver.execute_script(TRACKS)
        button = driver.find_element('id', device)
        driver.execute_script('arguments[0].click(); arguments[0].click();', button)
        button.click()
        driver.execute_script('window.allow()')
        wait_for(lambda: len(sent) > 3)
        assert button.get_attribute('aria-pressed') == 'true' and tracks() == ['live']
        button.click()
        assert button.get_attribute('aria-pressed') == 'false' and tracks() == ['ended']
        time.sleep(0.3)
        count = len(sent)
        time.sleep(0.5)
        assert len(sent) == count
        button.click()
        wait_for(lambda: len(sent) > count)
        assert tracks() == ['ended', 'live']


def test_a_microphone_that_another_page_took_can_be_taken_back() -> None:
    heard: list[int] = []
    page = AvatarPage(0, on_audio=lambda samples, _: heard.append(samples.size))
    with page, browser('--use-fake-ui-for-media-stream') as driver:
        first = driver.current_window_handle

        def pressed() -> bool:
            button = driver.find_element('id', 'microphone')
            return bool(button.get_attribute('aria-pressed') == 'true')

        driver.get(page.url)
        driver.find_element('id', 'microphone').click()
        wait_for(lambda: len(heard) > 3)
        driver.switch_to.new_window('tab')
        driver.get(page.url)
        driver.find_element('id', 'microphone').click()
        second = driver.current_window_handle
        wait_for(pressed)
        driver.switch_to.window(first)
        wait_for(lambda: not pressed())
        driver.switch_to.window(second)
        assert pressed()
        driver.switch_to.window(first)
        driver.find_element('id', 'microphone').click()
        driver.switch_to.window(second)
        wait_for(lambda: not pressed())
        driver.switch_to.window(first)
        assert pressed()
        count = len(heard)
        wait_for(lambda: len(heard) > count + 3)


@pytest.mark.parametrize('device, fault', [
    ('microphone', "AudioWorklet.prototype.addModule = async () => { throw new Error('no'); }"),
    ('camera', "HTMLMediaElement.prototype.play = async () => { throw new Error('no'); }"),
])
def test_a_device_that_cannot_be_used_does_not_stay_on(device: str, fault: str) -> None:
    with AvatarPage(0) as page, browser('--use-fake-ui-for-media-stream') as driver:
        driver.get(page.url)
        driver.execute_script(f'{TRACKS} {fault}; window.allow();')
        button = driver.find_element('id', device)
        button.click()
        wait_for(lambda: driver.find_element('id', 'notice').text == 'no')
        assert button.get_attribute('aria-pressed') == 'false'
        assert driver.execute_script(
            'return window.tracks.map((track) => track.readyState)') == ['ended']


def test_a_microphone_that_is_denied_is_explained(tmp_path: Path) -> None:
    with AvatarPage(0) as page, browser('--deny-permission-prompts') as driver:
        driver.get(page.url)
        driver.find_element('id', 'microphone').click()
        notice = wait_for(lambda: driver.find_element('id', 'notice').text)
        assert 'allow the microphone' in notice
        button = driver.find_element('id', 'microphone')
        assert button.get_attribute('aria-pressed') == 'false'
        # Without pictures the page says what it waits for.
        assert driver.find_element('id', 'veil').is_displayed()


def test_the_camera_is_off_until_it_is_asked_for_and_sends_small_pictures() -> None:
    seen: list[bytes] = []
    with AvatarPage(0, on_picture=lambda data, _: seen.append(data)) as page, \
            browser('--use-fake-ui-for-media-stream') as driver:
        driver.get(page.url)
        wait_for(lambda: driver.find_element('id', 'link').text == 'connected')
        time.sleep(0.5)
        assert not seen and not driver.find_element('id', 'self').is_displayed()
        button = driver.find_element('id', 'camera')
        button.click()
        wait_for(lambda: len(seen) > 3)
        began, count = time.monotonic(), len(seen)
        time.sleep(2.0)
        rate_hz = (len(seen) - count) / (time.monotonic() - began)
        assert 4 <= rate_hz <= 10
        picture = decode_image(seen[-1])
        assert max(picture.shape[:2]) <= 320 and picture.std() > 10
        assert len(seen[-1]) < 60_000
        assert button.get_attribute('aria-pressed') == 'true'
        assert driver.find_element('id', 'self').is_displayed()
        button.click()
        time.sleep(0.3)
        count = len(seen)
        time.sleep(0.5)
        assert len(seen) == count and button.get_attribute('aria-pressed') == 'false'
        assert not driver.find_element('id', 'self').is_displayed()


@pytest.mark.parametrize('flags, told', [
    (('--deny-permission-prompts',), 'allow the camera'),
    (('--use-fake-ui-for-media-stream',
      '--use-fake-device-for-media-stream=device-count=0'), 'No camera was found')])
def test_a_camera_that_is_denied_or_missing_is_explained(flags: tuple[str, ...],
                                                         told: str) -> None:
    with AvatarPage(0) as page, browser(*flags) as driver:
        driver.get(page.url)
        driver.find_element('id', 'camera').click()
        notice = wait_for(lambda: driver.find_element('id', 'notice').text)
        assert told in notice
        assert driver.find_element('id', 'camera').get_attribute('aria-pressed') == 'false'
