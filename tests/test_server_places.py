"""The server in real places: behind nginx below a path, under names that it was told, asked by careless tools."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mrflow.errors import RequestError
from mrflow.plan import ABOUT
from mrflow.server.address import Address
from mrflow.server.guard import Guard
from mrflow.server.requests import OLDER_QUALITY, QUALITY
from mrflow.server.settings import MAX_DRAFTS, MAX_N, Settings
from support.cli import invoke
from support.serving import ROUTES, Server, check_error, serving, until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
KEY = "a-good-key-of-24-letters"
BODY = {"prompt": "a boat", "plan": "1+1", "response_format": "url"}
GUIDE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
NAME = "pictures.example.org"

PLACES = {  # lines of a location, and what the server is told
    "rewriting": ("/images/", "proxy_pass http://{up}/; proxy_set_header Host $http_host;", "/images"),
    "not rewriting": ("/images/", "proxy_pass http://{up}; proxy_set_header Host $http_host;", "/images"),
    "forwarded host": (
        "/images/",
        "proxy_pass http://{up}/; proxy_set_header Host $host; proxy_set_header X-Forwarded-Host $http_host;",
        "/images",
    ),
    "no headers, whole address": ("/images/", "proxy_pass http://{up}/;", "http://{front}/images"),
    "$host, whole address": ("/", "proxy_pass http://{up}; proxy_set_header Host $host;", "http://{front}"),
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return int(line.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx(locations: str, folder: Path, port: int) -> Iterator[None]:
    """Run a real nginx with these locations."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    server = f"server {{ listen 127.0.0.1:{port}; {locations} }}"
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{server} }}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-e", f"{folder}/log", "-c", str(config)])
    try:
        until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


def check_place(browser: httpx.Client, base: str, root: str) -> None:
    """Check page, assets, API, kept files, documents, refusals and login as somebody sees them from outside."""
    assert browser.get(f"{base}/docs").url.path == f"{root}/login"
    assert 'action="login"' in browser.get(f"{base}/login").text
    answer = browser.post(f"{base}/login", data={"key": KEY}, headers={"Origin": base.removesuffix(root)})
    assert (answer.status_code, answer.url.path) == (200, f"{root}/")
    cookie = answer.history[0].headers["set-cookie"]
    assert f"Path={root}/;" in cookie
    assert ("Secure" in cookie) == base.startswith("https")
    links = re.findall(r'(?:src|href)="([^":]+\.(?:js|css)[^"]*)"', answer.text)
    assert len(links) == 2
    for link in links:
        assert browser.get(answer.url.join(link)).status_code == 200, link
    as_page = {"X-Mrflow-Page": "1"}
    dry = browser.post(answer.url.join("v1/images/generations"), json={**BODY, "dry_run": True}, headers=as_page)
    assert dry.json()["plan"] == "1+1"
    assert "refine_sigma" in browser.get(f"{base}/docs").text
    assert browser.get(f"{base}/openapi.json").json().get("servers", [{"url": ""}])[0]["url"] == root
    headers = {"Authorization": f"Bearer {KEY}"}
    made = browser.post(f"{base}/v1/images/generations", json=BODY, headers=headers).json()["data"][0]["url"]
    assert made.startswith(f"{base}/v1/files/")
    assert browser.get(made).content.startswith(b"\x89PNG")
    assert browser.head(made).headers["content-type"] == "image/png"
    assert (
        "/v1"
        in check_error(browser.post(f"{base}/images/generations", json=BODY, headers=headers), 404)["message"]
    )
    evil = {"Origin": "https://evil.example", **headers}
    check_error(browser.post(f"{base}/v1/images/generations", json=BODY, headers=evil), 403)


@needs_nginx
@pytest.mark.parametrize("place", PLACES)
def test_behind_nginx(place: str, tmp_path: Path) -> None:
    at, lines, told = PLACES[place]
    front = f"127.0.0.1:{free_port()}"
    address = Address(root_path=told.format(front=front), trusted_proxies=["127.0.0.1"])
    with serving(keys=[KEY], page=True, address=address) as server:
        location = f"location {at} {{ {lines.replace('{up}', server.host)} }}"
        with (
            nginx(location, tmp_path, int(front.rpartition(":")[2])),
            httpx.Client(follow_redirects=True, timeout=60) as browser,
        ):
            check_place(browser, f"http://{front}{at.rstrip('/')}", at.rstrip("/"))


@needs_nginx
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_configuration_of_the_guide(tmp_path: Path, who: list[str]) -> None:
    """With TLS in front, as docs/serving.md has it; nginx appends to what a client forges."""
    assert "mrflow serve --root-path /images --trusted-proxy 127.0.0.1" in GUIDE
    (block,) = re.findall(r"```nginx\nserver \{\n    listen 443 ssl;\n(.*?)\n\}\n```", GUIDE, re.DOTALL)
    cert, key, port = tmp_path / "cert", tmp_path / "key", free_port()
    make = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-out",
        cert,
        "-keyout",
        key,
    ]
    subprocess.run(make, check=True, capture_output=True)
    with serving(
        keys=[KEY], page=True, address=Address(root_path="/images", trusted_proxies=["127.0.0.1"])
    ) as server:
        block = block.replace("127.0.0.1:8000", server.host)
        block = re.sub(r"(ssl_certificate )\S+;", rf"\g<1>{cert};", block)
        block = re.sub(r"(ssl_certificate_key )\S+;", rf"\g<1>{key};", block)
        # our listen comes first and is without TLS: a second one takes its place
        tls = free_port()
        with (
            nginx(f"listen 127.0.0.1:{tls} ssl; {block}", tmp_path, port),
            httpx.Client(
                follow_redirects=True,
                timeout=60,
                transport=httpx.HTTPTransport(verify=False, local_address="127.0.0.2"),  # no trusted proxy
            ) as browser,
        ):
            check_place(browser, f"https://127.0.0.1:{tls}/images", "/images")
            assert browser.get(f"https://127.0.0.1:{tls}/images").url.path == "/images/"
            forged = {
                "X-Forwarded-For": "6.6.6.6",
                "X-Forwarded-Host": "evil.example",
                "X-Forwarded-Proto": "http",
            }
            page = browser.get(f"https://127.0.0.1:{tls}/images/", headers=forged)
            assert "evil.example" not in page.text
            assert who[-1] == "127.0.0.2"


@pytest.fixture
def who(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of clients, as the guard finds them, one appended by each request."""
    found: list[str] = []
    admit = Guard._admit

    def note(guard: Guard, scope: Any, path: str) -> None:
        found.append(scope["client"][0])
        admit(guard, scope, path)

    monkeypatch.setattr(Guard, "_admit", note)
    return found


@pytest.mark.parametrize("proxies", [(), ("10.0.0.1",), ("127.0.0.1",), ("127.0.0.0/8", "10.0.0.0/8"), ("*",)])
def test_only_trusted_proxies_are_believed(proxies: tuple[str, ...], who: list[str]) -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6, 10.0.0.1" if len(proxies) == 2 else "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": f"other.example, {NAME}",
    }
    trusted = proxies not in ((), ("10.0.0.1",))
    with serving(page=True, address=Address(trusted_proxies=proxies)) as server:
        made = httpx.post(f"{server.url}{ROUTES[0]}", json=BODY, headers=forged, timeout=60).json()["data"][0][
            "url"
        ]
        page = httpx.get(server.url, headers=forged).text
        docs = httpx.get(f"{server.url}/nothing", headers=forged).text
    assert made.startswith(f"https://{NAME}/v1" if trusted else f"{server.url}/v1")
    assert NAME not in page + docs  # which name no address at all
    assert set(who) == {"6.6.6.6" if trusted else "127.0.0.1"}


def test_names_of_hosts_are_compared_as_addresses_and_without_regard_to_case() -> None:
    address = Address(hosts=["LocalHost", "127.0.0.2", "[::1]"], root_path=f"https://{NAME}:8443/images")
    with serving(address=address) as server:
        for name in ("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.2:1", "[::1]:8000", "[0:0::1]", NAME):
            assert httpx.get(f"{server.url}/health", headers={"Host": name}).status_code == 200, name
        for name in ("evil.example", "localhost.evil.example", "127.0.0.1", "", "[", ":80"):
            answer = httpx.get(f"{server.url}/health", headers={"Host": name})
            assert check_error(answer, 400)["code"] == "unknown_host", name


def test_a_rebound_name_is_refused_whatever_it_says_was_forwarded() -> None:
    with serving(address=Address(hosts=["localhost"], trusted_proxies=["127.0.0.1"])) as server:
        for names in (("evil.example", "localhost"), ("localhost", "evil.example")):
            headers = dict(zip(("Host", "X-Forwarded-Host"), names, strict=True))
            assert check_error(httpx.get(f"{server.url}/health", headers=headers), 400)["code"] == "unknown_host"


@pytest.mark.parametrize(
    "root_path", ["images", "/v1", "/v1/images", "/a b", "/ä", "/../x", "ftp://x/y", "//", "/a?b"]
)
def test_paths_that_are_none(root_path: str) -> None:
    with pytest.raises(RequestError, match=r"root_path is .*must be like /images"):
        Address(root_path=root_path)


@pytest.mark.parametrize("proxy", ["proxy.example", "10.0.0.300", "10.0.0.1/8", "", "127.0.0.1:80"])
def test_proxies_that_are_none(proxy: str) -> None:
    with pytest.raises(RequestError, match=re.escape("must be like 127.0.0.1 or 10.0.0.0/8")):
        Address(trusted_proxies=[proxy])


def test_a_browser_says_itself_whether_it_asks_for_another_site() -> None:
    with serving() as server:

        def ask(**headers: str) -> httpx.Response:
            return httpx.post(f"{server.url}{ROUTES[0]}", json=BODY, headers=headers, timeout=60)

        behind = {"Origin": "https://pictures.example.org"}  # and a proxy that says nothing of it
        assert ask(**behind, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200
        for site in ("cross-site", "same-site"):
            check_error(ask(**{"Sec-Fetch-Site": site}), 403)
        check_error(ask(**behind), 403)
        check_error(ask(Origin="null"), 403)
        assert ask().status_code == 200


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(page=True) as running:
        yield running


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_head_on_every_get(http: httpx.Client) -> None:
    paths = [path for path, verbs in http.get("/openapi.json").json()["paths"].items() if "get" in verbs]
    for path in [*paths, "/", "/docs", "/openapi.json", "/static/page.js"]:
        path = path.replace("{name}", "none")
        got, head = http.get(path), http.head(path)
        assert head.status_code == got.status_code, path
        assert head.content == b"", path
        assert head.headers["content-type"] == got.headers["content-type"], path
    for path in ("/nothing", ROUTES[0]):
        assert http.head(path).status_code in (404, 405)
    assert http.get("/health").json()["status"] == "ok"  # on the same connection


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/a/b", 404),
        ("POST", "/images/generations", 404),
        ("GET", "/models", 404),
        ("GET", "/v1", 404),
        ("GET", "/static/../templates/page.html", 404),
        ("GET", "/static/%2e%2e/page.py", 404),
        ("GET", "/static/", 404),
        ("GET", ROUTES[0], 405),
        ("PUT", "/v1/models", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/v1/models", 405),
        ("PATCH", "/docs", 405),
        ("POST", "/", 405),
    ],
)
@pytest.mark.parametrize("page", [True, False])
def test_what_no_route_takes_is_refused_in_shape(
    http: httpx.Client, bare: Server, method: str, path: str, status: int, page: bool
) -> None:
    answer = http.request(method, path if page else f"{bare.url}{path}")
    if not page and not path.startswith(("/v1", "/health", "/docs")):
        status = 404
    error = check_error(answer, status)
    assert status != 404 or "/v1" in error["message"]
    assert status != 405 or answer.headers["allow"]


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "text/plain; charset=x"]
)
def test_json_is_read_whatever_it_is_called(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    text = '{"prompt": "a boat", "plan": "1+1"}'
    assert http.post(ROUTES[0], content=text, headers=headers).status_code == 200
    assert check_error(http.post(ROUTES[0], content="prompt=x", headers=headers), 400)["code"] == "invalid_json"


def test_the_limits_of_the_guide_are_the_servers() -> None:
    told, limits = GUIDE.partition("## Limits")[2].partition("\n## ")[0], Settings()
    for text in (
        f"| pictures of a request | {MAX_N}, drafts {MAX_DRAFTS} |",
        f"| {limits.max_waiting}, half of them for one client | `--queue` |",
        f"| {limits.timeout:g} s | `--timeout` |",
        f"| {limits.max_pixels**0.5:g} x {limits.max_pixels**0.5:g} | `--max-pixels` |",
        f"| {limits.max_prompt} characters |",
        f"| {limits.max_steps} |",
        f"| {limits.max_body // 2**20} MiB, {limits.max_upload // 2**20} MiB,",
        f"| {limits.max_input_pixels**0.5:g} x {limits.max_input_pixels**0.5:g} pixels,",
        f"{limits.keep_bytes // 2**20} MiB of each",
    ):
        assert text in told, text
    assert limits.keep_seconds == 600  # ten minutes
    assert limits.max_waiting_per_client == limits.max_waiting / 2


def test_the_qualities_of_the_guide_are_the_servers() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\S+) \| (\d+)\+1 \| (\d+)\+1 \|$", GUIDE, re.MULTILINE)
    told = {name.strip("`"): row[1:] for row in rows for name in row[0].split(", ")}
    assert set(told) == {*QUALITY, *OLDER_QUALITY, "auto"}
    for name, (share, twelve, four) in told.items():
        value = QUALITY[OLDER_QUALITY.get(name, name) if name != "auto" else "medium"]
        top, _, bottom = share.partition("/")
        assert value == int(top) / int(bottom or 1)
        assert [math.ceil(round(steps * value, 6)) for steps in (12, 4)] == [int(twelve), int(four)]


def test_the_guide_names_each_field_of_ours() -> None:
    ours = {about.http for about in ABOUT.values() if about.http} | {"loras", "native", "dry_run", "progress"}
    assert {f"`{name}`" for name in ours} <= set(re.findall(r"`\w+`", GUIDE))


def test_every_option_and_route_of_the_guide_exists(http: httpx.Client) -> None:
    shown = invoke(["serve", "--help"]).stdout
    missing = {
        each for each in re.findall(r"mrflow serve[^\n]*", GUIDE) for each in re.findall(r"--[a-z-]+", each)
    }
    missing |= set(re.findall(r"`(--[a-z-]+)", GUIDE))
    assert {each for each in missing if each not in shown} <= {"--clients"}
    paths = http.get("/openapi.json").json()["paths"]
    for verb, path in re.findall(r"`(POST|GET) (/[\w/]+)`", GUIDE):
        assert verb.lower() in paths[path]
    assert "mrflow_requests_total" in GUIDE
    metrics = http.get("/metrics").text
    for name in set(re.findall(r"`(mrflow_\w+)`", GUIDE)) - {"mrflow_replicas"}:  # which one server alone is not
        assert name in metrics, name


def test_what_uvicorn_refuses_itself_is_what_the_guide_says(server: Server) -> None:
    for raw in (
        b"garbage\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(server.host.split(":")) as line:
            line.sendall(raw)
            line.settimeout(30)
            assert line.recv(4096).startswith(b"HTTP/1.1 400 ")
    long = httpx.get(f"{server.url}/health", headers={"X": "a" * 100_000})
    assert long.status_code == 200  # no 431
