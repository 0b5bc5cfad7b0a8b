"""The processes of a run: how they connect, which of them prints, and what stops them."""

import hashlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather, reached_preemption_sync_point
from mnist.settings import LARGEST, Config

from funcnet import sharding

HEARTBEAT = 20  # seconds without a heartbeat after which a process counts as dead
FAILED, INTERRUPTED, PREEMPTED = 1, 130, 75  # exit codes; Ctrl-C's usual one; EX_TEMPFAIL of sysexits.h, "try again"


class Preempted(Exception):  # noqa: N818
    """The run was told to stop, and has saved a checkpoint from which it can continue."""


def join(config: Config) -> None:
    """Become one of the processes of a run; call it before any other use of JAX.

    Raises:
      ValueError: the settings do not fit together.
    """
    processes, process = config.processes, config.process
    if config.coordinator in (None, "auto"):
        if processes is not None or process is not None:
            raise ValueError("--processes and --process belong to --coordinator host:port")
        if config.coordinator is None:
            return
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    else:
        address = re.fullmatch(r".+:(\d{1,5})", config.coordinator)
        if address is None or int(address[1]) > 65535:
            raise ValueError(f"--coordinator is {config.coordinator!r}, expected host:port or auto")
        if processes is None or process is None:
            raise ValueError(
                "--coordinator host:port needs --processes and --process: how many there are, and which is this one"
            )
        if not 0 <= process < processes <= LARGEST:
            raise ValueError(
                f"--process is {process} and --processes {processes}, expected whole numbers, --process from 0 and "
                f"below --processes, and that at most {LARGEST}"
            )
        jax.distributed.initialize(config.coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    everything = jax.device_count()
    if jax.process_count() > 1 and (not config.mesh or sharding.make_mesh(config.mesh).size < everything):
        raise ValueError(
            f"--mesh is {config.mesh!r}, expected one over all {everything} devices of the "
            f"{jax.process_count()} processes, such as data={everything}"
        )


def check_same(facts: dict[str, Any]) -> None:
    """Refuse to train if the processes have different settings or data.

    Args:
      facts: by name, the facts that must be the same in all processes.

    Raises:
      ValueError: in every process, if facts differ; the message names them.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr(fact).encode()).digest() for fact in facts.values()]
    every = process_allgather(np.frombuffer(b"".join(digests), np.uint32).reshape(len(facts), -1))
    differ = (every != every[0]).any((0, 2))
    if differ.any():
        here = [f"{name} {fact!r:.200}" for (name, fact), other in zip(facts.items(), differ, strict=True) if other]
        raise ValueError(f"not all processes have the same as process {jax.process_index()}: {', '.join(here)}")


def is_writer() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a message to standard error; the standard output is for the result."""
    if is_writer():
        print(line, file=sys.stderr, flush=True)


def agreed(wish: bool) -> bool:
    """The wish of the first process, for all: their clocks differ, but all must do the same."""
    return bool(broadcast_one_to_all(np.bool_(wish))) if jax.process_count() > 1 else wish


def told_to_stop() -> tuple[Callable[[int], bool], Callable[[], None]]:
    """Handle Ctrl-C and SIGTERM from here on.

    While there are results to lose, Ctrl-C, however often, is only recorded, and raises KeyboardInterrupt between two
    epochs, where nothing is half done. (Python could not raise it earlier: an epoch is one call.) Before the first
    epoch, when all is saved, and with several processes, of which one alone cannot save, it ends the process at once.

    Returns:
      `asked(done)`, with the number of finished epochs: whether SIGTERM has come; several processes agree on the epoch
      at which they stop. It raises KeyboardInterrupt after Ctrl-C. And `saved()`, to be called when all is saved.
    """
    something_to_lose, terminated, interrupted = threading.Event(), threading.Event(), threading.Event()

    def interrupt(*_):
        if not something_to_lose.is_set() or jax.process_count() > 1:
            leave()
        interrupted.set()

    def asked(done: int) -> bool:
        something_to_lose.set()
        if interrupted.is_set():
            raise KeyboardInterrupt
        return reached_preemption_sync_point(done) if jax.process_count() > 1 else terminated.is_set()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if a shell started it with &
        signal.signal(signal.SIGINT, interrupt)
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    return asked, something_to_lose.clear


def give_up() -> int:
    """The exit code of a failure; one of several processes exits at once, since a normal exit would wait for all."""
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(FAILED)
    return FAILED


def leave() -> NoReturn:
    """End the process after Ctrl-C. XLA may be compiling in other threads, and does not survive an ordinary exit."""
    with suppress(OSError):
        os.write(2, b"train_mnist: interrupted\n")  # in a signal handler, `print` is not reentrant
    os._exit(INTERRUPTED)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence orbax's threads, which print hundreds of lines about a full disk; the run gets an exception anyway."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before, hook = [logger.level for logger in loggers], threading.excepthook
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        threading.excepthook = lambda _: None
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Do not fail if standard output or error is full, closed or broken, or cannot encode some characters."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: the next file, e.g. of weights, would get its number
    os.close(fd)
    out, err = (Unfailing(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))  # noqa: PTH123, SIM115
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


@dataclass(frozen=True)
class Unfailing:
    """A stream that becomes the null device when it fails."""

    stream: TextIO

    def __post_init__(self):
        if isinstance(self.stream, TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")  # for names that it cannot encode

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, if possible."""
        self._attempt(lambda: (self.stream.write(text), self.stream.flush()))
        return len(text)

    def flush(self) -> None:
        """Flush, if possible."""
        self._attempt(self.stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())  # its buffer is also written there at the end
                os.close(null)
            if self.stream is sys.__stdout__:
                say(f"standard output: {error}; the run continues without it")
