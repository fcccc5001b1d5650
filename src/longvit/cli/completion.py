"""`longvit completion SHELL`"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

_RUN_ZSH = """
if [[ $funcstack[1] == (_longvit|_cyclopts_longvit) ]]; then
  _cyclopts_longvit "$@"
else
  compdef _cyclopts_longvit longvit
fi
"""
"""End of the zsh script. Without it a file that is not named after its function completes nothing."""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Shell that reads the script.")],
    /,
) -> int:
    """Print the completion script of a shell: commands, options and their values at the Tab key.

    No file is changed. Run the command again after an update of longvit.

    **Examples**

    ```
    longvit completion bash > ~/.local/share/bash-completion/completions/longvit
    longvit completion zsh > ~/.zfunc/_longvit
    longvit completion fish > ~/.config/fish/completions/longvit.fish
    ```

    zsh needs `fpath+=~/.zfunc` before `compinit` in `~/.zshrc`.
    """
    from longvit.cli.commands import app

    print(app.generate_completion(prog_name="longvit", shell=shell) + (_RUN_ZSH if shell == "zsh" else ""))
    return 0
