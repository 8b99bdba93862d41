"""Reference pictures, which FLUX.2 looks at in both passes; pipelines that edit pictures, which are refused."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from mrflow import Draft, MrFlow, Plan, Recipe, load_image, read_recipe, register_backbone
from mrflow.backbones import _registered
from mrflow.backbones.flux import FluxBackbone
from mrflow.cli.loading import ModelOptions
from mrflow.errors import OutputExistsError, RequestError, UnsupportedPipelineError
from mrflow.images import pixels_sha256
from support.batches import TINY, errors, manifest
from support.batches import run as run_batch_of
from support.cli import invoke
from support.families import CASES, make_fast
from support.pictures import bytes_of
from support.serving import check_error, serving

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__:DeprecationWarning")

PLAN = Plan(steps=2, true_cfg_scale=1.0)


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(params=["Flux2Pipeline", "Flux2KleinPipeline"])
def fast(request: pytest.FixtureRequest) -> MrFlow:
    return make_fast(CASES[request.param], CASES[request.param].make(), batch_size=2)


def plan_of(fast: MrFlow) -> Plan:
    return Plan(steps=2) if type(fast.pipe).__name__ == "Flux2Pipeline" else PLAN


def watch(fast: MrFlow) -> list[Any]:
    seen: list[Any] = []
    hook = lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"])  # noqa: E731
    fast.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def test_the_transformer_sees_their_tokens_in_both_passes(fast: MrFlow) -> None:
    """The oracle is the pipeline's own encoding of each reference, at its own size in either pass."""
    seen, plan, given = watch(fast), plan_of(fast), [picture(), picture(96, 64, 1)]
    fast("a red boat", seed=7, plan=plan, width=128, height=128, image=given)
    tokens = [(s // 16) ** 2 for s in (64, 64, 128)]  # two draft steps, one refine step
    beside = 4 * 4 + 6 * 4
    assert [each.shape[1] for each in seen] == [n + beside for n in tokens]
    pipe = fast.pipe
    with torch.no_grad():
        pixels = [pipe.image_processor.preprocess(each, height=each.height, width=each.width) for each in given]
        wanted, _ = pipe.prepare_image_latents(pixels, 1, None, torch.device("cpu"), torch.float32)
    for n, each in zip(tokens, seen, strict=True):
        assert torch.allclose(each[:, n:], wanted, atol=1e-5)


def test_a_draft_is_the_pipelines_own_with_them(fast: MrFlow) -> None:
    given, plan = [picture()], replace(plan_of(fast), noise="own")
    draft = fast.draft("a red boat", seed=7, plan=plan, width=128, height=128, references=given)[0]
    embeds = fast.model.backbone.encode_prompts(fast.pipe, ["a red boat"], None, 16)[0]
    own = fast.pipe(
        image=given,
        **embeds,
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.0 if plan.true_cfg_scale is None else 1.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images
    assert torch.allclose(draft.pixels, own, atol=1e-6)


def test_every_verb_takes_them_and_a_recipe_keeps_their_hashes(fast: MrFlow, tmp_path: Path) -> None:
    given, plan = [picture(), picture(96, 64, 1)], plan_of(fast)
    given[1].save(tmp_path / "second.png")
    paths = [given[0], tmp_path / "second.png"]
    size = {"width": 128, "height": 128}
    made = fast("a red boat", seed=7, plan=plan, references=paths, **size)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert [each.sha256 for each in recipe.references] == list(map(pixels_sha256, given))
    assert recipe == made.recipes[0]
    assert bytes_of(fast("a red boat", seed=7, plan=plan, image=given, **size).images) == bytes_of(made.images)
    assert bytes_of(fast("a red boat", seed=7, plan=plan, **size).images) != bytes_of(made.images)
    drafts = fast.draft("a red boat", seed=7, plan=plan, references=given, **size)
    assert bytes_of(fast.finish(drafts).images) == bytes_of(made.images)  # which know them
    saved = Draft.from_image(drafts[0].save(tmp_path / "draft.png"))
    finished = fast.finish(saved, references=paths)
    assert finished.recipes[0].references == recipe.references
    assert bytes_of(fast.replay(finished.recipes[0]).images) == bytes_of(finished.images)
    assert bytes_of(fast.replay(recipe, references=given[::-1]).images) == bytes_of(made.images)
    for again in (lambda **seen: fast.replay(recipe, **seen), lambda **seen: fast.finish(saved, **seen)):
        with pytest.raises(RequestError, match="made with 2 reference pictures, of which 1 are missing here"):
            again(references=given[0])
        with pytest.raises(RequestError, match="1 of the references are not among the 2"):
            again(references=[*given, picture(seed=9)])


def test_enhance_and_its_replay_tell_them_from_the_picture(fast: MrFlow) -> None:
    photo, reference, plan = picture(64, 64, 5), picture(), plan_of(fast)
    seen = watch(fast)
    made = fast.enhance(photo, "a red boat", seed=7, plan=plan, references=reference)
    assert [each.shape[1] for each in seen] == [64 + 16]
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert [each.sha256 for each in recipe.references] == [pixels_sha256(reference)]
    assert recipe.input_sha256 == pixels_sha256(photo)
    assert bytes_of(fast.replay(recipe, photo, references=reference).images) == bytes_of(made.images)
    plain = fast.enhance(photo, "a red boat", seed=7, plan=plan)
    assert bytes_of(plain.images) != bytes_of(made.images)


def test_all_pictures_of_a_batch_see_them(fast: MrFlow) -> None:
    given = {"plan": plan_of(fast), "references": [picture()], "output_type": "pt"}
    both = fast(["a red boat", "a blue boat"], seed=[3, 4], **given).images
    for k, prompt in enumerate(("a red boat", "a blue boat")):
        assert (both[k : k + 1] - fast(prompt, seed=3 + k, **given).images).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.zeros(1, 3, 64, 64), "A reference is Tensor; it must be a Pillow image or its path"),
        ([picture(), 3], "A reference is int"),
        (picture(8, 8), "A reference can't be taken: Image too small: 8×8"),  # noqa: RUF001
    ],
)
def test_what_is_no_reference_is_refused_before_any_work(fast: MrFlow, given: Any, words: str) -> None:
    seen = watch(fast)
    with pytest.raises(RequestError, match=words):
        fast("a red boat", references=given)
    assert not seen


@pytest.fixture
def klein() -> MrFlow:
    case = CASES["Flux2KleinPipeline"]
    return make_fast(case, case.make(is_distilled=True))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files of two references, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / "boat.png", tmp_path / "harbour.png"]
    for number, path in enumerate(paths):
        picture(seed=number).save(path)
    return paths


def test_the_command_line_takes_them(
    klein: MrFlow, here: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ModelOptions, "load", lambda _: klein)
    picture(seed=5).save("photo.png")
    seen = [word for path in here for word in ("--reference", str(path))]
    asked = ["a red boat", "--seed", "7", "--size", "128", "--plan", "2+1", "--model", "tiny", *seen]

    def run(*words: str, code: int = 0) -> str:
        result = invoke(list(words))
        assert result.exit_code == code, result.stderr
        return result.stderr

    run("generate", *asked, "--out", "made.png")
    wanted = klein(
        "a red boat", seed=7, width=128, height=128, plan=Plan(steps=2), references=list(map(str, here))
    )
    assert load_image("made.png").tobytes() == wanted.images[0].tobytes()
    run("draft", *asked, "-n", "1", "--out", "draft.png")
    run("finish", "draft.png", "--model", "tiny", *seen, "--out", "finished.png")
    run("enhance", "photo.png", "--prompt", "a boat", "--model", "tiny", *seen, "--out", "larger.png")
    for name in ("made", "finished", "larger"):
        assert len(read_recipe(f"{name}.png").references) == 2
    assert "same pixels" in run("replay", "made.png", "--model", "tiny", *seen)
    original = ["--original", "photo.png"]
    assert "same pixels" in run("replay", "larger.png", "--model", "tiny", *original, *seen)
    assert "of which 1 are missing" in run("replay", "made.png", "--model", "tiny", *seen[:2], code=2)
    assert "not among the 2" in run("replay", "made.png", "--model", "tiny", "--reference", "photo.png", code=2)


def test_rows_of_a_batch_have_their_own(klein: MrFlow, here: list[Path], tmp_path: Path) -> None:
    names = [path.name for path in here]
    rows = [
        {"id": "both", "prompt": "a red boat", "seed": 7, "references": names},
        {"id": "one", "prompt": "a red boat", "seed": 7, "references": names[0]},
        {"id": "none", "prompt": "a red boat", "seed": 7},
        {"id": "lost", "prompt": "a red boat", "references": "nowhere.png"},
    ]
    out = tmp_path / "out"
    assert run_batch_of(klein, out, *rows) == (3, 0, 1)
    assert "nowhere.png" in errors(out)[0]["error"]
    made = {each["id"]: each for each in manifest(out)}
    assert [len(made[name]["references"]) for name in ("both", "one", "none")] == [2, 1, 0]
    for name, seen in (("both", names), ("one", names[:1]), ("none", [])):
        alone = klein("a red boat", seed=7, references=seen, **TINY)
        assert load_image(out / f"{name}.png").tobytes() == alone.images[0].tobytes()
    picture(seed=8).save(here[1])  # another picture under the same name
    with pytest.raises(OutputExistsError, match="such as both: references was"):
        run_batch_of(klein, out, *rows)


def test_clients_upload_them(klein: MrFlow, here: list[Path]) -> None:
    with serving(klein.model) as server, httpx.Client(base_url=server.url, timeout=60) as http:

        def post(*files: tuple[str, Path], **fields: str) -> httpx.Response:
            asked = {"prompt": "a red boat", "seed": "7", "size": "64x64", "plan": "2+1", **fields}
            opened = [(name, (path.name, path.read_bytes())) for name, path in files]
            return http.post("/v1/images/edits", files=opened, data=asked)

        seen = [("reference", here[0]), ("reference[]", here[1])]
        pictures = {}
        for name, files in (("made", seen), ("enhanced", [("image", here[0]), *seen[1:]])):
            answer = post(*files)
            assert answer.status_code == 200, answer.text
            pictures[name] = Image.open(BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
            assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 2 * 16
        size = {"width": 64, "height": 64, "plan": "2+1", "seed": 7}
        given = list(map(str, here))
        alone = klein("a red boat", references=given, **size)
        assert pictures["made"].tobytes() == alone.images[0].tobytes()
        alone = klein.enhance(given[0], "a red boat", references=given[1], **size)
        assert pictures["enhanced"].tobytes() == alone.images[0].tobytes()
        for wrong in ([], [("image", here[0]), ("image", here[1])]):
            assert check_error(post(*wrong), 400)["param"] == "image"
        (here[0].parent / "text.png").write_text("/etc/passwd")
        check_error(post(("reference", here[0].parent / "text.png")), 400)
        check_error(http.post("/v1/images/edits", data={"prompt": "a boat", "reference": str(here[0])}), 400)
        check_error(
            http.post("/v1/images/generations", json={"prompt": "a boat", "references": [str(here[0])]}), 400
        )


def test_a_model_that_takes_none_says_so_to_clients(here: list[Path]) -> None:
    with serving() as server:
        files = {"reference": here[0].read_bytes()}
        answer = httpx.post(f"{server.url}/v1/images/edits", files=files, data={"prompt": "a red boat"})
    assert "takes no reference pictures" in check_error(answer, 400, 422)["message"]


def test_other_families_take_none() -> None:
    for name in ("FluxPipeline", "QwenImage21Pipeline"):  # the latter would read them into the prompt
        fast = make_fast(CASES[name], CASES[name].make())
        with pytest.raises(RequestError, match=f"{name} takes no reference pictures"):
            fast("a red boat", references=[picture()])
    fast = make_fast(CASES["Flux2KleinPipeline"], CASES["Flux2KleinPipeline"].make())
    with pytest.raises(RequestError, match="they mean the same"):
        fast("a red boat", references=[picture()], image=[picture(seed=1)])


EDITING = {
    "FluxInpaintPipeline": "leaves out the first of its steps",
    "FluxImg2ImgPipeline": "leaves out the first of its steps",
    "FluxFillPipeline": "leaves out the first of its steps",
    "Flux2KleinInpaintPipeline": "leaves out the first of its steps",
    "QwenImageInpaintPipeline": "leaves out the first of its steps",
    "ZImageControlNetInpaintPipeline": "fills a part of a given picture",
    "FluxKontextPipeline": "paints as many pixels as it likes",
    "QwenImageEditPlusPipeline": "not driven yet: it has pictures that its text encoder reads",
}


@pytest.mark.parametrize(("name", "reason"), EDITING.items())
def test_pipelines_that_edit_pictures_are_refused_with_their_reason(name: str, reason: str) -> None:
    pipe = object.__new__(getattr(diffusers, name))
    with pytest.raises(UnsupportedPipelineError, match=f"{name}, which .*{reason}"):
        MrFlow(pipe, "bicubic")


def test_registering_a_backbone_does_not_make_them_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrflow.backbones._registered", dict(_registered))
    register_backbone("FluxInpaintPipeline", FluxBackbone())
    with pytest.raises(UnsupportedPipelineError, match="leaves out the first of its steps"):
        MrFlow(object.__new__(diffusers.FluxInpaintPipeline), "bicubic")
    register_backbone("SimpleNamespace", FluxBackbone())
    assert MrFlow(SimpleNamespace(), "bicubic", defaults=make_fast(*_flux()).model.defaults)


def _flux() -> Any:
    case = CASES["FluxPipeline"]
    return case, case.make()
