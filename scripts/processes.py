"""The processes of a run: how they find each other, which of them speaks, and what stops them."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, reached_preemption_sync_point
from recipes import Config

HEARTBEAT = 20  # seconds without a sign of life after which a process is taken for dead
INTERRUPTED, PREEMPTED = 130, 75  # exit codes: Ctrl-C's usual one; EX_TEMPFAIL of sysexits.h, "try again"


class Preempted(Exception):  # noqa: N818
    """The run was told to stop, and has saved a checkpoint to go on from."""


def join(config: Config) -> None:
    """Become one of the processes of a run; before anything else is done with JAX.

    Raises:
      ValueError: settings that do not belong together.
    """
    given = config.processes is not None, config.process is not None
    if config.coordinator in (None, "auto"):
        if any(given):
            raise ValueError("--processes and --process belong to --coordinator host:port")
        if config.coordinator:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        return
    if not all(given):
        raise ValueError("--coordinator host:port needs --processes and --process: how many there are, which this is")
    jax.distributed.initialize(
        config.coordinator, config.processes, config.process, heartbeat_timeout_seconds=HEARTBEAT
    )


def is_writer() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Tell the person; the standard output is for the result."""
    if is_writer():
        print(line, file=sys.stderr, flush=True)


def agreed(wish: bool) -> bool:
    """What the first process wishes: clocks differ, and all have to do the same."""
    return bool(broadcast_one_to_all(np.bool_(wish))) if jax.process_count() > 1 else wish


def told_to_stop() -> Callable[[int], bool]:
    """Whether SIGTERM has come, as a function of the epochs done; several processes agree on after which they stop.

    Also minds Ctrl-C. Where there is nothing to keep (before the first epoch), or one process alone cannot keep it,
    it ends the process at once. Otherwise it is a KeyboardInterrupt, and here again if that was lost: callbacks such as
    JAX's for the garbage collector lose it.
    """
    epochs_begun, terminated, interrupted = threading.Event(), threading.Event(), threading.Event()

    def interrupt(*_):
        if not epochs_begun.is_set() or jax.process_count() > 1:
            leave()
        interrupted.set()
        raise KeyboardInterrupt

    def asked(done: int) -> bool:
        epochs_begun.set()
        if interrupted.is_set():
            raise KeyboardInterrupt
        return reached_preemption_sync_point(done) if jax.process_count() > 1 else terminated.is_set()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so where a shell started it with &
        signal.signal(signal.SIGINT, interrupt)
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    return asked


def leave() -> NoReturn:
    """End the process after Ctrl-C. XLA may be compiling in other threads, and does not survive an ordinary exit."""
    os.write(2, b"train_mnist: interrupted\n")  # in a signal handler, `print` may meet itself
    os._exit(INTERRUPTED)
