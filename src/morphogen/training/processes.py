"""Joining the processes that torchrun or a cluster started, without ever waiting in silence."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta

from morphogen.core.console import say
from morphogen.core.errors import InputError

# What accelerate would take a number of processes from, besides: of jobs and shells that MPI has started.
_OF_MPI = [f"{kind}_{what}" for kind in ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD") for what in ("SIZE", "RANK")]
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SAY_AFTER_S = 3.0
_GIVE_UP_AFTER_S = 300.0
_PATIENCE = timedelta(hours=24)  # how long joined processes wait for one that encodes latents or reads a slow disk


def world_size() -> int:
    """How many processes the environment says a training has; 1 where it says nothing.

    Raises InputError where WORLD_SIZE is no such number, or what the processes need to find one another is missing.
    """
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"WORLD_SIZE is '{text}' in the environment; it should be a number of processes, as torchrun sets it; "
            "unset it to train in one process"
        )
    count = int(text)
    missing = [name for name in _NEEDED if not os.environ.get(name, "").strip()]
    if count > 1 and missing:
        raise InputError(
            f"WORLD_SIZE={count} is set in the environment, but {' and '.join(missing)} {_is(missing)} not; start with "
            "torchrun, or unset WORLD_SIZE to train in one process"
        )
    wrong = [n for n in ("RANK", "LOCAL_RANK", "MASTER_PORT") if count > 1 and not os.environ[n].strip().isdecimal()]
    if wrong or (count > 1 and int(os.environ["RANK"]) >= count):
        name = (wrong or ["RANK"])[0]
        raise InputError(
            f"{name} is '{os.environ[name]}' in the environment, which does not go with WORLD_SIZE={count}; start with "
            "torchrun, or unset WORLD_SIZE to train in one process"
        )
    return count


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


several = False
"""Whether this is one of several processes, which should end at once: see `morphogen.cli.main`."""


def join_processes(device_type: str) -> None:
    """Wait for the other processes of this training, if the environment speaks of any, and say so where it takes long.

    Raises InputError where they have not come after five minutes.
    """
    global several
    count = world_size()
    several = count > 1
    if count == 1:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", *_OF_MPI):  # an empty or lonely one would confuse accelerate
            os.environ.pop(name, None)
        return
    import torch
    from torch.distributed.rendezvous import rendezvous

    if torch.distributed.is_initialized():
        return
    failed: list[Exception] = []
    done = threading.Event()

    def join() -> None:
        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=_GIVE_UP_AFTER_S)))
            torch.distributed.init_process_group(
                "nccl" if device_type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
            )
        except Exception as error:  # handed to the thread that waits
            failed.append(error)
        finally:
            done.set()

    # In a thread, so that this one can say what it waits for, and hears Ctrl-C.
    threading.Thread(target=join, daemon=True).start()
    started, said = time.monotonic(), False
    while not done.wait(0.1):
        waited = time.monotonic() - started
        if waited > _SAY_AFTER_S and not said:
            said = True
            say(f"{_waiting(count)} ...; giving up after 5 minutes", error=True)
        if waited > _GIVE_UP_AFTER_S + 5:
            break
    if failed or not done.is_set():
        reason = str(failed[0]).splitlines()[0] if failed and str(failed[0]) else "they did not come"
        raise InputError(
            f"gave up {_waiting(count)}: {reason}; start all of them, or unset WORLD_SIZE to train in one process"
        )


def _waiting(count: int) -> str:
    others = "1 more process" if count == 2 else f"{count - 1} more processes"
    return f"waiting for {others} (WORLD_SIZE={count})"
