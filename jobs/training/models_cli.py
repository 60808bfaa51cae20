"""Commands of models: `train`, `evaluate`, `models`, `models add`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
import typer.core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from almanac.manifest import ListMetric, Metric, Parity
    from almanac.registry import ModelVersion

    Table = tuple[str, list[str], list[list[str]]]
    """A title, headings and rows."""

HASH_SHOWN = 12


class _ListsByDefault(typer.core.TyperGroup):
    """`almanac models bikes` is `almanac models list bikes`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` before what does not name a command."""
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the commands of models."""
    from jobs.training import evaluate_cli

    app.command("train")(train)
    evaluate_cli.register(app)
    group = typer.Typer(cls=_ListsByDefault, help="List registered models, move an alias, or add a model.")
    group.command("list")(models)
    group.command("add")(add)
    app.add_typer(group, name="models")


def train(
    pipeline: str,
    promote: bool = typer.Option(False, "--promote", help="Let the pipeline use it whatever its declared gates say."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable; no progress."),
) -> None:
    """Train a pipeline's model, prove it, register it, and let the pipeline use it, past its gates where it has any."""
    from contextlib import nullcontext

    from rich.console import Console

    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.settings import settings

    found = declared(pipeline)
    console = Console(stderr=True)
    shown = console.status(f"training {pipeline}") if console.is_terminal and not as_json else nullcontext()

    def progress(step: str) -> None:
        if as_json:
            return
        if shown_status := getattr(shown, "update", None):
            shown_status(f"{pipeline}: {step}")
        else:
            typer.echo(f"{pipeline}: {step}", err=True)

    with shown:
        from jobs.training.train import train as train_model

        version = train_model(found, settings(), now=utc_now(), progress=progress)
    told = ""
    if found.training.challenger is not None:
        from jobs.training.promotion import promote as promote_version

        told = promote_version(found, settings(), version.version, overrule=promote).told
    if as_json:
        from almanac.output import print_json

        print_json(details(version, _aliases(version.name)))
        return
    print_metrics(version)
    if told:
        typer.echo(told)


def models(
    name: str = typer.Argument("", help="One model's versions; default: every model's."),
    alias: str = typer.Option("", help="Let an alias name a version: champion=3."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable."),
) -> None:
    """List registered models, or move an alias to another version."""
    from almanac.clock import format_time
    from almanac.output import print_json, print_table
    from almanac.registry import Registry
    from almanac.settings import settings

    registry = Registry(settings().models_dir)
    if alias:
        _move(registry, name, alias)
    names = (name,) if name else registry.names()
    versions = [version for model in names for version in registry.versions(model)]
    rows = [details(version, registry.aliases(version.name)) for version in versions]
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("no model is registered: train one with `almanac train <pipeline>`")
        return
    print_table(
        ["model", "aliases", "created", "trained up to", "rows", "error / better baseline's", "gates", "sha256"],
        [
            [
                row["id"],
                ", ".join(row["aliases"]),
                format_time(row["created_at"].replace(microsecond=0)),
                format_time(row["training"]["end"]) if row["training"] else "–",
                f"{row['rows']:,}",
                "  ".join(f"{metric['ratio']:.2f}" for metric in [*row["metrics"].values(), *row["lists"].values()]),
                _gates(row["judged"]),
                row["sha256"][:HASH_SHOWN],
            ]
            for row in rows
        ],
    )
    if early := [version.id for version in versions if _proved_on_real_rows_alone(version)]:
        typer.echo(
            f"{', '.join(early)}: proved on real rows alone, before golden rows were made at thresholds, zeros and odd "
            "categories: train or add them again to have that proved",
            err=True,
        )


def _proved_on_real_rows_alone(version: ModelVersion) -> bool:
    """Whether LightGBM's trees were registered before there were rows at their boundaries."""
    return not version.manifest.parity.boundary_rows and any(
        file.startswith("model-") for file in version.manifest.files
    )


def add(
    pipeline: str = typer.Argument(help="Pipeline whose model it is."),
    onnx: str = typer.Option("", help="An ONNX file."),
    lightgbm: list[str] = typer.Option([], help="LightGBM's text, <output>=<file>; or the file alone for one output."),
    inputs: str = typer.Option("", help="Columns of the ONNX file's matrix, in order: a,b,c."),
    alias: str = typer.Option("", help="Let this alias name the new version, such as champion."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable; no progress."),
) -> None:
    """Register a model that was trained elsewhere, after checking that it fits the pipeline and answers."""
    from pathlib import Path

    from almanac.clock import utc_now
    from almanac.declarations import pipeline as declared
    from almanac.errors import UsageError
    from almanac.output import print_json
    from almanac.registry import Registry
    from almanac.settings import settings
    from jobs.training.adding import add_lightgbm, add_onnx

    found = declared(pipeline)
    if bool(onnx) == bool(lightgbm):
        raise UsageError("give either --onnx <file> or --lightgbm <output>=<file>")

    def progress(step: str) -> None:
        if not as_json:
            typer.echo(f"{pipeline}: {step}", err=True)

    if onnx:
        names = [name.strip() for name in inputs.split(",") if name.strip()]
        version = add_onnx(found, settings(), Path(onnx), inputs=names, now=utc_now(), progress=progress)
    else:
        texts = {}
        for given in lightgbm:
            output, sign, file = given.partition("=")
            texts[output if sign else found.output_names[0]] = Path(file if sign else given)
        version = add_lightgbm(found, settings(), texts, now=utc_now(), progress=progress)
    if alias:
        Registry(settings().models_dir).set_alias(version.name, alias, version.version)
    if as_json:
        print_json(details(version, _aliases(version.name)))
        return
    print_metrics(version)
    typer.echo(f"registered {version.id}" + (f"; {version.name}@{alias} names it" if alias else "; no alias names it"))


def print_metrics(version: ModelVersion) -> None:
    """The held-out errors of a version, as a table beside its baselines."""
    from almanac.clock import format_time
    from almanac.output import print_table

    manifest = version.manifest
    proof = _proof(manifest.parity)
    if manifest.held_out is None or not manifest.measures:
        typer.echo(f"{version.id}: {manifest.data}; ONNX Runtime's answers and the model's own {proof}")
        return
    window = f"{format_time(manifest.held_out.start)} to {format_time(manifest.held_out.end)}"
    for title, headings, rows in filter(None, (_errors(manifest.metrics), _lists(manifest.lists))):
        print_table(headings, rows, title=f"{version.id}: {title}, held out {window}")
    typer.echo(f"{manifest.data}; {manifest.rows:,} training rows; ONNX Runtime and LightGBM {proof}")
    if useless := [name for name, measure in manifest.measures.items() if measure.ratio >= 1]:
        typer.echo(f"no better than a baseline: {', '.join(useless)}; look at features, objective and window", err=True)


def _proof(parity: Parity) -> str:
    """How a version was proved, in a few words."""
    said = f"differ by at most {parity.difference_max:.1g} on {parity.rows} golden rows"
    if not parity.boundary_rows:
        return said
    reached = f"{parity.splits_reached:,} of {parity.splits:,} splits from both sides"
    return f"{said} and on {parity.boundary_rows:,} that reach {reached}"


def _errors(metrics: Mapping[str, Metric]) -> Table | None:
    """Errors beside the baselines', an output a row."""
    if not metrics:
        return None
    first = next(iter(metrics.values()))
    names = list(first.baselines)
    rows = [
        [
            output,
            f"{metric.judged[0]:.3f}",
            *(f"{metric.judged[1][name]:.3f}" for name in names),
            f"{metric.ratio:.3f}",
        ]
        for output, metric in metrics.items()
    ]
    headings = ["output", "model", *(name.replace("_", " ") for name in names), "model / better baseline"]
    return "mean absolute error" if first.judged_by == "mae" else "root mean squared error", headings, rows


def _lists(lists: Mapping[str, ListMetric]) -> Table | None:
    """Recall and NDCG beside the baselines', two rows for each way of asking."""
    if not lists:
        return None
    first = next(iter(lists.values()))
    names = list(first.ndcg_baselines)
    rows = [
        [
            f"{asked.replace('_', ' ')} ({metric.rows:,} lists)",
            measure,
            f"{mine:.4f}",
            *(f"{theirs[name]:.4f}" for name in names),
            f"{mine / max(theirs.values()):.2f}" if max(theirs.values()) else "–",
        ]
        for asked, metric in lists.items()
        for measure, mine, theirs in (
            ("recall", metric.recall, metric.recall_baselines),
            ("NDCG", metric.ndcg, metric.ndcg_baselines),
        )
    ]
    headings = ["lists", "measure", "model", *(name.replace("_", " ") for name in names), "model / better baseline"]
    return f"the first {first.length} items", headings, rows


def print_lists(model_id: str, lists: Mapping[str, ListMetric], start: Any, end: Any) -> None:
    """Recall and NDCG of a time, as a table beside the baselines'."""
    from almanac.clock import format_time
    from almanac.output import print_table

    if shown := _lists(lists):
        title, headings, rows = shown
        print_table(headings, rows, title=f"{model_id}: {title}, {format_time(start)} to {format_time(end)}")


def _gates(said: Mapping[str, Any] | None) -> str:
    """What the gates said of a version, in a few words."""
    if said is None:
        return "–"
    return f"{'passed' if said['passed'] else 'refused'}: {said['reasons'][0]}"


def details(version: ModelVersion, aliases: Mapping[str, int]) -> dict[str, Any]:
    """What `--json` says of a version."""
    import msgspec

    manifest = version.manifest
    found = {"id": version.id, "sha256": version.hash, "path": str(version.path), **msgspec.structs.asdict(manifest)}
    plain: dict[str, Any] = msgspec.to_builtins(found, builtin_types=(_datetime(),))
    plain["aliases"] = sorted(alias for alias, number in aliases.items() if number == version.version)
    for kind, measures in (("metrics", manifest.metrics), ("lists", manifest.lists)):
        for name, measure in measures.items():
            plain[kind][name]["ratio"] = measure.ratio
    return plain


def _datetime() -> type:
    from datetime import datetime

    return datetime


def _aliases(name: str) -> dict[str, int]:
    from almanac.registry import Registry
    from almanac.settings import settings

    return Registry(settings().models_dir).aliases(name)


def _move(registry: Any, name: str, alias: str) -> None:
    from almanac.errors import UsageError

    word, _, number = alias.partition("=")
    if not name or not (number.isascii() and number.isdigit()):
        raise UsageError(f"--alias {alias!r} is not understood: give `almanac models <name> --alias <alias>=<version>`")
    registry.set_alias(name, word, int(number))
