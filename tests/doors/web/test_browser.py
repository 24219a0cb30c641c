"""The server of feeds and a real browser: Chromium without a window, told what to do by a pipe.

Skipped where there is no Chromium.  The browser speaks its DevTools protocol, JSON
texts that end in a NUL, on the file descriptors 3 and 4.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import transaction

from zodbjobs import Feeds
from zodbjobs.interfaces import FEEDS_KEY
from zodbjobs.testing import storages
from zodbjobs.testing.waiting import wait_until

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium'),
]

#: What a page of an application does: listen from a number on, and keep what comes.
LISTEN = """
    window.heard = []; window.opened = 0;
    window.listener = new EventSource('/feeds/news/events?since=%s');
    window.listener.onopen = () => { window.opened += 1 };
    window.listener.addEventListener('publish', event =>
        window.heard.push([event.lastEventId, JSON.parse(event.data).item]));
"""


class Browser:
    """A page in a headless Chromium."""

    def __init__(self, folder):
        here, its_out = os.pipe()
        its_in, there = os.pipe()
        self.process = subprocess.Popen(
            [
                'bash', '-c', f'exec "$@" 3<&{its_in} 4>&{its_out}', 'bash', CHROMIUM, '--headless',
                '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                '--remote-debugging-pipe', f'--user-data-dir={folder}', 'about:blank',
            ],
            pass_fds=(its_in, its_out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(its_in)
        os.close(its_out)
        self.here, self.there = os.fdopen(here, 'rb'), os.fdopen(there, 'wb')
        self.number, self.buffer, self.session = 0, b'', None
        target = self.ask('Target.createTarget', url='about:blank')['targetId']
        found = self.ask('Target.attachToTarget', targetId=target, flatten=True)
        self.session = found['sessionId']

    def ask(self, method, **params):
        """What it answers to a command of the protocol; what it tells besides is passed over."""
        self.number += 1
        command = {'id': self.number, 'method': method, 'params': params}
        if self.session:
            command['sessionId'] = self.session
        self.there.write(json.dumps(command).encode() + b'\0')
        self.there.flush()
        while True:
            while b'\0' not in self.buffer:
                got = os.read(self.here.fileno(), 65_536)
                assert got, 'the browser has ended'
                self.buffer += got
            text, self.buffer = self.buffer.split(b'\0', 1)
            message = json.loads(text)
            if message.get('id') == self.number:
                assert 'error' not in message, message
                return message['result']

    def run(self, code):
        """The value of JavaScript in the page."""
        found = self.ask('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def go(self, url):
        self.ask('Page.navigate', url=url)
        assert wait_until(lambda: self.run('document.readyState') == 'complete', SECONDS)

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.session = None
            self.ask('Browser.close')
        self.process.kill()
        self.process.wait()
        self.here.close()
        self.there.close()


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / 'profile')
    yield browser
    browser.close()


@contextlib.contextmanager
def served(uri, port=0, *options):
    """(process, its address) of ``zodbjobs feed serve``."""
    words = [sys.executable, '-m', 'zodbjobs', 'feed', 'serve', uri, '--port', str(port)]
    process = subprocess.Popen([*words, *options], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if 'serving feeds at' in line:
                yield process, line.split()[-1]
                return
        raise AssertionError('it does not serve')
    finally:
        process.kill()
        process.communicate()


class Publisher:
    """Publishes to the feed 'news', each item in a commit."""

    def __init__(self, db):
        self.manager = transaction.TransactionManager()
        self.connection = db.open(self.manager)
        feeds = self.connection.root()[FEEDS_KEY] = Feeds()
        self.manager.commit()
        self.news = feeds.feed('news')
        self.manager.commit()

    def publish(self, *items):
        for item in items:
            self.manager.begin()
            self.news.publish(item)
            self.manager.commit()


@pytest.fixture
def place(tmp_path):
    with storages.zeo_database(tmp_path) as place:
        yield place


def test_a_browser_that_comes_back_gets_exactly_what_it_missed(place, browser):
    """The server is killed; what is published meanwhile comes, once, and in its order."""
    publisher = Publisher(place.db)
    publisher.publish('before')
    items = lambda: [item for _, item in browser.run('window.heard')]  # noqa: E731
    with served(place.uri) as (process, address):
        browser.go(address)
        number = browser.run("fetch('/feeds/news').then(a => a.json()).then(f => f.number)")
        publisher.publish('between')  # after the page has read the feed, and before it listens
        browser.run(LISTEN % number)
        publisher.publish(*range(3))
        assert wait_until(lambda: len(items()) == 4, SECONDS)
        process.kill()  # by SIGKILL: nothing is said to the browser
    publisher.publish(*range(3, 10))
    with served(place.uri, address.rstrip('/').rpartition(':')[2]):
        assert wait_until(lambda: browser.run('window.opened') >= 2, SECONDS)
        publisher.publish(10)
        assert wait_until(lambda: len(items()) >= 12, SECONDS)
        assert items() == ['between', *range(11)]
        ids = [int(id) for id, _ in browser.run('window.heard')]
        assert ids == sorted(set(ids))


def test_the_page_that_is_there_shows_what_happens(place, browser):
    publisher = Publisher(place.db)
    publisher.publish('one', {'two': 2})
    shown = lambda: browser.run("[...document.querySelectorAll('li')].map(l => l.textContent)")  # noqa: E731
    with served(place.uri) as (_, address):
        browser.go(f'{address}#news')
        assert wait_until(lambda: shown() == ['one', '{"two":2}'], SECONDS)
        assert wait_until(
            lambda: browser.run("document.getElementById('state').textContent") == 'listening',
            SECONDS,
        )
        publisher.publish('<b>three</b>')
        publisher.news.retract(publisher.news.get_ids()[0])
        publisher.manager.commit()
        assert wait_until(lambda: shown() == ['{"two":2}', '<b>three</b>'], SECONDS)


def test_pages_of_other_origins_read_only_where_that_is_allowed(place, browser):
    Publisher(place.db).publish('secret')
    ask = "fetch('%sfeeds/news').then(a => a.json()).then(f => f.count, () => 'refused')"
    with served(place.uri) as (_, page), served(place.uri) as (_, other):
        browser.go(page)
        assert browser.run(ask % page) == 1
        assert browser.run(f'({ask % other}).catch(() => "refused")') == 'refused'
    origin = page.rstrip('/')
    port = origin.rpartition(':')[2]
    with served(place.uri, port), served(place.uri, 0, '--allow-origin', origin) as (_, other):
        assert browser.run(ask % other) == 1
        browser.run(f"window.other = new EventSource('{other}events')")
        assert wait_until(lambda: browser.run('window.other.readyState') == 1, SECONDS)
