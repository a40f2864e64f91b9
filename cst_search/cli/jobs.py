"""Commands for searches that run as jobs on a cluster, independent of this machine: `submit` and `job`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cst_search.cli.app import (
    SERVICES,
    JobArgument,
    JobServerOption,
    JsonOption,
    app,
    err,
    job_app,
    only_checking,
    print_json,
    say,
)
from cst_search.errors import check_choice
from cst_search.visible import visible


@app.command(rich_help_panel=SERVICES)
def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND ...", help="launch, resume or confirm, with its options.")
    ],
    address: JobServerOption,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the job's output until it ends; Ctrl-C leaves it running.")
    ] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the job's state as JSON, and its output to stderr.")
    ] = False,
) -> None:
    """Submit a search to a Ray cluster as a job, independent of this machine."""
    from cst_search.commands import submit as jobs

    check_choice("submit's command", words[0], jobs.COMMANDS)
    jobs.check_words(words[0], _understood(words))
    server = jobs.Jobs(address)
    job = server.submit(words)
    err.print(f"job {job} on {address}", markup=False, highlight=False)
    for verb in ("status", "logs --follow", "stop"):
        err.print(f"  cst-search job {verb} {job} --address {address}", markup=False, highlight=False, soft_wrap=True)
    if not wait:
        if json_:
            print_json(asdict(server.state(job)))
        else:
            print(job)
        return
    try:
        server.follow(job, sys.stderr.write if json_ else jobs.write_out)
    except KeyboardInterrupt:
        err.print(f"job {job} goes on; `cst-search job stop` ends it", markup=False, highlight=False)
        raise typer.Exit(130) from None
    state = server.state(job)
    if json_:
        print_json(asdict(state))
    _exit_as(state)


def _understood(words: list[str]) -> dict[str, Any]:
    """Return the options of a command, checked as that command checks them, without running it."""
    command = typer.main.get_command(app)
    root = command.make_context("cst-search", ["ls"])
    named = command.get_command(root, words[0])  # type: ignore[attr-defined]
    context = named.make_context(words[0], list(words[1:]), parent=root)
    if words[0] == "launch":
        token = only_checking.set(True)
        try:
            named.invoke(context)
        finally:
            only_checking.reset(token)
    return dict(context.params)


def _exit_as(state: Any) -> None:
    """Exit with the exit code of a finished job."""
    if state.state != "SUCCEEDED":  # its message repeats the output
        why = state.message.partition(",")[0]
        err.print(f"cst-search: job {state.job} {state.state.lower()}: {why}", markup=False, highlight=False)
        raise typer.Exit(130 if state.state == "STOPPED" else state.exit_code or 1)


@job_app.command("status")
def job_status(job: JobArgument, address: JobServerOption, json_: JsonOption = False) -> None:
    """Show the state of a job."""
    from cst_search.commands.submit import Jobs

    state = Jobs(address).state(job)
    if json_:
        print_json(asdict(state))
        return
    say(f"job {job}: {state.state.lower()}, begun {state.begun}, ended {state.ended or '-'}")
    say(f"  {state.command}")
    if state.message:
        say(f"  {state.message}")


@job_app.command("logs")
def job_logs(
    job: JobArgument,
    address: JobServerOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show the output of a job."""
    from cst_search.commands.submit import Jobs, write_out

    server = Jobs(address)
    if follow:
        try:
            server.follow(job, sys.stderr.write if json_ else write_out)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if json_:
        print_json(asdict(server.state(job)) | {"logs": server.logs(job)})
    elif not follow:
        write_out(visible(server.logs(job)))


@job_app.command("stop")
def job_stop(job: JobArgument, address: JobServerOption, json_: JsonOption = False) -> None:
    """Stop a job as Ctrl-C would: finished trials are kept, and `resume` continues."""
    from cst_search.commands.submit import Jobs

    server = Jobs(address)
    state = server.state(job)
    stopped = not state.is_over and server.stop(job)
    if json_:
        print_json(asdict(server.state(job)) | {"stopped": stopped})
    elif not stopped:
        say(f"job {job} is over: {state.state.lower()}")
    else:
        say(f"job {job} is told to end; `cst-search job status {job} --address {address}` says when it has")
