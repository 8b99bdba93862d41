"""What the server shows to people: the login form and the description of the API."""

from __future__ import annotations

from mrflow.server.information import docs_page, login_page

HOSTILE = "<script>alert('&')</script>"


def test_the_login_form_escapes_what_it_is_given() -> None:
    page = login_page(HOSTILE)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)" in page
    assert 'role="alert"' not in login_page()


def test_the_description_escapes_what_it_is_given() -> None:
    field = {"description": HOSTILE, "anyOf": [{"type": HOSTILE}, {"type": "null"}]}
    body = {"properties": {HOSTILE: field}, "required": [HOSTILE]}
    content = {HOSTILE: {"schema": {"$ref": "#/components/schemas/Body"}}, "text": {"schema": body}}
    route = {"description": HOSTILE, "requestBody": {"content": content}}
    page = docs_page({"paths": {f"/{HOSTILE}": {"post": route}}, "components": {"schemas": {"Body": body}}})
    assert "<script" not in page
    assert page.count("(needed)") == 2
