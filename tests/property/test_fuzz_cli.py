"""Every command of absurdctl with hostile words: an exit code of the documented ones, and a message."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from absurd.cli.main import SECTIONS, cli

COMMANDS = {str(command.name): command for commands in SECTIONS.values() for command in commands}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_does_not_exist_is_a_usage_error(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--no-such-option"])
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr
