"""`morphogen`: the commands, and what an error becomes on the way out."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from morphogen._version import VERSION
from morphogen.cli import (
    app_page,
    classify,
    compare,
    data,
    doctor,
    evaluate,
    expand,
    export,
    info,
    inpaint,
    models,
    paint,
    sample,
    segment,
    serve,
    slide,
    train,
    upscale,
    vary,
    weights,
)
from morphogen.cli.aliases import in_our_words, nearest_options
from morphogen.core.cache import cache_folder, is_usable
from morphogen.core.console import flush_output, prepare_streams, say
from morphogen.core.errors import InputError, Interrupted, MorphogenError
from morphogen.core.notices import say_once

_USAGE_ERROR: Any = typer.BadParameter.__base__  # of click, which newer versions of typer carry inside
_KEYBOARD_INTERRUPT = 130  # what newer versions of typer make of Ctrl-C
_NO_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)  # what PyTorch says

app = typer.Typer(
    name="morphogen",
    help="Image diffusion with neural cellular automata: train on a folder of images, paint any size.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("sample")(sample.command)
app.command("inpaint")(inpaint.command)
app.command("upscale")(upscale.command)
app.command("vary")(vary.command)
app.command("paint")(paint.command)
app.command("slide", cls=slide.Command)(slide.command)
app.command("serve")(serve.command)
app.command("app")(app_page.command)
app.command("evaluate")(evaluate.command)
app.command("compare")(compare.command)
app.command("expand")(expand.command)
app.command("classify")(classify.command)
app.command("segment")(segment.command)
app.command("export")(export.command)
app.command("doctor")(doctor.command)
app.command("models")(models.command)
app.command("info")(info.command)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


def _version(value: bool) -> None:
    if value:
        say(f"morphogen {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _run() -> int:
    """Run a command; its exit code. What is wrong with an option becomes one sentence instead of typer's box."""
    try:
        code = app(in_our_words(sys.argv[1:]), standalone_mode=False)
    except _USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return InputError.exit_code
        if type(error).__name__ == "NoSuchOption" and error.ctx is not None:
            meant = " or ".join(nearest_options(error.option_name, error.ctx.command))
            instead = f"; did you mean {meant}?" if meant else f" (see {error.ctx.command_path} --help)"
            raise InputError(f"there is no option {error.option_name}{instead}") from None
        sentence = " ".join(error.format_message().split()).rstrip(".")
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        raise InputError(sentence[:1].lower() + sentence[1:] + hint) from None
    if code == _KEYBOARD_INTERRUPT:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _stop(sentence: str, code: int) -> NoReturn:
    say(f"morphogen: {sentence}", error=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End with an exit code.

    One of several processes (torchrun) ends at once: a thread of gloo's that lets go of its last tensor while Python
    winds down would abort it.
    """
    processes = sys.modules.get("morphogen.training.processes")
    if processes is not None and processes.several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end_interrupted() -> NoReturn:
    """Say that the command was interrupted and end, at once: where an interruption met code that Python runs from a
    string, as the making of a dataclass does, it would else end by SIGINT, whatever was caught.
    """
    say("morphogen: interrupted; what was finished is kept", error=True)
    with contextlib.suppress(OSError, ValueError):  # closed streams
        sys.stdout.flush()
        sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(Interrupted.exit_code)


_terminated = threading.Event()


def _on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does, and the processes that it forks as ever."""
    own = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == own:
            warnings.simplefilter("ignore", ResourceWarning)  # of what is open just now, which the end closes
            _terminated.set()
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
        signal.signal(signal.SIGTERM, handle)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning of a library as one line, once, without the place in its source."""
    say_once(f"warning: {' '.join(str(message).split())}")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 wrong use or input, 3 interrupted with the work saved, 1 a bug."""
    # On a machine with other work, threads that spin while they wait for one another make a step ten times slower
    # (benchmarks/NOTES.md); it must be said before torch starts them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if is_usable(cache_folder("torchinductor")):  # else it leaves a folder where temporary files belong
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("torchinductor")))
    prepare_streams()
    _on_sigterm()
    warnings.showwarning = _show_warning
    try:
        try:
            code = _run()
            flush_output()  # while a reader that has gone away can still be told from a bug
        except Exception as error:
            if _terminated.is_set() and not isinstance(error, MorphogenError):
                raise KeyboardInterrupt from error  # an import that was interrupted raises what it likes
            raise
        _leave(code)
    except MorphogenError as error:
        _stop(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end_interrupted()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        _stop("there is not enough memory; a smaller --size, image or --batch-size needs less", InputError.exit_code)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        name = str(error.filename)
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        _stop(f"{shown} cannot be a path: {(error.strerror or str(error)).lower()}", InputError.exit_code)
