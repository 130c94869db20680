"""Train one model across clients whose data stay where they are and whose devices differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lissome.cli._session import JsonFlag, answer, working
from lissome.core.errors import ConfigError, UnknownNameError, unknown_name

_RECIPE, _PLACE = "RECIPE", ("--credentials", "--host", "--port")
_ACTIONS: dict[str, tuple[str, ...]] = {
    "credentials": ("--client", "--host"),
    "export": ("--client", "--out"),
    "join": ("--data", "--state", "--credentials", "--set"),
    "membership": (),
    "parts": ("--out",),
    "server": ("--out", "--dry-run", *_PLACE),
}
"""What can be done besides running a recipe, and the options that mean something there."""


def command(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="A recipe (TOML), or: credentials, parts, server, join, export, membership."
        ),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="Of credentials: a folder; parts, server: a recipe; join: HOST:PORT; export, membership: a result.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes; the same again continues.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="Where clients run: inprocess, ray or deployment.")
    ] = "inprocess",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say who gets which sub-network, bytes and memory; train nothing.")
    ] = False,
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", metavar="DIR", help="Certificates and keys: of the server, or of this client."),
    ] = None,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="NAME",
            help="Of credentials: whom to make keys for, may be repeated; of export: whose model.",
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="Where the server listens, or is reached (may be repeated then)."),
    ] = None,
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port of the server; 0 takes a free one.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="Of join: folder or file with this client's rows.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Of join: folder for what this client keeps.")
    ] = None,
    facts: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Of join: name, budget, kind, model, largest or threads; may be repeated.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one model across clients whose data stay where they are and whose devices differ."""
    outside = what == "server"
    if what not in _ACTIONS and not Path(what).exists():
        raise ConfigError(unknown_name("recipe or action", what, _ACTIONS, "Give a TOML file."))
    _require_use(ctx, what, deployed=backend == "deployment")
    if what == "credentials":
        _credentials(target, clients, host, as_json)
    elif what == "export":
        _export(ctx, target, clients, out, as_json)
    elif what == "membership":
        _membership(ctx, target, as_json)
    elif what == "parts":
        _parts(ctx, target, out, as_json)
    elif what == "join":
        _join(ctx, target, data=data, state=state, credentials=credentials, facts=facts)
    elif (recipe := target if outside else what) is None or (target is not None and not outside):
        raise ConfigError("write: lissome federate RECIPE, or: lissome federate server RECIPE")
    elif dry_run:
        _plan(ctx, Path(recipe), as_json)
    else:
        place = {"credentials": credentials, "port": port, "host": (host or ["127.0.0.1"])[0], "alone": not outside}
        _run(ctx, Path(recipe), out, "deployment" if outside else backend, place, as_json)


def _require_use(ctx: typer.Context, what: str, *, deployed: bool) -> None:
    """Refuse options that would be ignored."""
    known: list[Any] = [one for one in ctx.command.params if one.param_type_name == "option" and one.name != "as_json"]
    sources = {one.opts[0]: ctx.get_parameter_source(one.name) for one in known}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    plain = ("--out", "--backend", "--dry-run", *(_PLACE if deployed else ()))
    for name in given:
        if name not in _ACTIONS.get(what, plain):
            places = [action for action, names in _ACTIONS.items() if name in names]
            places += [f"{_RECIPE} --backend deployment"] * (name in _PLACE) + [_RECIPE] * (name == "--backend")
            advice = "; settings of the method stand in the recipe" * (name == "--set" and what not in _ACTIONS)
            raise ConfigError(
                f"{name} means nothing to: lissome federate {what if what in _ACTIONS else _RECIPE}. It is for "
                f"{', '.join(places)}{advice}."
            )


def _run(
    ctx: typer.Context, recipe: Path, out: Path | None, backend: str, place: dict[str, Any], as_json: bool
) -> None:
    from lissome.pipeline.federating import BACKENDS, ServerPlace, federate
    from lissome.report import federated
    from lissome.report.page import write_page_if_possible

    if backend not in BACKENDS:
        raise UnknownNameError(unknown_name("back end", backend, BACKENDS))
    if out is None:
        raise ConfigError("say where the result goes with --out DIR, or add --dry-run.")
    with working(ctx) as events:
        report = federate(recipe, out=out, backend=backend, server=ServerPlace(**place), events=events)  # type: ignore[arg-type]
        write_page_if_possible(out, events)
    answer(report.to_json(), federated.result, as_json)


def _plan(ctx: typer.Context, recipe: Path, as_json: bool) -> None:
    from lissome.pipeline.federating import plan_federation
    from lissome.report import federated

    with working(ctx) as events:
        plan = plan_federation(recipe, events=events)
    answer(plan.to_json(), federated.plan, as_json)


def _credentials(folder: str | None, clients: list[str] | None, hosts: list[str] | None, as_json: bool) -> None:
    from lissome.engine.federate.flower.credentials import make_credentials
    from lissome.report import federated

    if folder is None:
        raise ConfigError("write: lissome federate credentials DIR --client NAME --host HOST")
    made = make_credentials(Path(folder), clients or [], hosts=hosts or [])
    fields = {"path": str(made.folder), "clients": {name: str(path.parent) for name, path in made.clients().items()}}
    answer(fields, federated.credentials, as_json)


def _parts(ctx: typer.Context, recipe: str | None, out: Path | None, as_json: bool) -> None:
    from lissome.pipeline.dealing import deal_parts
    from lissome.report import federated

    if recipe is None or out is None:
        raise ConfigError("write: lissome federate parts RECIPE --out DIR")
    with working(ctx) as events:
        dealt = deal_parts(Path(recipe), out=out, events=events)
    answer(dealt.to_json(), federated.parts, as_json)


def _membership(ctx: typer.Context, result: str | None, as_json: bool) -> None:
    from lissome.pipeline.membership import membership
    from lissome.report import federated

    if result is None:
        raise ConfigError("write: lissome federate membership RESULT")
    with working(ctx) as events:
        found = membership(Path(result), events=events)
    answer(found.to_json(), federated.membership, as_json)


def _export(ctx: typer.Context, result: str | None, clients: list[str] | None, out: Path | None, as_json: bool) -> None:
    from lissome.pipeline.own_models import client_model
    from lissome.report import answers

    if result is None or out is None or not clients or len(clients) > 1:
        raise ConfigError("write: lissome federate export RESULT --client NAME --out DIR")
    with working(ctx) as events:
        client_model(Path(result), clients[0], out, events=events)
    answer({"path": str(out)}, answers.path, as_json)


def _join(
    ctx: typer.Context,
    address: str | None,
    *,
    data: Path | None,
    state: Path | None,
    credentials: Path | None,
    facts: list[str] | None,
) -> None:
    from lissome.core.config import parse_assignments
    from lissome.pipeline.flower import join_federation

    if address is None or data is None or state is None:
        raise ConfigError("write: lissome federate join HOST:PORT --data PATH --state DIR")
    known, given = ("name", "budget", "kind", "model", "largest", "threads"), parse_assignments(facts or [])
    for key in given:
        if key not in known:
            raise ConfigError(unknown_name("fact", key, known))
    with working(ctx) as events:
        join_federation(address, data=data, state=state, credentials=credentials, facts=given, events=events)
