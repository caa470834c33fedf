"""`keiryo VERB`. Heavy imports happen inside the verbs, so that `--help` answers at once."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

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
Uri = Annotated[
    str | None,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server that the rollouts were logged to (their tracking.uri); by default the embedded store",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Option("--by", help="your name", show_default=False)]
Reason = Annotated[str, typer.Option(help="why", show_default=False)]
Days = Annotated[int | None, typer.Option(help="how long it stands; by default as long as the recipe allows")]
Sheet = Annotated[
    Path | None, typer.Option(help='text/spot_check.jsonl with "label": "A", "B" or "tie" on every line')
]


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
    model: Annotated[str | None, typer.Argument(help="only this model")] = None,
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """What happened: all rollouts, newest first."""
    from flows import review, tables

    with _clean_exit():
        found = review.list_runs(model, uri)
        _show([row.model_dump(mode="json") for row in found], as_json, lambda: tables.runs(found))


@app.command()
def show(run: RunId, uri: Uri = None, as_json: Json = False) -> None:
    """One rollout, stage by stage."""
    from flows import decide, review, tables

    with _clean_exit():
        summary = review.load_run(run, uri)
        decided = decide.decisions_on(summary.run_id)

        def table() -> None:
            tables.summary(summary)
            for entry in decided:
                typer.echo(entry.line)

        document = summary.model_dump(mode="json")
        _show(document | {"decisions": [entry.model_dump(mode="json") for entry in decided]}, as_json, table)


@app.command()
def report(
    run: RunId,
    out: Annotated[Path, typer.Option(help="where to write it")] = Path("report.html"),
    uri: Uri = None,
) -> None:
    """The self-contained HTML report of a rollout."""
    from flows import review

    with _clean_exit():
        typer.echo(review.save_report(run, out, uri))


@app.command()
def compare(first: RunId, second: RunId, uri: Uri = None, as_json: Json = False) -> None:
    """Two rollouts side by side, stage by stage, with intervals."""
    from flows import review, tables

    with _clean_exit():
        rows = review.compare(first, second, uri)
        _show([row.model_dump(mode="json") for row in rows], as_json, lambda: tables.comparison(rows))


@app.command()
def approve(
    run: RunId,
    by: Name,
    reason: Reason,
    days: Days = None,
    sheet: Sheet = None,
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Record that a person approves a rollout, having seen its blinded pairs."""
    _decide(run, "approve", by, reason, days, sheet, uri, as_json)


@app.command()
def reject(
    run: RunId,
    by: Name,
    reason: Reason,
    days: Days = None,
    sheet: Sheet = None,
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Record that a person rejects a rollout, having seen its blinded pairs."""
    _decide(run, "reject", by, reason, days, sheet, uri, as_json)


def _decide(
    run: str, decision: Literal["approve", "reject"], by: str, reason: str, days: int | None, sheet: Path | None,
    uri: str | None, as_json: bool,
) -> None:  # fmt: skip
    from flows import decide

    with _clean_exit():
        entry = decide.decide(run, decision, approver=by, reason=reason, days=days, sheet=sheet, uri=uri)
        document = entry.model_dump(mode="json") | {"digest": entry.digest}
        _show(document, as_json, lambda: typer.echo(entry.line))


@app.command()
def promote(
    target: Annotated[str, typer.Argument(help="MODEL/VERSION")], uri: Uri = None, as_json: Json = False
) -> None:
    """Make a version the champion."""
    from flows import review

    with _clean_exit():
        move = review.promote(target, uri)
        _show(move.model_dump(mode="json"), as_json, lambda: typer.echo(move.message))


@app.command()
def rollback(
    model: Model,
    to_version: Annotated[int | None, typer.Option(help="version to return to")] = None,
    to_stage: Annotated[str | None, typer.Option(help="newest earlier version of this stage")] = None,
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Make an earlier version the champion again; without a target, the one before."""
    from flows import review

    with _clean_exit():
        move = review.rollback(model, to_version, to_stage, uri)
        _show(move.model_dump(mode="json"), as_json, lambda: typer.echo(move.message))


@app.command()
def history(model: Model, uri: Uri = None, as_json: Json = False) -> None:
    """Every promotion and rollback of a model."""
    from flows import review, tables

    with _clean_exit():
        entries = review.history(model, uri)
        _show([entry.model_dump(mode="json") for entry in entries], as_json, lambda: tables.history(entries))


@app.command()
def verify(model: Model, uri: Uri = None, as_json: Json = False) -> None:
    """Hash every file of the champion again and compare with its manifest."""
    from flows import review

    with _clean_exit():
        checked = review.verify(model, uri)
        _show(checked.model_dump(mode="json"), as_json, lambda: typer.echo(checked.line))


@app.command()
def serve(model: Model, overrides: Overrides = None, as_json: Json = False) -> None:
    """An OpenAI-compatible endpoint of the champion on its engine, on loopback.

    Settings as path=value, for example port=8080 or limits.new_tokens=256 (all of them: configs/serve.py). An API key
    is read from KEIRYO_API_KEY or from the file that api_key_file names.
    """
    from flows import serving

    with _clean_exit():
        serving.serve(
            model,
            overrides or [],
            lambda served: _show(served.model_dump(mode="json"), as_json, lambda: typer.echo(served.line)),
        )


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
