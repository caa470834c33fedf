"""`keiryo VERB`. Heavy imports happen inside the verbs, so that `--help` answers at once."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a language model smaller, faster and cheaper, and prove that it is still good.",
)
ConfigPath = Annotated[
    Path, typer.Argument(help="a recipe, for example configs/demo.yaml", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings as path=value", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout")]
RunId = Annotated[str, typer.Argument(help="run id, the beginning of one, or 'latest'", show_default=False)]
Model = Annotated[str, typer.Argument(help="registered model", show_default=False)]


@contextmanager
def _clean_exit() -> Iterator[None]:
    """Bad input ends with exit code 2 and one line, an expected failure with 1 and one line; no traceback for either."""
    from flows.failures import bad_input, expected_failures

    try:
        yield
    except bad_input() as error:
        typer.echo(f"keiryo: {error}", err=True)
        raise typer.Exit(2) from None
    except expected_failures() as error:
        typer.echo(f"keiryo: {error}", err=True)
        raise typer.Exit(1) from None


def _show(document: Any, as_json: bool, table: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        table()


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Budget, samples and recommended stack, before anything runs."""
    from flows import preflight, tables
    from flows.offline import stdout_to_stderr

    with _clean_exit():
        with stdout_to_stderr():
            result = preflight.plan(config, overrides or [])
        _show(result.model_dump(mode="json"), as_json, lambda: tables.plan(result))


@app.command()
def run(config: ConfigPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """The rollout. Exit code: 0 passed, 1 error, 2 bad input, 3 gate FAIL, 4 INCONCLUSIVE."""
    from flows import start
    from flows.offline import stdout_to_stderr

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("tasks").setLevel(logging.INFO)
    with _clean_exit():
        with stdout_to_stderr():
            summary = start.run(config, overrides or [])
        from flows import tables  # imports what the flow imports while its server starts: not before

        _show(summary.model_dump(mode="json"), as_json, lambda: tables.summary(summary))
    raise typer.Exit(summary.exit_code)


@app.command()
def runs(
    model: Annotated[str | None, typer.Argument(help="only this model")] = None, as_json: Json = False
) -> None:
    """What happened: all rollouts, newest first."""
    from flows import review, tables

    with _clean_exit():
        found = review.list_runs(model)
        _show([row.model_dump(mode="json") for row in found], as_json, lambda: tables.runs(found))


@app.command()
def show(run: RunId, as_json: Json = False) -> None:
    """One rollout, stage by stage."""
    from flows import review, tables

    with _clean_exit():
        summary = review.load_run(run)
        _show(summary.model_dump(mode="json"), as_json, lambda: tables.summary(summary))


@app.command()
def report(
    run: RunId, out: Annotated[Path, typer.Option(help="where to write it")] = Path("report.html")
) -> None:
    """The self-contained HTML report of a rollout."""
    from flows import review

    with _clean_exit():
        typer.echo(review.save_report(run, out))


@app.command()
def compare(first: RunId, second: RunId, as_json: Json = False) -> None:
    """Two rollouts side by side, stage by stage, with intervals."""
    from flows import review, tables

    with _clean_exit():
        rows = review.compare(first, second)
        _show([row.model_dump(mode="json") for row in rows], as_json, lambda: tables.comparison(rows))


@app.command()
def promote(target: Annotated[str, typer.Argument(help="MODEL/VERSION")], as_json: Json = False) -> None:
    """Make a version the champion."""
    from flows import review

    with _clean_exit():
        move = review.promote(target)
        _show(move.model_dump(mode="json"), as_json, lambda: typer.echo(move.message))


@app.command()
def rollback(
    model: Model,
    to_version: Annotated[int | None, typer.Option(help="version to return to")] = None,
    to_stage: Annotated[str | None, typer.Option(help="newest earlier version of this stage")] = None,
    as_json: Json = False,
) -> None:
    """Make an earlier version the champion again; without a target, the one before."""
    from flows import review

    with _clean_exit():
        move = review.rollback(model, to_version, to_stage)
        _show(move.model_dump(mode="json"), as_json, lambda: typer.echo(move.message))


@app.command()
def history(model: Model, as_json: Json = False) -> None:
    """Every promotion and rollback of a model."""
    from flows import review, tables

    with _clean_exit():
        entries = review.history(model)
        _show([entry.model_dump(mode="json") for entry in entries], as_json, lambda: tables.history(entries))


@app.command()
def verify(model: Model, as_json: Json = False) -> None:
    """Hash every file of the champion again and compare with its manifest."""
    from flows import review

    with _clean_exit():
        checked = review.verify(model)
        _show(checked.model_dump(mode="json"), as_json, lambda: typer.echo(checked.line))


@app.command()
def ui() -> None:
    """MLflow UI and Prefect UI on the local store, on loopback."""
    from flows import interfaces

    with _clean_exit():
        interfaces.serve()


@app.command()
def deploy() -> None:
    """Register the schedules and triggers of configs/deploy on the Prefect server of PREFECT_API_URL."""
    from flows import deployment

    with _clean_exit():
        for line in deployment.deploy():
            typer.echo(line)


@app.command()
def trigger(
    name: Annotated[str, typer.Argument(help="event, for example new-model")] = "new-model",
    config: Annotated[str | None, typer.Option(help="recipe to run")] = None,
) -> None:
    """Send the event that starts a deployment."""
    from flows import deployment

    with _clean_exit():
        typer.echo(deployment.trigger(name, config))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which engines work on this machine, and what the others need."""
    from flows import preflight, tables
    from flows.offline import stdout_to_stderr

    with _clean_exit():
        with stdout_to_stderr():
            found = preflight.doctor()
        _show(found.model_dump(mode="json"), as_json, lambda: tables.doctor(found))


def main() -> None:
    """Entry point of the `keiryo` command."""
    app()
