"""`python -m absurd.cli` is `absurdctl`."""

from __future__ import annotations

from absurd.cli.main import main

if __name__ == "__main__":
    main()
