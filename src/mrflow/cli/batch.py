"""`mrflow batch`: a file of prompts in, a folder of pictures out, once each, whatever is killed on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mrflow.batch.tasks import Request, RowDefaults, read_request
from mrflow.cli.batch_report import Report
from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import HOW, OUTPUT, WHAT, Count, Negative, NumImages, Size, Streams, Whole
from mrflow.cli.planning import PlanOptions
from mrflow.cli.ray_options import ClusterOptions
from mrflow.cli.reporting import FAILURE, say, warn
from mrflow.errors import RequestError
from mrflow.jobs import parse_size
from mrflow.plan import ABOUT
from mrflow.prompt_rows import COLUMNS, read_rows

_MANY = 5000  # whose checks take seconds
_NUMBERS = {*ABOUT, *(about.http for about in ABOUT.values())}  # of a plan, by both names


def batch(
    prompts: Annotated[
        str,
        Parameter(help=f"A .jsonl, .txt, .csv or .parquet file, or - for stdin. Columns: {', '.join(COLUMNS)}."),
    ],
    /,
    *,
    input_format: Annotated[
        str | None, Parameter(group=WHAT, show_default="by the suffix; on stdin lines of JSON or text")
    ] = None,
    negative: Negative = None,
    size: Size = None,
    seed: Annotated[Whole, Parameter(group=WHAT)] = 0,
    num_images: NumImages = 1,
    plans: PlanOptions = PlanOptions(),
    batch_size: Annotated[
        Count | None,
        Parameter(alias="-b", metavar="B", group=HOW, show_default="1 on a CPU, else found by trying"),
    ] = None,
    lanes: Annotated[
        Count | None, Parameter(metavar="L", group=HOW, show_default="one per thread for small models, else 1")
    ] = None,
    dry_run: Annotated[bool, Parameter(group=HOW)] = False,
    ray: ClusterOptions = ClusterOptions(),
    model: ModelOptions = ModelOptions(),
    out: Annotated[str, Parameter(alias="-o", metavar="DIR", group=OUTPUT)],
    form: Annotated[str, Parameter(name=("--format", "-f"), group=OUTPUT)] = "png",
    state: Annotated[Path | None, Parameter(metavar="DIR", group=OUTPUT, show_default="--out")] = None,
    per_shard: Annotated[Count, Parameter(group=OUTPUT)] = 1000,
    force: Annotated[bool, Parameter(group=OUTPUT)] = False,
    streams: Streams = Streams(),
) -> int | None:
    """Make the pictures of a whole file of prompts; run it again to go on after whatever stopped it.

    manifest.jsonl has a line for each picture that is safe, errors.jsonl one for each row that failed. Exits with
    1 if any failed. With --json the summary is on stdout.

    Args:
        input_format: jsonl, txt, csv or parquet.
        seed: Changes the seeds of rows that name none; these come from it and the id.
        batch_size: Pictures that share a pass; halved where memory runs out.
        lanes: Pictures made side by side on a CPU, each by one thread.
        dry_run: Check every row and the disk space, and make nothing.
        out: A folder, or a URL such as s3://bucket/folder. What it already holds of this batch is kept.
        form: png, webp, jpg, or wds: WebDataset shards.
        state: Local folder of the manifest where --out is a URL.
        per_shard: Pictures in a shard of --format wds.
        force: Make pictures again whose row or model has changed.

    Examples:
      mrflow batch prompts.jsonl --out pictures
      mrflow batch prompts.csv --out pictures --dry-run
      mrflow batch prompts.txt --out shards --format wds --size 320x192 --plan 20+1
      mrflow batch prompts.jsonl --out pictures --ray --draft-workers 2
    """
    from mrflow.batch.output import Output

    with Report(as_json=streams.json) as report:
        width, height = parse_size(size)
        defaults = RowDefaults(negative, width, height, num_images, seed)
        output = Output(out, form, state, per_shard)
        request = _read(prompts, input_format, defaults, dots=form != "wds")
        output.check()
        cluster = ray.cluster(model)
        if cluster is not None:
            if lanes is not None:
                raise RequestError("--lanes are threads of one process; with --ray there are workers instead.")
            model = replace(model, device="cpu", quantize=None, offload=None)  # here it only checks the rows
        fast = model.load()

        from mrflow.batch.run import prepare, run_batch

        plan = plans.resolve(fast)
        if len(request.wanted) > _MANY:
            say(f"checking {len(request.wanted)} pictures")
        if dry_run:
            ready = report.tell_dry_run(prepare(fast.model, request, output, plan, remake=force), output)
            return None if ready else FAILURE
        summary = run_batch(
            fast,
            request,
            output,
            plan,
            batch_size=batch_size,
            lanes=lanes,
            cluster=cluster,
            remake=force,
            on_prepared=report.tell_prepared,
            on_news=report.tell_news,
        )
        report.tell_summary(summary, output)
        return FAILURE if summary.failed else None


def _read(prompts: str, form: str | None, defaults: RowDefaults, *, dots: bool) -> Request:
    """Return what the file asks for; raises RequestError if it holds no row at all."""
    request = read_request(read_rows(prompts, form), defaults, dots=dots)
    if not request.wanted and not request.failures:
        raise RequestError(f"{prompts} holds no prompts.")
    if numbers := sorted(request.unused.keys() & _NUMBERS):
        raise RequestError(
            f"{prompts} has a column {numbers[0]}. It would change the pictures, and is read in the column plan "
            'alone, such as {"steps": 12, "true_cfg_scale": 3.5}. Put it there, or leave it out.'
        )
    if request.unused:
        warn(f"columns that are not used: {', '.join(sorted(request.unused))[:200]}")
    return request
