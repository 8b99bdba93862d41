"""`mrflow export` at work: the files that each scorer reads, resuming, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, load_image, read_recipe
from mrflow.cli.loading import ModelOptions
from support.cli import Result, invoke

PROMPTS = ["a red boat", "a blue house at dusk"]
RUN = ["--size", "64", "--plan", "1+1", "--upscaler", "bicubic"]


@pytest.fixture(scope="module")
def shared() -> MrFlow:
    return make_fast(make_pipe())


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, shared):
    """Run each test in a folder of its own with prompt files, on one tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelOptions, "load", lambda self: shared)
    rows = [f"Portrait,{k:03},{prompt}" for k, prompt in enumerate(PROMPTS)]
    Path("OneIG-Bench.csv").write_text("\n".join(["category,id,prompt_en", *rows]))
    lines = [json.dumps({"tag": "colors", "prompt": prompt}) for prompt in PROMPTS]
    Path("evaluation_metadata.jsonl").write_text("\n".join(lines))
    Path("prompts").mkdir()
    for k, prompt in enumerate(PROMPTS):
        Path(f"prompts/partiprompts{k}.txt").write_text(prompt)
    Path("color_val.txt").write_text("\n".join(PROMPTS))


def run(*arguments: str, code: int = 0) -> Result:
    result = invoke(["export", *arguments])
    assert result.exit_code == code, result.stderr
    return result


def run_json(*arguments: str) -> dict[str, object]:
    return json.loads(run(*arguments, "--json").stdout.splitlines()[-1])


def cut(sheet: Image.Image) -> list[bytes]:
    """Return the four quarters as the scorers cut them: row by row."""
    w, h = sheet.width // 2, sheet.height // 2
    return [sheet.crop((x, y, x + w, y + h)).tobytes() for y in (0, h) for x in (0, w)]


def pictures(fast: MrFlow, prompt: str, seeds: range) -> list[bytes]:
    result = fast(prompt, seed=seeds, plan="1+1", width=64, height=64)
    return [image.tobytes() for image in result.images]


def test_oneig_finds_one_sheet_per_id_and_cuts_it_into_four(shared):
    done = run_json("oneig", "OneIG-Bench.csv", *RUN, "--out", "images", "--name", "ours")
    assert done == {
        "benchmark": "oneig",
        "folder": "images",
        "record": "images/ours.export.json",
        "made": 2,
        "kept": 0,
        "pictures": 8,
    }
    for k, prompt in enumerate(PROMPTS):
        (path,) = Path("images/human/ours").glob(f"{k:03}*")
        with Image.open(path) as sheet:
            assert (path.suffix, sheet.format, sheet.size) == (".webp", "WEBP", (128, 128))
            assert cut(sheet.convert("RGB")) == pictures(shared, prompt, range(42, 46))


def test_dpg_has_one_sheet_per_prompt_file_and_nothing_else(shared):
    assert run("dpg", "prompts", *RUN, "--seed", "7").stdout == "dpg/mrflow\n"
    assert sorted(path.name for path in Path("dpg/mrflow").iterdir()) == [f"partiprompts{k}.png" for k in (0, 1)]
    sheet = load_image("dpg/mrflow/partiprompts1.png")
    assert cut(sheet) == pictures(shared, PROMPTS[1], range(7, 11))


def test_geneval_has_a_folder_per_line(shared):
    assert run("geneval", "evaluation_metadata.jsonl", *RUN, "-n", "2").stdout == "geneval/mrflow\n"
    folders = sorted(Path("geneval/mrflow").iterdir())
    assert [folder.name for folder in folders] == ["00000", "00001"]
    for folder, prompt in zip(folders, PROMPTS, strict=True):
        assert json.loads((folder / "metadata.jsonl").read_text()) == {"tag": "colors", "prompt": prompt}
        samples = sorted((folder / "samples").iterdir())
        assert [path.name for path in samples] == ["0000.png", "0001.png"]
        assert [load_image(path).tobytes() for path in samples] == pictures(shared, prompt, range(42, 44))
        assert [read_recipe(path).seed for path in samples] == [42, 43]
        assert load_image(folder / "grid.png").size == (128, 64)


def test_t2i_compbench_names_each_picture_by_prompt_and_running_number():
    out = run("t2i-compbench", "color_val.txt", *RUN, "-n", "2", "--out", "examples").stdout
    assert out == "examples/mrflow/color_val\n"
    names = sorted(path.name for path in Path("examples/mrflow/color_val/samples").iterdir())
    assert sorted(names, key=lambda name: int(name.split("_")[-1].split(".")[0])) == [
        f"{PROMPTS[k // 2]}_{k:06}.png" for k in range(4)
    ]


def test_a_stopped_run_goes_on_and_makes_only_what_is_missing(shared):
    arguments = ["geneval", "evaluation_metadata.jsonl", *RUN]
    assert run_json(*arguments, "--limit", "1")["pictures"] == 4
    before = {path: path.stat().st_mtime_ns for path in Path("geneval").rglob("*.png")}
    lost = Path("geneval/mrflow/00000/samples/0002.png")
    pixels = load_image(lost).tobytes()
    lost.unlink()
    before.pop(lost)
    done = run_json(*arguments)
    assert (done["pictures"], done["made"], done["kept"]) == (5, 2, 0)
    assert load_image(lost).tobytes() == pixels
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run_json(*arguments)["kept"] == 2


def test_two_settings_do_not_mix_under_one_name():
    arguments = ["t2i-compbench", "color_val.txt", "--size", "64", "-n", "1", "--limit", "1"]
    run(*arguments, "--plan", "1+1")
    refused = run(*arguments, "--plan", "2+1", code=2)
    assert "differ in plan" in refused.stderr
    assert "--name" in refused.stderr
    Path("color_val.txt").write_text("another prompt")
    assert "differ in prompts_sha256" in run(*arguments, "--plan", "1+1", code=2).stderr
    Path("t2i-compbench/mrflow-color_val.export.json").write_text("{")
    assert "cannot be read as a record" in run(*arguments, "--plan", "1+1", code=1).stderr


def test_native(shared):
    run("dpg", "prompts", "--size", "32", "--native", "--steps", "2", "-n", "1", "--limit", "1")
    expected = shared.native(PROMPTS[0], steps=2, width=32, height=32, seed=42).images[0]
    assert load_image("dpg/native/partiprompts0.png").tobytes() == expected.tobytes()
    record = json.loads(Path("dpg/native.export.json").read_text())
    assert (record["mode"], record["plan"]["steps"], record["upscaler"]) == ("native", 2, None)


def test_guidance_can_stop_early_and_a_solver_step_staged_and_native(shared):
    arguments = ["dpg", "prompts", "--size", "64", "-n", "1", "--limit", "1", "--guidance-stop", "0.5"]
    for mode in ([], ["--native"]):
        run(*arguments, "--steps", "4", *mode, "--true-cfg-scale", "3", "--solver", "unipc")
        name = "native" if mode else "mrflow"
        plan = json.loads(Path(f"dpg/{name}.export.json").read_text())["plan"]
        assert (plan["guidance_stop"], plan["solver"]) == (0.5, "unipc")
    plan = Plan(steps=4, true_cfg_scale=3.0, guidance_stop=0.5, solver="unipc")
    expected = shared(PROMPTS[0], plan=plan, width=64, height=64, seed=42).images[0]
    assert load_image("dpg/mrflow/partiprompts0.png").tobytes() == expected.tobytes()
    assert "solver is 'x'" in run(*arguments, "--solver", "x", code=2).stderr
    assert "guidance_stop is 2" in run(*arguments[:-1], "2", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dpg", "prompts", "--size", "64x96"], "cuts squares. Try 64"),
        (["oneig", "OneIG-Bench.csv", "--size", "8192"], "too large a sheet"),
        (["oneig", "OneIG-Bench.csv", "--native", "--plan", "2+1"], "--native runs no stages"),
        (["oneig", "missing.csv"], "does not exist"),
        (["imagenet", "prompts"], "There is no benchmark"),
        (["dpg", "prompts", "--seed", "-1"], "seed is -1"),
        (["dpg", "prompts", "--plan", "0+1"], "steps is 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(monkeypatch, arguments, words):
    monkeypatch.setattr(ModelOptions, "load", lambda self: pytest.fail("the model was loaded"))
    result = run(*arguments, code=2)
    assert words in result.stderr
    assert result.stdout == ""
    assert not Path(arguments[0]).exists()
