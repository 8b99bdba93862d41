"""Batches that survive anything: rows of prompts in, a folder of pictures out, once each, whatever is killed.

    rows -> tasks -> (text ahead) -> drafts -> finished -> (encode, write, sync) -> manifest.jsonl

A picture's line is written once the picture is safe, so the manifest is the truth: whatever is not in it, or is
but does not match its hash, is made by the next run. What a picture looks like depends on its row alone.
"""
