"""The completion scripts: all commands are in them, and the shell can read them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from longvit.cli import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in ("train", "init", "force", "site-check", "completion", "side-px", "recipe"):
        assert name in script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_parses_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + (
        "\nCOMP_WORDS=(longvit site-); COMP_CWORD=1; COMP_LINE='longvit site-'; COMP_POINT=13\n"
        'read -r -a entry <<< "$(complete -p longvit)"\n'
        'for i in "${!entry[@]}"; do [[ ${entry[i]} == -F ]] && f=${entry[i+1]}; done\n'
        '"$f" longvit site- longvit; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run([bash], input=script, capture_output=True, text=True, check=False)
    assert "site-check" in done.stdout.split(), done.stderr


@pytest.mark.parametrize("name", ["_longvit", "_cyclopts_longvit", "sourced"])
def test_zsh_completes_whatever_its_file_is_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (zsh := shutil.which("zsh")) is None:
        pytest.skip("zsh is not installed")
    assert main(["completion", "zsh"]) == 0
    (tmp_path / name).write_text(capsys.readouterr().out)
    script = (
        f"fpath=({tmp_path}); _arguments() {{ print completed }}; compdef() {{ print registered $1 $2 }}\n"
        f"source {tmp_path / name}; _cyclopts_longvit"
        if name == "sourced"
        else f"fpath=({tmp_path}); _arguments() {{ print completed }}\nautoload -Uz {name}; {name}; {name}"
    )
    done = subprocess.run([zsh, "-f", "-c", script], capture_output=True, text=True, check=False)
    wanted = ["registered _cyclopts_longvit longvit"] if name == "sourced" else ["completed"]
    assert done.stdout.splitlines() == [*wanted, "completed"], done.stderr


def test_fish_completes_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (fish := shutil.which("fish")) is None:
        pytest.skip("fish is not installed")
    assert main(["completion", "fish"]) == 0
    (tmp_path / "longvit.fish").write_text(capsys.readouterr().out)
    words = f"source {tmp_path}/longvit.fish; complete -C 'longvit site-'; complete -C 'longvit fetch --side-'"
    done = subprocess.run([fish, "-c", words], capture_output=True, text=True, check=False)
    assert [line.split("\t")[0] for line in done.stdout.split("\n") if line] == ["site-check", "--side-px"], done.stderr


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
