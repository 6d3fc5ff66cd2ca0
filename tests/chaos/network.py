"""The network between workers, producer and server: the proxy, at the other end of a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.chaos.fleet import ROOT
from tests.chaos.plan import WORKERS

PRODUCER = "producer"


class Network:
    """A proxy process; `told` hears of each thing it did."""

    def __init__(self, target: str, seed: int, told: Callable[[dict[str, Any]], None]) -> None:
        names = [*(f"w{slot}" for slot in range(WORKERS)), PRODUCER]
        settings = json.dumps({"target": target, "names": names, "seed": seed})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.proxy", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self._told = told
        self.counts: Counter[str] = Counter()
        self.ports: dict[str, int] = json.loads(self._line())["what"]
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def url(self, name: str) -> str:
        return (
            f"postgresql://postgres@127.0.0.1:{self.ports[name]}/absurd"
            f"?sslmode=disable&gssencmode=disable&connect_timeout=5&application_name={name}"
        )

    def order(self, do: str, **how: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **how}) + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _listen(self) -> None:
        while line := self._line():
            told = json.loads(line)
            self.counts[told["did"]] += 1
            self._told(told)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
