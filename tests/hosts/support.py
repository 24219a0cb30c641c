"""Real Zope instances for tests: made in a folder, started, asked over a socket, stopped."""

import base64
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

TOP = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
EXAMPLES = TOP / 'docs' / 'examples'
SLUGS = TOP / 'zcml'

#: What instances have beside the slug.
INCLUDES = (EXAMPLES / 'zope' / 'shop.zcml', HERE / 'probe.zcml')

#: Seconds in which a server must be there, and a job done, on a busy machine.
PATIENCE_SECONDS = 100

#: What a Zope keeps its data in: its own file, or what a ZEO server has.
FILE = """
    <blobstorage>
      blob-dir $INSTANCE/var/blobs
      <filestorage>
        path $INSTANCE/var/{name}.fs
      </filestorage>
    </blobstorage>
"""
ZEO = """
    <zeoclient>
      server 127.0.0.1:{port}
      storage 1
      wait yes
      blob-dir $INSTANCE/var/blobs
    </zeoclient>
"""


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def wait_until(look, seconds=PATIENCE_SECONDS):
    """Look every few hundredths of a second until there is something; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        select_nothing()


def select_nothing():
    """Let others go on for a moment."""
    with contextlib.closing(socket.socket()) as waiting:
        waiting.settimeout(0.03)
        waiting.bind(('127.0.0.1', 0))
        waiting.listen()
        with contextlib.suppress(TimeoutError):
            waiting.accept()


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read().decode()

    @property
    def json(self):
        assert self.status in (200, 202), (self.status, self.body[-2000:])
        return json.loads(self.body)


class Client:
    """Asks a server over a socket."""

    def __init__(self, port):
        self.port = port

    def ask(self, path, user=None, method='GET', headers=(), **form):
        """The reply to a request; `user` is 'name:password'."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=PATIENCE_SECONDS)
        headers = dict(headers)
        if user is not None:
            headers['Authorization'] = 'Basic ' + base64.b64encode(user.encode()).decode()
        if form:
            path += '?' + urllib.parse.urlencode(form)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            return Reply(connection.getresponse())


class Instance(Client):
    """The home of a Zope instance, and the servers started in it."""

    #: The first user, a Manager.
    ADMIN = 'admin:secret'

    def __init__(self, home, slug, storage=FILE, more_databases=(), includes=INCLUDES):
        super().__init__(free_port())
        self.home = pathlib.Path(home)
        self.process = None
        for folder in ('etc/package-includes', 'var/log', 'var/cache'):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self._write_databases([('main', '/', storage), *more_databases])
        self._write_server()
        self._write_users()
        import Zope2.utilities

        skel = pathlib.Path(Zope2.utilities.__file__).parent / 'skel' / 'etc'
        shutil.copy(skel / 'site.zcml', self.home / 'etc' / 'site.zcml')
        folder = self.home / 'etc' / 'package-includes'
        shutil.copy(SLUGS / slug, folder / 'zodbjobs-configure.zcml')
        for path in includes:
            shutil.copy(path, folder / f'{path.stem}-configure.zcml')

    def _write_databases(self, databases):
        text = f'%define INSTANCE {self.home}\ninstancehome $INSTANCE\n'
        for name, mount, storage in databases:
            text += f'<zodb_db {name}>{storage.format(name=name)}mount-point {mount}\n</zodb_db>\n'
        (self.home / 'etc' / 'zope.conf').write_text(text)

    def _write_server(self):
        (self.home / 'etc' / 'zope.ini').write_text(f"""
[app:zope]
use = egg:Zope#main
zope_conf = %(here)s/zope.conf

[pipeline:main]
pipeline = egg:Zope#httpexceptions zope

[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = {self.port}
threads = 3

[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = %(asctime)s %(levelname)s %(name)s %(message)s
""")

    def _write_users(self):
        from AuthEncoding import pw_encrypt

        name, password = self.ADMIN.split(':')
        stored = pw_encrypt(password, 'SSHA')
        (self.home / 'inituser').write_bytes(f'{name}:'.encode() + stored + b'\n')

    @property
    def surroundings(self):
        path = os.pathsep.join(
            [str(HERE), str(EXAMPLES / 'zope'), str(EXAMPLES / 'plone'), *filter(None, sys.path)]
        )
        return os.environ | {'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'}

    def _start(self, log, *command):
        with open(self.home / 'var' / log, 'ab') as target:
            return subprocess.Popen(
                [sys.executable, '-m', *command],
                stdout=target,
                stderr=target,
                stdin=subprocess.DEVNULL,
                env=self.surroundings,
                cwd=self.home,
            )

    def start(self):
        """Start the server and wait until it answers."""
        program = 'from Zope2.Startup.serve import main; import sys; sys.exit(main())'
        with open(self.home / 'var' / 'server.log', 'ab') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-c', program, '-v', str(self.home / 'etc' / 'zope.ini')],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=self.surroundings, cwd=self.home,
            )  # fmt: skip
        assert wait_until(self._answers), self.log()

    def _answers(self):
        assert self.process.poll() is None, self.log()
        try:
            return self.ask('/probe?what=counter').status == 200
        except OSError:
            return False

    def start_worker(self, *words):
        """Start `zodbjobs run --zope` on the same configuration; returns the process."""
        conf = str(self.home / 'etc' / 'zope.conf')
        return self._start('worker.log', 'zodbjobs', 'run', '--zope', conf, *words)

    def start_plain_worker(self, *words):
        """Start `zodbjobs run` on the ZEO server, with nothing of Zope; returns the process."""
        storage = (self.home / 'etc' / 'zope.conf').read_text()
        address = storage.partition('server ')[2].split()[0]
        return self._start('plain.log', 'zodbjobs', 'run', f'zeo://{address}', *words)

    def stop(self, number=signal.SIGTERM):
        """Stop the server as an init system does; returns the exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    def log(self, name='server.log'):
        return (self.home / 'var' / name).read_text()[-5000:]

    def probe(self, what, path='', user=ADMIN, headers=(), **form):
        """Call a method of `probe.Probe` and return what it answers."""
        reply = self.ask(f'{path}/@@probe', user, headers=headers, what=what, **form)
        assert reply.status != 500, self.log()
        return reply.json

    def outcome(self, oid):
        """Wait until a job is completed and return how it stands."""

        def look():
            told = self.probe('job', oid=oid)
            return told if told['status'] == 'completed' else None

        found = wait_until(look)
        assert found, (self.probe('job', oid=oid), self.log())
        return found

    def result(self, oid):
        """Wait until a job has succeeded and return its result."""
        told = self.outcome(oid)
        assert told['outcome'] == 'success', told
        return told['result']


@contextlib.contextmanager
def running(instance):
    """Start an instance, and stop it whatever happens."""
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()
