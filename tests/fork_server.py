"""Runs `morphogen` in real processes without importing PyTorch for each: a process that forks one for every order.

An order is a line of JSON on standard input: {"argv": [...], "out": FILE, "err": FILE, "env": {...}, "file_limit":
BYTES or null}. It is answered with a line that holds the child's process id, and later one that holds how it ended
(negative: the signal).
"""

import contextlib
import json
import os
import sys
import traceback

import accelerate  # noqa: F401
import torch
import torch._dynamo  # torch.optim wants it, and it takes longer than everything else

import morphogen.data.files
import morphogen.training.loop  # noqa: F401
from morphogen.cli.main import main


def child(order: dict) -> int:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    os.environ.update(order.get("env", {}))
    if order.get("file_limit") is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    sys.argv = ["morphogen", *order["argv"]]
    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code if isinstance(code, int) else 1


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(child(order))
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
