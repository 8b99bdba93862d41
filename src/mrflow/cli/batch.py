"""`mrflow batch`: a file of prompts in, a folder of pictures out, once each, whatever is killed on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrflow.batch.tasks import Request, RowDefaults, read_request
from mrflow.cli import options, ray_options
from mrflow.cli.batch_report import Report
from mrflow.cli.loading import ModelOptions
from mrflow.cli.planning import PlanOptions
from mrflow.cli.reporting import FAILURE, reporting, say
from mrflow.errors import RequestError
from mrflow.prompt_rows import COLUMNS, read_rows
from mrflow.sizes import parse_size

if TYPE_CHECKING:
    from mrflow.batch.output import Output

_COLUMNS = ", ".join(COLUMNS)


def batch(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help=f"A .jsonl, .txt, .csv or .parquet file, or - for stdin. Columns: {_COLUMNS}.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="A folder, or a URL such as s3://bucket/folder. What it already holds of this batch is kept.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="png, webp, jpg, or wds: WebDataset shards.", rich_help_panel="Output"
        ),
    ] = "png",
    input_form: Annotated[
        str | None,
        typer.Option(
            "--input-format",
            help="jsonl, txt, csv or parquet.",
            rich_help_panel="What",
            show_default="by the suffix; on stdin lines of JSON or text",
        ),
    ] = None,
    negative: options.Negative = None,
    size: options.Size = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            help="Changes the seeds of rows that name none; these come from it and the id.",
            rich_help_panel="What",
        ),
    ] = 0,
    num_images: options.NumImages = 1,
    plan: options.PlanName = None,
    steps: options.Steps = None,
    refine_steps: options.RefineSteps = None,
    sigma: options.Sigma = None,
    scale: options.Scale = None,
    guidance: options.Guidance = None,
    true_cfg_scale: options.TrueCfgScale = None,
    guidance_stop: options.GuidanceStop = None,
    solver: options.Solver = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            min=1,
            metavar="B",
            help="Pictures that share a pass; halved where memory runs out.",
            rich_help_panel="How",
            show_default="1 on a CPU, else found by trying",
        ),
    ] = None,
    lanes: Annotated[
        int | None,
        typer.Option(
            "--lanes",
            min=1,
            metavar="L",
            help="Pictures made side by side on a CPU, each by one thread.",
            rich_help_panel="How",
            show_default="one per thread for small models, else 1",
        ),
    ] = None,
    ray: ray_options.Ray = None,
    draft_workers: ray_options.DraftWorkers = None,
    finish_workers: ray_options.FinishWorkers = None,
    draft_gpus: ray_options.DraftGpus = None,
    finish_gpus: ray_options.FinishGpus = None,
    worker_threads: ray_options.WorkerThreads = None,
    model: options.Model = "vista",
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Local folder of the manifest where --out is a URL.",
            rich_help_panel="Output",
            show_default="--out",
        ),
    ] = None,
    per_shard: Annotated[
        int,
        typer.Option("--per-shard", min=1, help="Pictures in a shard of --format wds.", rich_help_panel="Output"),
    ] = 1000,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check every row and the disk space, and make nothing.", rich_help_panel="How"
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Make pictures again whose row or model has changed.", rich_help_panel="Output"
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.", rich_help_panel="Output")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Make the pictures of a whole file of prompts; run it again to go on after whatever stopped it.

    manifest.jsonl has a line for each picture that is safe, errors.jsonl one for each row that failed. Exits with
    1 if any failed.

    Examples:
      mrflow batch prompts.jsonl --out pictures
      mrflow batch prompts.csv --out pictures --dry-run
      mrflow batch prompts.txt --out shards --format wds --size 320x192 --plan 20+1
      mrflow batch prompts.jsonl --out pictures --ray --draft-workers 2
    """
    report = Report(as_json=as_json)
    with reporting(debug), report:
        plans = PlanOptions(
            plan=plan,
            steps=steps,
            refine_steps=refine_steps,
            refine_sigma=sigma,
            scale=scale,
            guidance=guidance,
            true_cfg_scale=true_cfg_scale,
            guidance_stop=guidance_stop,
            solver=solver,
        )
        width, height = parse_size(size)
        defaults = RowDefaults(negative, width, height, num_images, seed)
        output = _output(out, form, state, per_shard)
        request = _read(prompts, input_form, defaults, dots=form != "wds")
        output.check()
        chosen_model = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype)
        cluster = ray_options.make_cluster(
            ray,
            chosen_model,
            draft_workers=draft_workers,
            finish_workers=finish_workers,
            draft_gpus=draft_gpus,
            finish_gpus=finish_gpus,
            worker_threads=worker_threads,
        )
        if cluster is not None:
            if lanes is not None:
                raise RequestError("--lanes are threads of one process; with --ray there are workers instead.")
            chosen_model = replace(chosen_model, device="cpu")  # here it only checks the rows
        fast = chosen_model.load()

        from mrflow.batch.run import prepare, run_batch

        chosen = plans.resolve(fast)
        if dry_run:
            ready = report.tell_dry_run(prepare(fast.model, request, output, chosen, remake=force), output)
            raise typer.Exit(0 if ready else FAILURE)
        summary = run_batch(
            fast,
            request,
            output,
            chosen,
            batch_size=batch_size,
            lanes=lanes,
            cluster=cluster,
            remake=force,
            on_prepared=report.tell_prepared,
            on_news=report.tell_news,
        )
        report.tell_summary(summary, output)
        if summary.failed:
            raise typer.Exit(FAILURE)


def _output(out: str, form: str, state: Path | None, per_shard: int) -> Output:
    from mrflow.batch.output import Output

    return Output(out, form, state, per_shard)


def _read(prompts: str, form: str | None, defaults: RowDefaults, *, dots: bool) -> Request:
    """Return what the file asks for; raises RequestError if it holds no row at all."""
    request = read_request(read_rows(prompts, form), defaults, dots=dots)
    if not request.wanted and not request.failures:
        raise RequestError(f"{prompts} holds no prompts.")
    if request.unused:
        say(f"columns that are not used: {', '.join(sorted(request.unused))[:200]}", "Warning", "yellow")
    return request
