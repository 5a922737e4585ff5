"""`taskbridge completion`: what a shell runs so that it completes commands and options."""

from __future__ import annotations

from argparse import Namespace

from taskbridge import Bridge, NotInstalledError
from taskbridge.cli.command import Output, argument, command


@command(
    "completion",
    "let your shell complete commands and options",
    argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"),
)
def completion(bridge: Bridge, arguments: Namespace) -> Output:
    """Print what lets a shell complete the commands and options of taskbridge, for the place where it looks for that.

    taskbridge completion bash > ~/.local/share/bash-completion/completions/taskbridge
    taskbridge completion zsh > "${fpath[1]}/_taskbridge"
    taskbridge completion fish > ~/.config/fish/completions/taskbridge.fish
    """
    try:
        from argcomplete.shell_integration import shellcode  # here, for it is an extra
    except ModuleNotFoundError as exc:
        raise NotInstalledError("argcomplete, which completes commands,", "completion") from exc
    return Output(text=shellcode(["taskbridge"], shell=arguments.shell))
