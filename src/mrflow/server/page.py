"""The page at `/`: a prompt, three stages as they are made, and eight drafts to choose from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr  # up here, for gradio reads the types of the functions below
from fastapi import FastAPI

from mrflow.plan import PRESETS, About
from mrflow.server import visit
from mrflow.server.service import Service
from mrflow.server.visit import View, Wishes

_CSS = Path(__file__).with_name("templates") / "page.css"
_FINISHED = 12  # pictures that the page shows side by side, and holds for a visitor
_FIELD_LABELS = {"guidance_scale": "Guidance", "true_cfg_scale": "Guidance", "guidance_stop": "Guided share"}
_LABELS = {"draft": "Draft", "upscaled": "Upscaled draft", "final": "Final", "native": "Native"}


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Return the application with the page at `/`, where it answers what no route does.

    It is no mount any more, which would also take requests whose method a route does not.
    Built inside an event loop: without one running, gradio 6.31 (utils.py, safe_get_lock) makes four and leaves
    them, with their sockets, to the collector.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:

        async def mount() -> FastAPI:
            return _mounted(app, service)

        return asyncio.run(mount())
    return _mounted(app, service)


def _mounted(app: FastAPI, service: Service) -> FastAPI:
    theme = gr.themes.Soft(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        block_label_text_color="*primary_800",
        block_title_text_color="*primary_800",
    )
    gr.mount_gradio_app(
        app,
        _blocks(service),
        "/",
        theme=theme,
        css_paths=_CSS,
        footer_links=[],
        show_error=False,  # whose words may hold paths
        max_file_size=service.settings.max_upload,
        **dict.fromkeys(("run_history", "ssr_mode", "pwa", "mcp_server", "enable_monitoring"), False),
    )
    app.router.default = app.routes.pop().app  # type: ignore[attr-defined]
    return app


def _blocks(service: Service) -> Any:
    model = service.scheduler.model
    defaults, seconds = model.defaults, int(service.settings.keep_seconds)
    numbers = visit.plan_fields(service)
    output: dict[str, Any] = {"interactive": False, "format": "png"}
    plain = {**output, "show_label": False}
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="mrflow", analytics_enabled=False, delete_cache=(60, seconds)) as blocks:
        gr.Markdown(f"# mrflow\nDraft small, finish large: {escape(model.name)}, {model.device}.")
        prompt = gr.Textbox(
            label="Prompt", lines=2, autofocus=True, max_length=service.settings.max_prompt, elem_id="prompt"
        )
        fields: dict[str, Any] = {"prompt": prompt}  # by their names in requests
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                fields["plan"] = gr.Dropdown(
                    [defaults.plan.label, *(name for name in PRESETS if name != defaults.plan.label)],
                    value=defaults.plan.label,
                    allow_custom_value=True,
                    label="Plan: draft steps + refine steps",
                    min_width=140,
                )
                fields["size"] = gr.Textbox(f"{defaults.width}x{defaults.height}", label="Size", min_width=140)
                fields["seed"] = gr.Textbox(label="Seed", placeholder="drawn", min_width=140)
            with gr.Row():
                fields["negative_prompt"] = gr.Textbox(
                    label="Negative prompt", placeholder="the model's", min_width=140
                )
                fields |= {name: _field(name, about) for name, about in numbers.items()}
            dropped = gr.File(
                label="Drop a picture made by mrflow to read its recipe", file_types=["image"], height=120
            )
        with gr.Tab("Generate"):
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                stop = gr.Button("Stop", min_width=80)
                compare = gr.Checkbox(label="Compare with native sampling", min_width=200)
            status = gr.Markdown(elem_classes="status", elem_id="status")
            images, captions = {}, {}
            with gr.Row(elem_classes="stages"):
                for name in ("draft", "upscaled", "final"):
                    with gr.Column(min_width=180):  # a label inside the picture would hide a corner of it
                        captions[name] = gr.Markdown(_LABELS[name], elem_classes="caption")
                        images[name] = gr.Image(label=_LABELS[name], elem_id=name, buttons=["fullscreen"], **plain)
            saved = gr.HTML(elem_classes="saved", elem_id="saved")
            slider = gr.ImageSlider(label="Native | mrflow", visible=False, elem_id="slider", **output)
        with gr.Tab("Drafts"):
            many = gr.Button("Make eight drafts", variant="primary", elem_id="make-drafts")
            drafts_status = gr.Markdown(elem_classes="status", elem_id="drafts-status")
            shelf = {**plain, "height": "auto", "object_fit": "contain"}
            gallery = gr.Gallery(
                label="Drafts", columns=4, allow_preview=False, buttons=[], elem_id="drafts", **shelf
            )
            finished = gr.Gallery(label="Finished", columns=3, elem_id="finished", **shelf)
            drafts_saved = gr.HTML(elem_classes="saved", elem_id="drafts-saved")
        names = gr.State([], time_to_live=seconds)
        done = gr.State([], time_to_live=seconds)
        outputs = [status, *images.values(), *captions.values(), saved, slider]

        def wishes(given: dict[Any, Any]) -> Wishes:
            return {name: given[field] or "" for name, field in fields.items()}  # None is what nobody touched

        async def generate(given: dict[Any, Any], request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
            yield {
                status: "waiting for a turn",
                **dict.fromkeys(images.values()),
                **{caption: _LABELS[name] for name, caption in captions.items()},
                saved: "",
                slider: gr.update(value=None, visible=False),
            }
            final, shown = None, dict[Any, Any]()
            async for view in visit.generate(service, _client(request), wishes(given), compare=given[compare]):
                change: dict[Any, Any] = {status: view.text}
                for name, (image, took) in view.pictures.items():
                    if name == "native":
                        change[slider] = gr.update(value=(image, final), visible=True)
                    else:
                        change[images[name]] = shown[images[name]] = image
                        change[captions[name]] = f"{_LABELS[name]}, after {took:.1f} s"
                if view.file is not None:
                    final = view.pictures["final"][0]
                    change |= {saved: _link(view), **shown}  # again: gradio 6.31 loses one that came too fast
                yield change

        async def draft(given: dict[Any, Any], request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
            yield "waiting for a turn", [], []
            async for text, made in visit.make_drafts(service, _client(request), wishes(given)):
                shown = [image for _, image, _ in made] or gr.skip()
                yield text, shown, [name for name, _, _ in made]

        async def finish(
            kept: list[str], before: list[Any], request: gr.Request, event: gr.SelectData
        ) -> AsyncIterator[tuple[Any, ...]]:
            if not isinstance(event.index, int) or event.index >= len(kept):
                return
            async for view in visit.finish_draft(service, _client(request), kept[event.index]):
                if view.file is None:
                    yield view.text, gr.skip(), gr.skip(), gr.skip()
                else:
                    done = [*before, (view.pictures["final"][0], f"seed {view.seed}")][-_FINISHED:]
                    yield view.text, done, done, _link(view)

        def read(path: str | None) -> dict[Any, Any]:
            text, recipe = visit.recipe_of(path)
            texts = visit.wishes_of(recipe, numbers) if recipe is not None else {}
            return {status: text, **{fields[name]: value for name, value in texts.items()}}

        given = {*fields.values(), compare}  # a set: gradio then gives the values by their fields
        running = [event(generate, given, outputs, **private) for event in (run.click, prompt.submit)]
        stop.click(lambda: "stopped", None, status, cancels=running, **private)
        many.click(draft, given, [drafts_status, gallery, names], **private)
        gallery.select(finish, [names, done], [drafts_status, finished, done, drafts_saved], **private)
        dropped.change(read, dropped, [status, *fields.values()], **private)
    blocks.queue(default_concurrency_limit=64, api_open=False, max_size=4 * service.settings.max_waiting)
    return blocks


def _field(name: str, about: About) -> Any:
    """Return the input of one of the plan's numbers; empty, it leaves the number as it is."""
    label = _FIELD_LABELS.get(name, name.replace("_", " ").capitalize())
    empty = "the model's" if about.absent is None else "the plan's"
    if about.choices:
        choices = [(empty, ""), *((choice, choice) for choice in about.choices)]
        return gr.Dropdown(choices, value="", label=label, min_width=140, allow_custom_value=about.kind is not str)
    return gr.Textbox(label=label, placeholder=empty, min_width=140)


def _link(view: View) -> str:
    return f'<a href="v1/files/{view.file}" download="mrflow-{view.seed}.png">Download, with the recipe inside</a>'


def _client(request: Any) -> str:
    """Return who asks, as the guard has found out."""
    state = getattr(request.request, "state", None)
    return str(getattr(state, "client", None) or "page")
