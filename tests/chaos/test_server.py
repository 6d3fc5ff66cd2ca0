"""Where there can be no small disk, the reason is given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.chaos.server import NoDisk, small_disk


def test_a_small_disk_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NoDisk, match="needs Linux, and this is darwin"), small_disk():
        pass


def test_a_small_disk_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoDisk, match="needs root"), small_disk():
        pass


def test_a_mount_that_fails_is_a_reason_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess(["mount"], 32, "", "mount: permission denied\n")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(NoDisk, match="failed: mount: permission denied"), small_disk():
        pass
