"""The help of every command, what shells complete, and how the package is cited."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyoptim as po
from pyoptim import cli

PARSER = cli._parser(whole=True)
COMMANDS = next(a for a in PARSER._actions if isinstance(a, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_for_users(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*command.split(), "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"``|None|False|SUPPRESS|\b_\w|[()]\(|\(\d+, ?\d+\)|pyoptim\.\w+\.\w+", text)
    assert text.startswith(f"usage: pyoptim{' ' * bool(command)}{command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_once(command):
    for action in COMMANDS[command]._actions:
        text = COMMANDS[command]._get_formatter()._expand_help(action)
        assert action.help, action
        assert text.count("(default: ") <= 1, text
        assert "(default: " not in text or text.count("default") == 1, text
        if action.default == 0 and action.default is not False:
            assert "(default: 0)" in text, text


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_are_refused_in_words(command):
    parsers = [a for a in COMMANDS[command]._actions if a.type not in (None, int, float)]
    for action in parsers:
        with pytest.raises(argparse.ArgumentError) as refused:
            COMMANDS[command]._get_value(action, "wrong")
        assert "'wrong'" in str(refused.value)
        assert "invalid" not in str(refused.value)  # argparse's own words, which name the function


def test_shells_complete_commands_and_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    with pytest.raises(SystemExit) as exit:
        cli.main(["--print-completion", "bash"])
    assert exit.value.code == 0
    script = capsys.readouterr().out

    def completions(*words):
        *_, last = words
        code = f"""{script}
COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
_shtab_pyoptim {words[0]} '{last}'
echo "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completions("pyoptim", "tr") == ["train"]
    assert completions("pyoptim", "train", "--ba") == ["--batch-size", "--backend"]
    assert completions("pyoptim", "bench", "--str") == ["--strict"]
    (tmp_path / "model.safetensors").write_text("")
    assert completions("pyoptim", "check", "--model", "mod") == ["model.safetensors"]


def test_completion_names_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as exit:
        cli.main(["--print-completion", "bash"])
    assert exit.value.code == 2
    assert re.search(r"needs shtab.*pyoptim\[completion\]", capsys.readouterr().err)


def test_citations_agree():
    entry = dict(re.findall(r"^  (\w+) *= \{(.*)\}", po.cite(), re.MULTILINE))
    assert entry["version"] == po.__version__
    assert po.cite().count("{") == po.cite().count("}")
    file = Path(__file__).resolve().parents[1] / ".github" / "CITATION.cff"
    if not file.is_file():
        pytest.skip("needs the checkout")
    told = dict(re.findall(r'^(?:  - )?([\w-]+): "?(.*?)"?$', file.read_text("utf-8"), re.MULTILINE))
    assert {key: told[key] for key in ("title", "version", "license")} == {
        key: entry[key] for key in ("title", "version", "license")
    }
    assert f"{{{told['name']}}}" == entry["author"]
