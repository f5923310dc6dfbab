"""`morphogen compare SPEC`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.options import Json, Overwrite
from morphogen.core.console import say, say_json
from morphogen.core.errors import InputError
from morphogen.core.output_files import check_folder, check_results

RESULT_FILES = ("results.json", "table.md", "report.html", "parameters.svg", "cost.svg", "samples.png")


def command(
    spec: Annotated[str, typer.Argument(help="A YAML file, or one of the lists of docs/measuring.md, such as quick.")],
    out: Annotated[Path, typer.Option(help="The folder for everything; an unfinished comparison in it goes on.")],
    data: Annotated[str | None, typer.Option(help="The images.", show_default="the spec's")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Training time of each model, instead of the spec's budget.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Or training steps of each model.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Or training images of each model (steps times batch size).")
    ] = None,
    number: Annotated[int | None, typer.Option("--n", "-n", min=2, help="Images to measure each by.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Feature networks, as for `evaluate`. Repeatable.")] = None,
    lpips: Annotated[str | None, typer.Option(help="As for `evaluate`.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of trainings of each model, with seeds from 0 on.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of the spec: data.fit=stretch, evaluate.pairs=64. Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps, one model after the other.")] = "auto",
    gpus: Annotated[
        str | None, typer.Option(help="Share the work among these GPUs, such as 0,1,2 (cpu0,cpu1 for processes).")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; write the table of what is done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say the steps, hours and disk that every line takes; train nothing.")
    ] = False,
    trial: Annotated[str | None, typer.Option(hidden=True)] = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train and measure several models under one budget; write a table, plots and samples side by side."""
    ends = {"minutes": minutes, "steps": steps, "images": images}
    given = {k: v for k, v in ends.items() if v is not None}
    if len(given) > 1:
        raise InputError("give one of --minutes, --steps and --images")
    check_folder(out)

    from morphogen.experiments.comparison import do_alone, run_comparison
    from morphogen.experiments.comparison_report import markdown, write_summary
    from morphogen.experiments.comparison_spec import need_data, read_spec, trials
    from morphogen.experiments.fold_comparison import compare_training_sets
    from morphogen.experiments.fold_comparison import markdown as fold_markdown
    from morphogen.training.settings import merge, parse_assignment

    changes: dict[str, object] = {}
    if given:
        changes["budget"] = given
    if data is not None:
        changes["data"] = {"source": data}
    measured = {"images": number, "networks": network, "lpips": lpips}
    changes["evaluate"] = {k: v for k, v in measured.items() if v is not None}
    if seeds is not None:
        changes["seeds"] = list(range(seeds))
    for text in set_ or []:
        path, value = parse_assignment(text)
        for part in reversed(path):
            value = {part: value}
        changes = merge(changes, value)
    chosen = read_spec(spec, changes)
    if dry_run:
        from morphogen.experiments.comparison_estimate import estimate_comparison, table

        need_data(chosen)
        estimate = estimate_comparison(chosen, out, device)
        if json_:
            say_json(estimate.as_json())
            return
        for line in table(estimate):
            say(line)
        return
    asked: dict[str, object] = {"title": chosen.title}
    if chosen.classify is None:
        asked["budget"] = chosen.budget.model_dump(exclude_none=True)
    if trial is None:
        check_results(out, RESULT_FILES, lambda found: _made_with(found, tuple(asked)), asked, overwrite)
    if chosen.classify is not None:
        if number is not None or network or lpips is not None or gpus is not None:
            raise InputError(f"{spec} classifies; --n, --network, --lpips and --gpus are for lists that evaluate")
        found = compare_training_sets(chosen, out, device, report=report, quiet=json_)
        if json_:
            say_json(found.as_json())
            return
        for line in fold_markdown(found).splitlines():
            say(line)
        say(f"the table is in {out / 'table.md'}; beside it results.json and report.html")
        return
    trials(chosen, out)  # everything that is wrong with the settings is said before anything is trained
    if trial is not None:
        do_alone(chosen, out, trial, device)
        return
    if not report:
        run_comparison(chosen, out, device, gpus.split(",") if gpus else (), quiet=json_)
    summary = write_summary(chosen, out)
    if json_:
        say_json(summary.as_json())
        return
    for line in markdown(summary).splitlines():
        say(line)
    say(f"the table is in {out / 'table.md'}; beside it results.json, parameters.svg, cost.svg and samples.png")


def _made_with(found: dict[str, object], asked: tuple[str, ...]) -> dict[str, object] | None:
    """The settings of a comparison in results.json; None for results of anything else."""
    return {key: found.get(key) for key in asked} if {"title", "rows", "seeds"} <= found.keys() else None
