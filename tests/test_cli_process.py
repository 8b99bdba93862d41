"""The edges of a process: streams that are closed, full or nobody's, other locales, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import make_pipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shells of POSIX")

_MAIN = "from mrflow.cli import main; main()"
_IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, cwd: Path, **env: str) -> Any:
    """Run a line of bash in which $mrflow is the command; its exit code is that of the first failing part."""
    command = f"mrflow() {{ {sys.executable} -c '{_MAIN}' \"$@\"; }}; set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, env={**os.environ, **env})


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_stdout_is_one_line_and_a_failure(tmp_path, more):
    done = shell(f"mrflow models {more} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: stdout cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("mrflow models --json | true", 1),
        ("mrflow models --json | head -1", 1),
        ("mrflow generate --sigma 2 a |& true", 2),
        ("mrflow generate --sigma 2 a 2> /dev/full", 2),
        ("mrflow generate --sigma 2 a 2>&-", 2),
        ("mrflow models >&-", 0),
        ("mrflow models <&- >&- 2>&-", 0),
        ("mrflow batch - --out made <&-", 2),
        ("COLUMNS=0 mrflow models", 0),
        ("TERM=dumb mrflow generate --help", 0),
    ],
)
def test_lost_streams_end_in_no_traceback(tmp_path, line, code):
    done = shell(line, tmp_path)
    shown = done.stderr.decode()
    assert done.returncode == code or (done.returncode == 0 and "|" in line), shown
    assert not any(words in shown for words in ("Traceback", "Exception ignored", "--debug"))


def test_a_small_picture_in_any_locale(tmp_path):
    """A prompt in UTF-8 is one, and its file has a name in UTF-8, whatever the locale says."""
    code = (
        "import sys; sys.argv[1:] = ['generate', *sys.argv[1:]]\n"
        "from mrflow.cli import main, generate, outputs\n"
        "from mrflow.cli.loading import ModelOptions\n"
        "def load(self): raise SystemExit(print(*outputs.plan_outputs(None, '{prompt}.png', named)))\n"
        "of = outputs.subjects_of\n"
        "def subjects(described, sources=()):\n"
        "    global named; named = of(described, sources); return named\n"
        "outputs.subjects_of, ModelOptions.load = subjects, load\n"
        "main()"
    )
    for env in ({}, _IN_C, {"PYTHONIOENCODING": "latin-1"}):
        for prompt in ("été", "湖"):
            done = subprocess.run(
                [sys.executable, "-c", code, prompt], capture_output=True, cwd=tmp_path, env={**os.environ, **env}
            )
            assert done.returncode == 0, done.stderr
            wanted = f"{prompt}.png\n"
            if "PYTHONIOENCODING" in env:
                assert done.stdout.decode("latin-1") == wanted.encode("latin-1", "backslashreplace").decode(
                    "latin-1"
                )
            else:
                assert done.stdout.decode() == wanted
    broken = subprocess.run([sys.executable, "-c", code, b"\xe9t\xe9"], capture_output=True, cwd=tmp_path)
    assert broken.returncode == 2
    assert b"U+DCE9" in broken.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_tidy_up_and_give_their_exit_code(tmp_path, number, code):
    script = (
        "import time; from mrflow.cli import main; from mrflow.cli.loading import ModelOptions\n"
        "def load(self):\n"
        "    try: print('ready', flush=True); time.sleep(60)\n"
        "    finally: print('tidy', flush=True)\n"
        "ModelOptions.load = load; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "generate", "lake"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup's child would inherit it ignored
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "tidy\n")
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_ctrl_c_while_importing(tmp_path):
    for moment in (0.1, 0.3, 1, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", f"from mrflow.cli import main; print(flush=True); {_MAIN}", "generate", "lake"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (130, -signal.SIGINT), stderr
        assert b"Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("PYTHONIOENCODING=cp1252 mrflow generate '一个安静的湖 a lake' $SMALL > list.txt", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mrflow generate 'été, a lake' $SMALL", 0),
        ("mrflow generate 'a lake' $SMALL --json | true", 1),
        ("mrflow generate 'a lake' $SMALL > /dev/full", 1),
        ("mrflow generate 'a lake' $SMALL 2> /dev/full", 0),
        ("mrflow generate 'a lake' $SMALL |& true", 1),
        ("mrflow generate 'a lake' $SMALL <&- >&- 2>&-", 0),
        ("mrflow draft 'a lake' $SMALL -n 1 2>&-", 0),
    ],
)
def test_the_picture_is_made(tmp_path, line, code):
    make_pipe().save_pretrained(tmp_path / "tiny")
    more = "" if "draft" in line else "--upscaler bicubic"
    done = shell(line, tmp_path, SMALL=f"--seed 7 --model tiny --size 64 --plan 1+1 -o out/ --device cpu {more}")
    assert done.returncode == code, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"--debug" not in done.stderr


def test_json_of_a_name_that_is_no_text(tmp_path):
    done = shell("mrflow models --json", tmp_path, PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["pipelines"]
