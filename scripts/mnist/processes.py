"""The processes of a run: how they find each other, which of them speaks, and what stops them."""

import hashlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather, reached_preemption_sync_point
from mnist.settings import Config

from funcnet import sharding

HEARTBEAT = 20  # seconds without a sign of life after which a process is taken for dead
FAILED, INTERRUPTED, PREEMPTED = 1, 130, 75  # exit codes; Ctrl-C's usual one; EX_TEMPFAIL of sysexits.h, "try again"


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
        if config.coordinator is None:
            return
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    else:
        if not re.fullmatch(r".+:\d+", config.coordinator):
            raise ValueError(f"--coordinator is {config.coordinator!r}, expected host:port or auto")
        if not all(given):
            raise ValueError(
                "--coordinator host:port needs --processes and --process: how many there are, which this is"
            )
        jax.distributed.initialize(
            config.coordinator, config.processes, config.process, heartbeat_timeout_seconds=HEARTBEAT
        )
    everything = jax.device_count()
    if jax.process_count() > 1 and (not config.mesh or sharding.make_mesh(config.mesh).size < everything):
        raise ValueError(
            f"--mesh is {config.mesh!r}, expected one over all {everything} devices of the "
            f"{jax.process_count()} processes, such as data={everything}"
        )


def check_same(facts: dict[str, Any]) -> None:
    """Refuse to train where the processes are not of one mind.

    Args:
      facts: what has to be the same in all of them, under names.

    Raises:
      ValueError: in every process; says what differs.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr(fact).encode()).digest() for fact in facts.values()]
    every = process_allgather(np.frombuffer(b"".join(digests), np.uint32).reshape(len(facts), -1))
    differ = (every != every[0]).any((0, 2))
    if differ.any():
        here = [f"{name} {fact!r}" for (name, fact), other in zip(facts.items(), differ, strict=True) if other]
        raise ValueError(f"the processes were not all given what process {jax.process_index()} was: {', '.join(here)}")


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


def give_up() -> int:
    """The exit code of a failure; one of several processes ends at once, since at an orderly exit all wait for all."""
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(FAILED)
    return FAILED


def leave() -> NoReturn:
    """End the process after Ctrl-C. XLA may be compiling in other threads, and does not survive an ordinary exit."""
    os.write(2, b"train_mnist: interrupted\n")  # in a signal handler, `print` may meet itself
    os._exit(INTERRUPTED)
