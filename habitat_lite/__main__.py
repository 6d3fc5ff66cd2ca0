"""`python -m habitat_lite run`."""

from __future__ import annotations

from habitat_lite.main import main

main()
