"""Helping hands: completion for shells, a skill file for coding assistants."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from absurd.cli import output
from absurd.cli.options import Command

_TARGETS = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc",
    "fish": "~/.config/fish/completions/absurdctl.fish",
}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(list(_TARGETS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of bash, zsh or fish.

    It completes commands, options and the names of queues.

    \b
    Examples:
      absurdctl completion bash >> ~/.bashrc
      absurdctl completion zsh >> ~/.zshrc
      absurdctl completion fish > ~/.config/fish/completions/absurdctl.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    output.line(made(ctx.find_root().command, {}, "absurdctl", "_ABSURDCTL_COMPLETE").source().strip())


@click.command("install-skill", cls=Command)
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=Path(".agents/skills"))
@click.option("--force", is_flag=True, help="Replace the one that is there.")
def install_skill(directory: Path, force: bool) -> int:
    """Write a skill file for coding assistants.

    It goes to absurd/SKILL.md below DIR (default .agents/skills): what absurd is, its API, its command line.

    \b
    Examples:
      absurdctl install-skill
      absurdctl install-skill docs/skills --force
    """
    file = directory / "absurd" / "SKILL.md"
    if file.exists() and not force:
        output.note(f"Error: {file} exists already\nHint: replace it with --force")
        return 4
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((resources.files("absurd.cli") / "skill.md").read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {file}: {error.strerror}") from error
    output.line(f"Skill installed to {file}")
    return 0
