"""Serving: an OpenAI-compatible images API and a page, over one scheduler that batches across requests.

`mrflow.server.app.create_app` makes the application; `mrflow serve` runs it.
"""
