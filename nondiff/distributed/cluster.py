"""A Ray cluster: one that is there, or one of our own on this machine, which nobody else can use."""

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any

VARIABLES = {
    "RAY_AUTH_TOKEN": None,
    "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything else on the machine workers would starve
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_max_direct_call_object_size": str(2**19),  # what is smaller goes by call: its store takes 2 ms for each
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # each is told once, by whoever waits for it
}
"""Of an own cluster."""
WATCH = """cat >/dev/null
for process in /proc/[0-9]*; do
    [ $process = /proc/$DRIVER ] || ! ls -l $process/fd 2>/dev/null | grep -q "$FOLDER/" || kill -KILL ${process#/proc/}
done
pkill -KILL -f "$FOLDER/"
rm -rf "$FOLDER"
"""
"""Waits for the end of its input, which comes with the end of this process, were it by SIGKILL; then nothing of its
clusters is left, for Ray's agents and a worker in a long call outlive their parents. All of them
have files open in the folder, or name it in their commands.
"""


class Cluster:
    """One that somebody else has connected to, and will leave."""

    def close(self) -> None:
        """Undo what was done to get it."""


_own: list["_Embedded"] = []


def is_own() -> bool:
    """Is the cluster that this process is connected to one that it made for itself?"""
    return bool(_own)


def connect(address: str | None) -> Cluster:
    """The cluster of this process if it has one, the one at `address`, or a new one."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('`Ray` needs the package ray: `pip install "nondiff[ray]"`.') from error

    if ray.is_initialized():
        return Cluster()
    return _Embedded() if address is None else _Joined(address)


class _Joined(Cluster):
    def __init__(self, address: str, **options: Any):
        import ray
        from ray._private import worker

        with _undisturbed():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        # Ray prints on stdout, unasked, that a worker has died; here that is `Dispatch`'s to say, by `logging`.
        self._told, worker._worker_logs_enabled = worker._worker_logs_enabled, False

    def close(self) -> None:
        import ray
        from ray._private import worker

        with _undisturbed():
            ray.shutdown()
        worker._worker_logs_enabled = self._told


class _Embedded(_Joined):
    """Who has not the token cannot run code here: that is Ray's own default for a local cluster, but for the file,
    which others may read there.
    """

    def __init__(self):
        self._folder = tempfile.mkdtemp(dir=home())
        wanted = {**VARIABLES, "RAY_AUTH_TOKEN_PATH": f"{home()}/token"}
        self._before = {name: os.environ.get(name) for name in wanted}
        _set(wanted)
        try:
            super().__init__(
                "local",
                include_dashboard=False,
                _temp_dir=self._folder,
                _node_ip_address="127.0.0.1",
            )
        except BaseException:
            self._clean()
            raise
        _own.append(self)

    def close(self) -> None:
        super().close()
        _own.remove(self)
        self._clean()

    def _clean(self) -> None:
        _set(self._before)
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def home() -> str:
    """The folder of this process's clusters, of this user alone, with one token for all, since Ray reads it once; it
    goes with the process.
    """
    place = os.environ.get("RAY_TMPDIR") or ("/tmp" if os.path.isdir("/tmp") else None)  # short: it holds sockets
    folder = tempfile.mkdtemp(prefix="nondiff-", dir=place)
    with os.fdopen(os.open(f"{folder}/token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    environment = {**os.environ, "FOLDER": folder, "DRIVER": str(os.getpid())}
    with _undisturbed():
        _watches.append(
            subprocess.Popen(["sh", "-c", WATCH], stdin=subprocess.PIPE, env=environment, start_new_session=True)
        )
    return folder


_watches: list[subprocess.Popen[bytes]] = []


@atexit.register
def _end() -> None:
    for watch in _watches:
        watch.communicate()


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ray takes SIGTERM for itself, by which a run stops after a step, with a checkpoint; and it forks, which JAX warns
    of, for nothing but to start another program at once.
    """
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
