"""The SDK and worker, written by hand; `absurd._sync` is generated from these files by tools/unasync.py."""
