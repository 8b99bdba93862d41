"""The options that commands share, each written once. A name means the same as in Python.

Options are plain text and numbers here; what they may be is checked by the code that Python callers meet too.
"""

from __future__ import annotations

from typing import Annotated

import typer

_WHAT, _HOW, _WHERE, _MODEL = "What", "How", "Output", "Model"

_MODEL_HELP = "vista, a folder or a Hugging Face id of a pipeline."
_UPSCALER_HELP = (
    "A super-resolution file (.safetensors, .pth), a known name (mrflow models), bicubic, bilinear or lanczos."
)
_DEVICE_HELP = "cpu, cuda, cuda:1, mps."
_DTYPE_HELP = "float32, bfloat16 or float16."
_RECORDED = "the recipe's"

Prompts = Annotated[
    list[str],
    typer.Argument(metavar="PROMPT", help="What the picture shows; quote each prompt.", show_default=False),
]
Negative = Annotated[
    str | None,
    typer.Option(
        "--negative",
        "--negative-prompt",
        help="What it should not show. Needs classifier-free guidance.",
        rich_help_panel=_WHAT,
        show_default="the model's",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        "-s",
        metavar="SIZE",
        help="Pixels of the finished picture: 256, or width and height such as 320x192.",
        rich_help_panel=_WHAT,
        show_default="the model's",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Of the first picture; the others take seed + 1, seed + 2, ...",
        rich_help_panel=_WHAT,
        show_default="drawn",
    ),
]
NumImages = Annotated[
    int,
    typer.Option("--num-images", "-n", metavar="N", help="Pictures per prompt.", rich_help_panel=_WHAT),
]

PlanName = Annotated[
    str | None,
    typer.Option(
        "--plan",
        "-p",
        metavar="N+M",
        help="Draft steps + refine steps, or a file of mrflow tune; 'mrflow models' lists the presets.",
        rich_help_panel=_HOW,
        show_default="the model's, usually 12+1",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", metavar="N", help="Steps of the draft.", rich_help_panel=_HOW, show_default="the plan's"
    ),
]
RefineSteps = Annotated[
    int | None,
    typer.Option(
        "--refine-steps",
        metavar="M",
        help="Steps of the refine pass.",
        rich_help_panel=_HOW,
        show_default="the plan's",
    ),
]
Sigma = Annotated[
    float | None,
    typer.Option(
        "--sigma",
        "--refine-sigma",
        metavar="SIGMA",
        help="Noise mixed in before refining, between 0 and 1; more helps small text.",
        rich_help_panel=_HOW,
        show_default="the plan's",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        metavar="RATIO",
        help="How many times smaller the draft's sides are.",
        rich_help_panel=_HOW,
        show_default="the plan's",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="G",
        help="How closely to follow the prompt, in the way that the checkpoint is guided: "
        "guidance_scale where it has guidance embeddings, else true_cfg_scale.",
        rich_help_panel=_HOW,
        show_default="the model's",
    ),
]
TrueCfgScale = Annotated[
    float | None,
    typer.Option(
        "--true-cfg-scale",
        metavar="G",
        help="Classifier-free guidance, two passes a step; 1 is none. With --negative on FLUX.1-dev.",
        rich_help_panel=_HOW,
        show_default="the model's",
    ),
]
GuidanceStop = Annotated[
    float | None,
    typer.Option(
        "--guidance-stop",
        metavar="SHARE",
        help="Share of the draft's steps, from the first, with classifier-free guidance; the rest cost half.",
        rich_help_panel=_HOW,
        show_default="the model's",
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        "--solver",
        metavar="NAME",
        help="What steps through the draft's sigmas: unipc or dpm++2m, of second order, or own, the pipeline's.",
        rich_help_panel=_HOW,
        show_default="the model's",
    ),
]

Model = Annotated[str, typer.Option("--model", "-m", help=_MODEL_HELP, rich_help_panel=_MODEL)]
Upscaler = Annotated[
    str | None,
    typer.Option(
        "--upscaler",
        metavar="FILE",
        help=_UPSCALER_HELP,
        rich_help_panel=_MODEL,
        show_default="the model's own, else bicubic",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help=_DEVICE_HELP,
        rich_help_panel=_MODEL,
        show_default="cuda where there is one, else cpu",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help=_DTYPE_HELP,
        rich_help_panel=_MODEL,
        show_default="float32 on a CPU, else bfloat16",
    ),
]

# The same for commands that read a recipe, which says what to take.
RecordedModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help=_MODEL_HELP, rich_help_panel=_MODEL, show_default=_RECORDED),
]
RecordedUpscaler = Annotated[
    str | None,
    typer.Option(
        "--upscaler", metavar="FILE", help=_UPSCALER_HELP, rich_help_panel=_MODEL, show_default=_RECORDED
    ),
]
RecordedDevice = Annotated[
    str | None, typer.Option("--device", help=_DEVICE_HELP, rich_help_panel=_MODEL, show_default=_RECORDED)
]
RecordedDtype = Annotated[
    str | None, typer.Option("--dtype", help=_DTYPE_HELP, rich_help_panel=_MODEL, show_default=_RECORDED)
]

Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATTERN",
        help="File (.png, .webp, .jpg) or folder. May hold {prompt}, {seed}, {index} and {name}, the last "
        "for commands that read files. Nothing is overwritten.",
        rich_help_panel=_WHERE,
        show_default="a free name in this folder",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what --out names.", rich_help_panel=_WHERE)]
Stages = Annotated[
    bool,
    typer.Option("--stages", help="Save the draft and the upscaled picture too.", rich_help_panel=_WHERE),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of paths.", rich_help_panel=_WHERE),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks and the libraries' own warnings.", rich_help_panel=_WHERE),
]
