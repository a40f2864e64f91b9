"""Commands about the environment of a search and its record: `doctor`, `ui`, `sync`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cst_search.cli.app import (
    BEFORE,
    SERVICES,
    AddressOption,
    HomeOption,
    JsonOption,
    QuietOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    app,
    err,
    open_study,
    out,
    print_json,
    say,
)
from cst_search.config.catalog import home_of
from cst_search.visible import in_line


@app.command(rich_help_panel=BEFORE)
def doctor(
    home: HomeOption = None,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    address: AddressOption = None,
    with_ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Also start and stop Ray, which takes some seconds.")
    ] = True,
    json_: JsonOption = False,
) -> None:
    """Check this machine and the given services, with a remedy for each fault."""
    from dataclasses import asdict

    from rich.text import Text

    from cst_search.commands.doctor import examine
    from cst_search.study.study import default_storage
    from cst_search.tracking.connection import default_tracking_uri

    url, uri = storage or default_storage(home_of(home)), tracking_uri or default_tracking_uri(home_of(home))
    found = []
    for finding in examine(home_of(home), url, uri, with_ray=with_ray, address=address):
        found.append(finding)
        if not json_:  # line by line, because imports take seconds
            style = {"ok": "green", "note": "yellow", "fault": "red"}[finding.state]
            remedy = f"\n{'':22}{finding.remedy}" if finding.remedy else ""
            out.print(
                Text(f"{finding.state:6}", style), Text(f"{finding.name:15}{finding.text}{remedy}"), soft_wrap=True
            )
    if json_:
        print_json([asdict(finding) for finding in found])
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(1)


@app.command(rich_help_panel=SERVICES)
def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on; the default is reachable from this machine only."
        ),
    ] = "127.0.0.1",
    optuna: Annotated[
        bool,
        typer.Option(
            "--optuna",
            help="Open optuna-dashboard instead. Its scatter plot shows trials over the budget as infeasible; its list "
            "of best trials ignores the budget.",
        ),
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Serve MLflow with the record of the studies."""
    import os
    import sysconfig

    from cst_search.errors import ConfigError, StudyError

    folder = home_of(home)
    if optuna:
        _optuna_dashboard(folder, storage, host, port)
        return
    if storage is not None:
        raise ConfigError("--storage is for --optuna; MLflow has a record of its own")
    if not (folder / "mlflow.db").exists():
        raise StudyError(f"there is no record in {folder} yet; `cst-search launch` makes one, --home looks elsewhere")
    from cst_search.tracking.connection import (
        default_tracking_uri,
        newest_fronts,  # the server imports MLflow too, by then from the page cache
    )

    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # its job runner would add seven processes and 1.5 GB that a viewer does not need
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "UVICORN_APP_DIR": sysconfig.get_path("stdlib"),  # else its server puts the working folder first on its path
    }
    uri, base = default_tracking_uri(folder), f"http://{host}:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", uri, "--default-artifact-root", (folder / "artifacts").absolute().as_uri(),
    ]  # fmt: skip
    say(f"MLflow on {base} in about ten seconds; Ctrl-C ends it")
    for study, link in newest_fronts(uri, base):
        say(f"the front of {in_line(study)}:  {link}")
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # replaces this process, so no child outlives it


@app.command(rich_help_panel=SERVICES)
def sync(
    study: StudyArgument,
    tracking_uri: TrackingOption = None,
    home: HomeOption = None,
    storage: StorageOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Backfill missing runs and artifacts of a study in MLflow: runs, front, page. Any MLflow server will do."""
    info = open_study(study, home, storage).info()
    from cst_search.commands.checks import check_tracking
    from cst_search.commands.report_files import export_best, write_report
    from cst_search.config.catalog import check_folder, study_folder
    from cst_search.redaction import shown_address
    from cst_search.tracking.connection import default_tracking_uri
    from cst_search.tracking.mlflow_record import MlflowRecord

    check_tracking(tracking_uri, home_of(home), storage)
    folder = study_folder(home_of(home), info.name)
    check_folder("--home", folder)
    files = write_report(info, folder)
    uri = tracking_uri or default_tracking_uri(home_of(home))
    record = MlflowRecord(uri, home_of(home) / "artifacts", warn=lambda line: err.print(line, markup=False))
    pages = [files[kind] for kind in ("html", "png", "json")]
    record.sync(info, {"pareto": pages, "export": export_best(info, files)})
    if not record.close(timeout_seconds=3600):
        raise typer.Exit(1)
    if json_:
        counts = {"trials": len(info.trials), "repeats": len(info.repeats)}
        print_json({"study": info.name, "tracking_uri": shown_address(uri)} | counts)
    elif not quiet:
        say(f"{shown_address(uri)} has study {info.shown_name}: {len(info.trials)} trials, {len(info.repeats)} repeats")


def _optuna_dashboard(home: Path, storage: str | None, host: str, port: int) -> None:
    """Serve until Ctrl-C, in this process: the arguments of another would show the password of an address."""
    from cst_search.errors import ConfigError
    from cst_search.study.storage import open_storage
    from cst_search.study.study import default_storage

    opened = open_storage(storage or default_storage(home))
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError("--optuna needs optuna-dashboard: pip install 'cst-search[dashboard]'") from None
    say(f"optuna-dashboard on http://{host}:{port}; Ctrl-C ends it")
    sys.stdout.flush()
    try:
        run_server(opened, host=host, port=port)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
