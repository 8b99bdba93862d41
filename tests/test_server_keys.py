"""Who may ask: keys, sessions of the login form, and the names of what is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mrflow.errors import RequestError
from mrflow.server.keys import Keys, Sessions
from mrflow.server.store import Store
from support.serving import Server, check_error, serving

GOOD, OTHER = "a-good-key-of-24-letters", "another-key-of-24-letters"
PAGE = {"X-Mrflow-Page": "1"}  # as the page's script sends it


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with serving(keys=[GOOD, OTHER]) as running:
        yield running


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", f"Bearer {GOOD}x", f"Bearer {GOOD[:-1]}", f"Basic {GOOD}", GOOD]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/none"])
def test_wrong_keys(locked: Server, given: str | None, path: str) -> None:
    headers = {} if given is None else {"Authorization": given}
    error = check_error(httpx.get(f"{locked.url}{path}", headers=headers), 401)
    assert error["code"] == "invalid_api_key"


def test_what_keys_open(locked: Server) -> None:
    for key in (GOOD, OTHER):
        assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for path in ("/health", "/ready"):
        assert httpx.get(f"{locked.url}{path}").status_code == 200
    assert httpx.get(f"{locked.url}/static/page.css").headers["content-type"].startswith("text/css")
    for path in ("/", "/docs", "/openapi.json"):
        answer = httpx.get(f"{locked.url}{path}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    check_error(httpx.post(f"{locked.url}/", json={}), 401)


def test_the_login_form_opens_the_page_and_the_api_to_the_page_alone(locked: Server) -> None:
    with httpx.Client(base_url=locked.url, follow_redirects=True) as browser:
        assert "API key" in browser.get("/docs").text
        assert browser.post("/login", data={"key": "wrong" * 8}).status_code == 401
        assert browser.get("/docs").url.path == "/login"
        answer = browser.post("/login", data={"key": GOOD})
        cookie = answer.history[0].headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert GOOD not in cookie
        assert "refine_sigma" in browser.get("/docs").text
        check_error(browser.get("/v1/models"), 401)
        check_error(browser.get("/metrics", headers=PAGE), 401)
        assert browser.get("/v1/models", headers=PAGE).status_code == 200
        body = {"prompt": "a boat", "dry_run": True}
        check_error(browser.post("/v1/images/generations", json=body), 401)  # a form of another site, say
        evil = {"Origin": "https://evil.example", **PAGE}
        check_error(browser.post("/v1/images/generations", json=body, headers=evil), 403)
        assert browser.post("/v1/images/generations", json=body, headers=PAGE).json()["warnings"] == []
        browser.cookies.clear()
        check_error(browser.get("/v1/models", headers=PAGE), 401)


def test_keys_from_file_and_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{GOOD}  # the team\n\n")
    monkeypatch.setenv("MRFLOW_API_KEYS", f"{OTHER}, {GOOD}")
    keys = Keys.read(file)
    clients = {keys.client(GOOD), keys.client(OTHER)}
    assert len(clients) == 2
    assert keys.client("no key at all, sorry") is None
    assert keys.client("half a character: \ud800") is None
    assert not any(key in str(clients) for key in (GOOD, OTHER))
    monkeypatch.delenv("MRFLOW_API_KEYS")
    assert not Keys.read(None)
    for text in ("short\n", "", "with a space in the middle\n"):
        file.write_text(text)
        with pytest.raises(RequestError):
            Keys.read(file)
    with pytest.raises(RequestError):
        Keys.read(tmp_path / "absent")


@pytest.mark.parametrize(
    "raw",
    [
        f"\ufeff{GOOD}\n{OTHER}".encode(),
        f"{GOOD}\r\n\r\n{OTHER}\r\n".encode(),
        f"\ufeff# ours\r\n  {GOOD}  # the team\r\n\t{OTHER}\t#\r\n".encode(),
        f"{GOOD}\r{OTHER}\r".encode(),
    ],
)
def test_key_files_as_editors_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.delenv("MRFLOW_API_KEYS", raising=False)
    (tmp_path / "keys").write_bytes(raw)
    keys = Keys.read(tmp_path / "keys")
    assert keys.client(GOOD)
    assert keys.client(OTHER)
    assert not keys.client("#")


def test_a_key_is_never_cut_at_a_sign_within_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{GOOD}#more\n")
    keys = Keys.read(tmp_path / "keys")
    assert keys.client(f"{GOOD}#more")
    assert not keys.client(GOOD)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("ein-schlüssel-mit-umlaut\n".encode(), "API key 1 .* odd characters"),
        ("ein-schlüssel-mit-umlaut\n".encode("cp1252"), "no UTF-8 text"),
        (f"{GOOD}\n".encode("utf-16"), "no UTF-8 text"),
        (b"\xef\xbb\xbf\r\n# nothing", "holds no keys"),
        (f"{GOOD}\x00\n".encode(), "odd characters"),
    ],
)
def test_key_files_that_are_none(tmp_path: Path, raw: bytes, why: str) -> None:
    (tmp_path / "keys").write_bytes(raw)
    with pytest.raises(RequestError, match=why):
        Keys.read(tmp_path / "keys")


def test_keys_of_other_letters_are_wrong_keys(locked: Server) -> None:
    for key in ("schlüssel", "\ud800", "鍵"):
        header = b"Bearer " + key.encode("utf-8", "surrogatepass")
        check_error(httpx.get(f"{locked.url}/v1/models", headers={"Authorization": header}), 401)
    for form in (b"key=schl%C3%BCssel", b"key=%ED%A0%80", b"key=\xff"):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        assert httpx.post(f"{locked.url}/login", content=form, headers=kind).status_code == 401


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    token = sessions.begin("key-1")
    assert sessions.client(token) == "key-1"
    assert sessions.client(token + "x") is None
    later = time.monotonic() + 13 * 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert sessions.client(token) is None


def test_names_are_letters_and_digits_by_which_clients_know_a_file() -> None:
    """LibreChat looks for [\\w\\d]+.png at the end: a dash there would hide it."""
    store: Store[str] = Store(60, 1000, "")
    assert all(store.put("", 1).isalnum() for _ in range(200))


def test_a_store_forgets_the_old_and_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store[str] = Store(60, 10, "x_")
    names = [store.put(text, 4) for text in "abc"]
    assert [store.get(name) for name in names] == [None, "b", "c"]
    assert len(set(names)) == 3
    assert all(len(name) >= 32 for name in names)
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert len(store) == 0
    assert store.get("x_") is None
