"""The command line. Every command imports what it needs inside itself: `--help` must not wait for torch.

Exit codes: 0 done, 1 the run failed, 2 the user must change something, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from cst_search.cli.app import app, complain
from cst_search.cli.completion import as_bash_asked
from cst_search.cores import wait_passively
from cst_search.errors import CstSearchError
from cst_search.import_path import leave_working_folder

# each adds its commands to `app`, and --help lists them in this order
# isort: off
from cst_search.cli import searches as searches
from cst_search.cli import studies as studies
from cst_search.cli import recipes as recipes
from cst_search.cli import data_sets as data_sets
from cst_search.cli import tasks as tasks
from cst_search.cli import jobs as jobs
from cst_search.cli import services as services
# isort: on

# what the system says of a path that a user gave and of a disk that is full; anything else is a fault of ours
_OF_A_PATH = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
}  # fmt: skip


def _with_compare_all(words: list[str]) -> list[str]:
    """``--compare`` without a list means all methods; typer has no option whose value may be left out."""
    return [
        "--compare=all" if word == "--compare" and following.startswith("-") else word
        for word, following in zip(words, [*words[1:], "-"], strict=False)
    ]


def main() -> None:
    """Entry point: our own errors become one message and an exit code, never a traceback."""
    try:
        sys.argv[1:] = _with_compare_all(sys.argv[1:])
        with as_bash_asked():
            app()
    except CstSearchError as error:
        complain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OF_A_PATH:
            raise
        complain(f"{error.filename or 'a file'}: {error.strerror}; give another path, or make room for it")
        sys.exit(2)


def _open_streams() -> None:
    """Give this process the standard streams that it was started without (``>&-``): what is written goes nowhere.

    Otherwise the next file that it opens, a database say, would have their number, and get what libraries write there.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def run() -> NoReturn:
    """`main` as a program. It ends at once: to take torch, Ray and MLflow apart took 0.8 to 2 s of every command.

    What must be seen to is: threads that are waited for, what was registered for the end, and the output.
    """
    leave_working_folder()
    wait_passively()
    _open_streams()
    for stream in (sys.stdout, sys.stderr):  # a locale that has no letter for a name gets a replacement
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # one whose file was changed below it
                stream.reconfigure(errors="replace")
    code: object = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    starter = sys.modules.get("cst_search.execution.ray_start")
    if starter is None or not starter.is_starting.is_set():
        atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader has gone, or it was closed
            pass
    os._exit(code if isinstance(code, int) else int(code is not None))
