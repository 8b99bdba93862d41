"""Every command at work, on a tiny random pipeline in a folder, as a user would name their own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mrflow import read_recipe, save_image
from mrflow.drafts import check_input
from mrflow.errors import ImageError
from mrflow.files import load_image
from mrflow.images import pixels_sha256
from support.cli import Result, invoke

PROMPT = "a red boat at dusk"
SMALL = ["--size", "64", "--plan", "2+1", "--upscaler", "bicubic"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tiny):
    """Run each test in an empty folder of its own; recorded models are looked for beside the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRFLOW_MODELS_DIR", str(tiny.parent))


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = invoke([str(argument) for argument in arguments])
    assert result.exit_code == code, result.stderr
    return result


def run_json(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def generate(tiny: Path, *arguments: str) -> Path:
    """Make one picture and return its path."""
    return Path(run("generate", PROMPT, "--model", tiny, *SMALL, *arguments).stdout.strip())


def test_generate_prints_the_path_of_a_picture_with_its_recipe(tiny):
    path = generate(tiny, "--seed", "7")
    assert path == Path("a-red-boat-at-dusk-7.png")
    assert load_image(path).size == (64, 64)
    recipe = read_recipe(path)
    assert (recipe.mode, recipe.prompt, recipe.seed, recipe.plan.label) == ("staged", PROMPT, 7, "2+1")
    assert [each.name for each in Path().iterdir()] == [path.name]


def test_generate_takes_several_prompts_and_pictures(tiny):
    out = run(
        "generate",
        PROMPT,
        "a house",
        "-n",
        "2",
        "--seed",
        "3",
        "--model",
        tiny,
        *SMALL,
        "-o",
        "{prompt}-{index}.webp",
    )
    paths = [Path(line) for line in out.stdout.splitlines()]
    assert [path.stem for path in paths] == [
        "a-red-boat-at-dusk-1",
        "a-red-boat-at-dusk-2",
        "a-house-3",
        "a-house-4",
    ]
    assert [read_recipe(path).seed for path in paths] == [3, 4, 5, 6]
    assert [read_recipe(path).prompt for path in paths] == [PROMPT] * 2 + ["a house"] * 2


def test_generate_draws_a_seed_and_names_the_file_by_it(tiny):
    path = generate(tiny)
    assert path.stem.endswith(f"-{read_recipe(path).seed}")


def test_generate_does_not_overwrite(tiny):
    first, second = generate(tiny, "--seed", "1"), generate(tiny, "--seed", "1")
    assert (first.name, second.name) == ("a-red-boat-at-dusk-1.png", "a-red-boat-at-dusk-1-2.png")
    assert first.read_bytes() == second.read_bytes()


def test_generate_force_overwrites(tiny):
    Path("out.png").write_text("something else")
    assert load_image(generate(tiny, "--out", "out.png", "--force")).size == (64, 64)


def test_generate_json(tiny):
    data = run_json("generate", PROMPT, "--model", tiny, *SMALL, "--seed", "7", "--stages")
    assert set(data) == {"pictures", "seconds"}
    assert set(data["seconds"]) == {
        "text",
        "draft",
        "decode_draft",
        "upscale",
        "encode",
        "refine",
        "decode",
        "total",
    }
    (picture,) = data["pictures"]
    assert set(picture) == {"path", "stages", "recipe"}
    assert picture["recipe"] == json.loads(read_recipe(picture["path"]).to_json())
    sizes = {label: load_image(path).size for label, path in picture["stages"].items()}
    assert sizes == {"draft": (32, 32), "upscaled": (64, 64)}


def test_generate_hands_on_every_number(tiny):
    path = Path(
        run(
            *["generate", PROMPT, "--model", tiny, "--size", "96x48", "--upscaler", "bilinear", "--steps", "3"],
            *[
                "--refine-steps",
                "2",
                "--sigma",
                "0.2",
                "--scale",
                "1.5",
                "--guidance",
                "2.5",
                "--negative",
                "a lake",
            ],
        ).stdout.strip()
    )
    recipe = read_recipe(path)
    plan = recipe.plan
    assert (recipe.width, recipe.height, recipe.upscaler) == (96, 48, "bilinear")
    assert (recipe.negative_prompt, plan.label, plan.refine_sigma, plan.scale) == ("a lake", "3+2", 0.2, 1.5)
    assert plan.true_cfg_scale == 2.5  # this checkpoint has no guidance embeddings


def test_generate_native(tiny):
    path = Path(
        run("generate", PROMPT, "--model", tiny, "--size", "48", "--native", "--steps", "3").stdout.strip()
    )
    recipe = read_recipe(path)
    assert (recipe.mode, recipe.plan.steps, load_image(path).size) == ("native", 3, (48, 48))


def test_compare_writes_one_sheet_and_says_the_seconds(tiny):
    result = run("generate", PROMPT, "--model", tiny, *SMALL, "--seed", "7", "--compare", "--repeats", "1")
    assert result.stdout == "a-red-boat-at-dusk-7-compare.png\n"
    assert load_image("a-red-boat-at-dusk-7-compare.png").width > 128
    for text in ("times faster", "native", "staged", "decode the draft", "total"):
        assert text in result.stderr


def test_compare_json_with_stages(tiny):
    data = run_json(
        *["generate", PROMPT, "--model", tiny, *SMALL, "--compare", "--repeats", "2", "--stages", "-o", "demo.png"]
    )
    assert set(data) == {"path", "stages", "speedup", "native", "staged"}
    assert data["path"] == "demo.png"
    assert data["stages"] == {each: f"demo-{each}.png" for each in ("native", "staged", "draft", "upscaled")}
    assert all(Path(path).is_file() for path in data["stages"].values())
    for way in ("native", "staged"):
        assert set(data[way]) == {"seconds", "totals", "recipe"}
        assert len(data[way]["totals"]) == 2
        assert data[way]["recipe"] == json.loads(read_recipe(f"demo-{way}.png").to_json())
    assert data["speedup"] == data["native"]["seconds"]["total"] / data["staged"]["seconds"]["total"]
    assert data["native"]["recipe"]["plan"]["steps"] == 50


def test_draft_then_finish(tiny):
    drafts = run(
        "draft", PROMPT, "--model", tiny, "--size", "64", "--plan", "2+1", "--seed", "5"
    ).stdout.splitlines()
    assert drafts == [f"a-red-boat-at-dusk-{seed}-draft.png" for seed in (5, 6, 7, 8)]
    assert load_image(drafts[0]).size == (32, 32)
    finished = run("finish", *drafts[1:3], "--upscaler", "bicubic").stdout.splitlines()
    assert finished == ["a-red-boat-at-dusk-6.png", "a-red-boat-at-dusk-7.png"]
    assert [read_recipe(path).seed for path in finished] == [6, 7]
    assert load_image(finished[0]).size == (64, 64)


def test_a_contact_sheet_holds_every_draft_and_is_named_last(tiny):
    arguments = ["draft", "a red boat", "--model", tiny, "--seed", "4", "-n", "3", "--grid", "sheet.png"]
    result = invoke(arguments)
    *drafts, sheet = result.stdout.split()
    assert (result.exit_code, sheet) == (0, "sheet.png")
    images = [Image.open(path) for path in drafts]
    w, h = images[0].size
    with Image.open(sheet) as made:
        assert made.width == 2 * w + 8  # three make two columns, each with a strip for its seed
        strip = (made.height - 8) // 2 - h
        places = [(0, 0), (w + 8, 0), (0, h + strip + 8)]
        for image, (left, top) in zip(images, places, strict=True):
            assert made.crop((left, top, left + w, top + h)).tobytes() == image.tobytes()
            below = made.crop((left, top + h, left + w, top + h + strip))
            assert below.convert("L").getextrema()[0] < 128
    again = invoke([*arguments, "--out", "others/"])
    assert (again.exit_code, again.stdout) == (1, "")
    assert "sheet.png exists" in again.stderr
    assert not Path("others").exists() or not list(Path("others").iterdir())


def test_finish_with_another_refine_pass(tiny):
    generate(tiny, "--stages", "--out", "boat.png")
    data = run_json(
        *["finish", "boat-draft.png", "--upscaler", "bicubic", "--sigma", "0.3", "--scale", "3", "--stages"],
        *["--out", "{name}-large.png"],
    )
    (picture,) = data["pictures"]
    assert picture["path"] == "boat-draft-large.png"
    assert set(picture["stages"]) == {"upscaled"}
    assert load_image(picture["path"]).size == (96, 96)
    assert picture["recipe"]["plan"]["refine_sigma"] == 0.3
    assert picture["recipe"]["plan"]["steps"] == 2


def test_enhance(tiny):
    Image.new("RGB", (48, 32), "teal").save("photo.png")
    out = run("enhance", "photo.png", "--prompt", PROMPT, "--model", tiny, "--upscaler", "bicubic", "--stages")
    assert out.stdout.splitlines() == ["photo-enhanced.png", "photo-enhanced-upscaled.png"]
    assert load_image("photo-enhanced.png").size == (96, 64)
    assert read_recipe("photo-enhanced.png").mode == "enhance"


def test_enhance_several_to_a_size(tiny):
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), "teal").save(f"{name}.png")
    Path("new").mkdir()
    out = run(
        "enhance",
        "a.png",
        "b.png",
        "--prompt",
        PROMPT,
        "--model",
        tiny,
        *["--size", "80x48", "--upscaler", "bicubic"],
        "--out",
        "new/{name}.png",
    )
    assert out.stdout.splitlines() == ["new/a.png", "new/b.png"]
    assert load_image("new/a.png").size == (80, 48)


@pytest.mark.parametrize("kind", ["staged", "native", "draft", "finish", "enhance"])
def test_replay_gives_the_same_pixels(tiny, kind):
    generate(tiny, "--stages", "--out", "picture.png")
    original: list[str] = []
    if kind == "native":
        run("generate", PROMPT, "--model", tiny, "--size", "48", "--native", "--steps", "3", "--out", "native.png")
    elif kind == "finish":
        run("finish", "picture-draft.png", "--upscaler", "bicubic", "--out", "finish.png")
    elif kind == "enhance":
        original = ["--original", "picture-upscaled.png"]
        run(
            *["enhance", "picture-upscaled.png", "--prompt", PROMPT, "--model", tiny, "--upscaler", "bicubic"],
            *["--size", "64", "--out", "enhance.png"],
        )
    path = {"staged": "picture.png", "draft": "picture-draft.png"}.get(kind, f"{kind}.png")
    result = run("replay", path, *original)
    assert result.stdout == f"{Path(path).stem}-replay.png\n"
    assert "same pixels" in result.stderr
    assert load_image(result.stdout.strip()).tobytes() == load_image(path).tobytes()


def test_replay_says_what_differs(tiny):
    path = generate(tiny, "--seed", "7")
    result = run("replay", path, "--upscaler", "bilinear", "--dtype", "bfloat16", code=1)
    assert "the pixels differ" in result.stderr
    assert "upscaler: bicubic -> bilinear" in result.stderr
    assert "dtype: float32 -> bfloat16" in result.stderr
    data = run_json("replay", path, "--upscaler", "bilinear", code=1)
    assert data["same_pixels"] is False
    assert data["differences"] == {"upscaler": {"recorded": "bicubic", "here": "bilinear"}}


def test_replay_names_versions(tiny):
    path = generate(tiny, "--seed", "7")
    data = json.loads(read_recipe(path).to_json())
    data["versions"]["torch"] = "1.0"
    data["pixels_sha256"] = "0" * 64
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("mrflow", json.dumps(data))
    load_image(path).save("old.png", pnginfo=chunk)
    assert "versions.torch: 1.0 -> " in run("replay", "old.png", code=1).stderr


def test_replay_asks_for_what_the_recipe_cannot_hold(tiny, network_file):
    Image.new("RGB", (32, 32), "teal").save("photo.png")
    run("enhance", "photo.png", "--prompt", PROMPT, "--model", tiny, "--upscaler", network_file)
    assert "--original" in run("replay", "photo-enhanced.png", code=2).stderr
    assert "--upscaler" in run("replay", "photo-enhanced.png", "--original", "photo.png", code=2).stderr
    run("replay", "photo-enhanced.png", "--original", "photo.png", "--upscaler", network_file)


def test_replay_of_a_file_without_a_recipe():
    save_image(Image.new("RGB", (32, 32)), "plain.png")
    assert "no recipe" in run("replay", "plain.png", code=1).stderr


def test_a_recipe_names_no_folder_and_its_model_is_found_by_name_and_hash(tiny, monkeypatch, tmp_path):
    path = generate(tiny, "--seed", "7")
    recipe = read_recipe(path)
    assert recipe.model == "tiny"
    assert str(tiny.parent) not in recipe.to_json()
    monkeypatch.delenv("MRFLOW_MODELS_DIR")
    assert "give it as --model" in run("replay", path, code=2).stderr
    other = tmp_path / "others" / "tiny"
    shutil.copytree(tiny, other)
    (other / "model_index.json").write_text((other / "model_index.json").read_text() + " ")
    refused = run("replay", path, "--models-dir", other.parent, code=2).stderr
    assert "others/tiny has that name, and other weights" in refused
    where = ["--models-dir", other.parent, "--models-dir", tiny.parent.parent]
    assert run_json("replay", path, *where)["same_pixels"]
    shutil.copytree(tiny, tmp_path / "renamed" / "other")
    assert run_json("replay", path, "--models-dir", tmp_path / "renamed")["same_pixels"]


def test_what_a_linked_folder_made_is_replayed_from_there(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("MRFLOW_MODELS_DIR")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tiny)
    path = generate(tmp_path / "models" / "mine", "--seed", "7")
    assert run_json("replay", path, "--models-dir", tmp_path / "models")["same_pixels"]


def test_recipes_with_paths_still_replay(tiny, monkeypatch):
    monkeypatch.delenv("MRFLOW_MODELS_DIR")
    path = generate(tiny, "--seed", "7")
    save_image(load_image(path), "old.png", replace(read_recipe(path), model=str(tiny), revision=None))
    assert run_json("replay", "old.png")["same_pixels"]


def test_an_image_with_a_profile_is_replayed_also_from_the_old_reading(tiny):
    photo = Image.fromarray(np.array([[9, 300, 65000] * 16] * 48, dtype=np.uint16))
    photo.save("photo.png")
    run("enhance", "photo.png", "--prompt", PROMPT, "--model", tiny, "--upscaler", "bicubic")
    assert run_json("replay", "photo-enhanced.png", "--original", "photo.png")["same_pixels"]
    recipe = read_recipe("photo-enhanced.png")
    before = load_image("photo.png", as_before=True)
    assert before.tobytes() != load_image("photo.png").tobytes()
    assert (
        check_input(replace(recipe, input_sha256=pixels_sha256(before)), "photo.png").tobytes() == before.tobytes()
    )
    with pytest.raises(ImageError, match="is not the one"):
        check_input(replace(recipe, input_sha256="0" * 64), "photo.png")
