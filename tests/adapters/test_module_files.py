"""`hyperha module`: what it writes can be loaded, what cannot be loaded is not written."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperha.cli.main import app
from hyperha.config import Home, load_all
from hyperha.errors import ConfigError, HyperhaError, NotFoundError, UsageError
from tests.adapters.test_config import MODULE, empty_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return empty_home(tmp_path)


def module(home: Home, *arguments: str | Path) -> str:
    command = ["--home", str(home.config.parent), "module", *map(str, arguments)]
    done = CliRunner().invoke(app, command)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_what_is_added_loads(home: Home, tmp_path: Path) -> None:
    folder, command = tmp_path / 'a "folder"', "./serve --name 'x\\y' \"z\""
    module(home, "add", "web", "--folder", folder, "--command", command)
    found = load_all(home).modules["web"]
    assert (found.folder, found.driver_options["command"]) == (str(folder), command)
    assert folder.is_dir()
    assert "is right" in module(home, "check", "web")


def test_a_module_that_does_not_fit_in_is_not_written(home: Home, tmp_path: Path) -> None:
    module(home, "add", "web", "--folder", tmp_path / "web", "--command", "true")
    inner = tmp_path / "web" / "inner"
    for folder, says in ((inner, "of web on node1"), (home.state, "of node1 itself")):
        with pytest.raises(ConfigError, match=says):
            module(home, "add", "shop", "--folder", folder, "--command", "true")
    with pytest.raises(ConfigError, match="number 1 is also web's"):
        module(home, "add", "shop", "--folder", "/srv/x", "--command", "true", "--number", "1")
    assert not inner.exists()
    assert list(load_all(home).modules) == ["web"]


def test_check_sees_what_the_files_say_together(home: Home, tmp_path: Path) -> None:
    module(home, "add", "web", "--folder", tmp_path / "web", "--command", "true")
    text = home.module_file("web").read_text().replace(str(tmp_path / "web"), str(home.log))
    home.module_file("web").write_text(text)
    with pytest.raises(ConfigError, match="of node1 itself"):
        module(home, "check", "web")


@pytest.mark.parametrize(
    ("name", "folder", "template", "says"),
    [
        ("APP", "/srv/other", MODULE, "the template's folder is /srv/hyperha/APP"),
        ("../APP", "/srv/hyperha/APP", MODULE, "'../APP' is not a module name"),
        ("WEB", "/srv/hyperha/APP", MODULE, "Call the file APP.toml"),
    ],
    ids=["other folder", "name of a path", "other name"],
)
def test_templates_that_do_not_fit(
    home: Home, tmp_path: Path, name: str, folder: str, template: str, says: str
) -> None:
    path = tmp_path / "template.toml"
    path.write_text(template)
    with pytest.raises(UsageError) as caught:
        module(home, "add", name, "--folder", folder, "--template", path)
    assert says in str(caught.value)
    assert load_all(home).modules == {}


def test_a_template_that_is_not_there(home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.toml does not exist\. Name the path"):
        module(home, "add", "APP", "--folder", "/srv/x", "--template", tmp_path / "none.toml")


def test_a_folder_that_cannot_be_made_is_named(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HyperhaError, match="file/web cannot be written: Not a directory"):
        module(home, "add", "web", "--folder", tmp_path / "file" / "web", "--command", "true")
    assert load_all(home).modules == {}
