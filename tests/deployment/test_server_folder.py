"""`fedit server init` and `renew`: what they write, keep and refuse."""

import configparser
import subprocess
import tomllib
from pathlib import Path

import pytest
from deployment.conftest import edit

from fedit_app.deployment.certificates import issue_server_certificate, make_authority
from fedit_app.deployment.server_folder import ServerFolder, ServerSettings
from fedit_app.deployment.server_setup import init_server
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import tool


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.fixture
def given(tmp_path) -> dict[str, Path]:
    """Files of somebody else's authority, and a server certificate for named.example.org."""
    authority = make_authority("Example authority")
    made = issue_server_certificate(authority, ["named.example.org"])
    return {
        "ca_cert": write(tmp_path / "their-ca.crt", authority.public),
        "ca_key": write(tmp_path / "their-ca.key", authority.private),
        "cert": write(tmp_path / "their.crt", made.public),
        "key": write(tmp_path / "their.key", made.private),
    }


@pytest.mark.parametrize(
    ("hosts", "bind"),
    [
        ((), "127.0.0.1"),
        (("127.0.0.1", "localhost"), "127.0.0.1"),
        (("127.0.0.1", "fedit.example.org"), "0.0.0.0"),
    ],
)
def test_a_server_for_this_machine_alone_does_not_listen_to_others(tmp_path, hosts, bind):
    assert init_server(tmp_path / "server", hosts).settings.bind == bind


def test_init_writes_a_folder_for_its_owner_alone(fedit, tmp_path):
    folder = tmp_path / "new" / "our server"
    status, out, _ = fedit("server", "init", folder, "--host", "fedit.example.org")

    assert status == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("tls/ca.key", "tls/server.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    server = ServerFolder.open(folder)
    assert server.settings == ServerSettings(hosts=("fedit.example.org",), bind="0.0.0.0")
    assert server.certificate_problems() == []
    for told in (
        f"fedit server start '{folder}'\n",
        str(server.ca_cert),
        "fedit.example.org:8000",
        "register",
    ):
        assert told in out


def test_every_setting_is_explained(server):
    lines = (server.folder / "server.toml").read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if line and line[0] not in "#"]

    assert len(keys) == len(vars(ServerSettings()))
    assert all(lines[number - 1].startswith("# ") for number in keys)


def test_without_a_host_it_listens_on_this_machine_alone(fedit, tmp_path):
    _, out, _ = fedit("server", "init", tmp_path / "server")

    settings = ServerFolder.open(tmp_path / "server").settings
    assert (settings.hosts, settings.bind) == (("localhost",), "127.0.0.1")
    assert "this machine alone" in out


def test_start_script_and_unit(server):
    script = server.folder / "start.sh"
    assert script.stat().st_mode & 0o100
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert f"{tool('fedit')} server start {server.folder}" in script.read_text()

    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(server.folder / "fedit-server.service")
    assert unit["Service"]["ExecStart"] == f'"{tool("fedit")}" server start "{server.folder}"'
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_paths_with_odd_characters(tmp_path):
    folder = tmp_path / "it's 100% $HOME"
    init_server(folder)

    text = (folder / "fedit-server.service").read_text()
    assert "100%% $$HOME" in text
    echoed = (folder / "start.sh").read_text().replace("exec ", "printf '%s|' ")
    result = subprocess.run(["sh", "-c", echoed], capture_output=True, text=True, check=True)
    assert result.stdout == f"{tool('fedit')}|server|start|{folder}|"


def test_nothing_is_overwritten(fedit, server):
    before = {path: path.read_bytes() for path in server.folder.rglob("*") if path.is_file()}
    status, _, err = fedit("server", "init", server.folder, "--host", "other.example.org")

    assert status == 2
    assert "is already a server's folder" in err
    assert {p: p.read_bytes() for p in server.folder.rglob("*") if p.is_file()} == before


def test_keys_of_an_interrupted_init_are_kept(server):
    keys = {name: (server.folder / "tls" / name).read_bytes() for name in ("ca.key", "server.key")}
    (server.folder / "server.toml").unlink()
    again = init_server(server.folder, ["fedit.example.org", "192.0.2.7"])

    assert {n: (server.folder / "tls" / n).read_bytes() for n in keys} == keys
    assert again.certificate_problems() == []


def test_a_given_authority_signs(fedit, tmp_path, given):
    folder = tmp_path / "server"
    status, *_ = fedit(
        *("server", "init", folder, "--host", "a.example.org"),
        *("--ca-cert", given["ca_cert"], "--ca-key", given["ca_key"]),
    )

    assert status == 0
    server = ServerFolder.open(folder)
    assert server.ca_cert == given["ca_cert"]
    assert not (folder / "tls" / "ca.key").exists()
    assert server.certificate_problems() == []


def test_a_given_certificate_is_used_where_it_lies(fedit, tmp_path, given):
    folder = tmp_path / "server"
    files = ["--ca-cert", given["ca_cert"], "--cert", given["cert"], "--key", given["key"]]
    status, *_ = fedit("server", "init", folder, "--host", "named.example.org", *files)

    assert status == 0
    server = ServerFolder.open(folder)
    assert (server.cert, server.cert_key) == (given["cert"], given["key"])
    assert list((folder / "tls").iterdir()) == []
    status, _, err = fedit("server", "renew", folder)
    assert status == 2 and "ca-key names no file" in err


def test_a_certificate_without_a_loopback_address(tmp_path, given, monkeypatch):
    """The SuperLink's own processes reach it over TLS, too: by a name that it has."""
    monkeypatch.setattr("fedit_app.deployment.certificates.LOOPBACK", ())
    authority = make_authority("Example authority")
    made = issue_server_certificate(authority, ["named.example.org"])
    for name, content in (
        ("ca_cert", authority.public),
        ("cert", made.public),
        ("key", made.private),
    ):
        given[name].write_bytes(content)
    files = (given["ca_cert"], None, given["cert"], given["key"])
    server = init_server(tmp_path / "server", ["named.example.org"], 8000, *files)
    assert server.settings.bind == "named.example.org"

    edit(server, 'bind = "named.example.org"', 'bind = "0.0.0.0"')
    (problem,) = ServerFolder.open(server.folder).certificate_problems()
    assert "at 127.0.0.1" in problem and "set bind to a name" in problem


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "https://fedit.example.org"], "neither a host name nor an IP address"),
        (["--host", "fedit.example.org:8000"], "neither a host name nor an IP address"),
        (["--host", "x-.org"], "neither a host name nor an IP address"),
        (["--port", "0"], "--port 0: must be between 1 and 65535"),
        (["--ca-cert", "ca_cert"], "give --ca-cert and --ca-key"),
        (["--cert", "cert", "--key", "key"], "give --ca-cert and --ca-key"),
        (["--ca-cert", "ca_cert", "--ca-key", "key"], "does not belong to the CA certificate"),
        (["--ca-cert", "ca_cert", "--ca-key", "missing"], "missing: no such file"),
        (
            ["--ca-cert", "ca_cert", "--cert", "cert", "--key", "key"],
            "say with --host by which of its names",
        ),
        (
            ["--host", "b.org", "--ca-cert", "ca_cert", "--cert", "cert", "--key", "key"],
            "at b.org: Hostname mismatch",
        ),
    ],
)
def test_what_init_refuses(fedit, tmp_path, given, arguments, told):
    named = [str(given.get(argument, argument)) for argument in arguments]
    status, _, err = fedit("server", "init", tmp_path / "server", *(a for a in named if a))

    assert status == 2
    assert told in err
    assert not (tmp_path / "server" / "server.toml").exists()


def test_renew_makes_a_certificate_for_the_hosts_of_today(fedit, server):
    edit(server, '"192.0.2.7"', '"later.example.org"')
    before = server.cert.read_bytes(), server.cert_key.read_bytes(), server.ca_cert.read_bytes()
    assert any("later" in p for p in ServerFolder.open(server.folder).certificate_problems())
    status, out, _ = fedit("server", "renew", server.folder)

    assert status == 0
    assert "later.example.org" in out
    after = server.cert.read_bytes(), server.cert_key.read_bytes(), server.ca_cert.read_bytes()
    assert after[0] != before[0] and after[1] != before[1] and after[2] == before[2]
    assert server.cert_key.stat().st_mode & 0o777 == 0o600
    assert ServerFolder.open(server.folder).certificate_problems() == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("port = 8700", "port = 70000", "port = 70000 must be an integer from 1 to 65535"),
        ("port = 8700", "prot = 8700", "unknown key 'prot', did you mean 'port'"),
        ("port = 8700", "port = ", "not TOML"),
        ('bind = "0.0.0.0"', 'bind = "all"  x', "not TOML"),
        ('bind = "0.0.0.0"', 'bind = "*"', "'*' is neither a host name nor"),
        ("control-from = []", 'control-from = ["10.0.0.0/99"]', "control-from:"),
        ("control-from = []", 'control-from = "10.0.0.1"', "must be a list of strings"),
        ('hosts = ["fedit.example.org", "192.0.2.7"]', "hosts = []", "hosts is empty"),
    ],
)
def test_a_wrong_server_file(server, old, new, told):
    edit(server, old, new)
    with pytest.raises(FedEditError) as caught:
        ServerFolder.open(server.folder)
    assert told in str(caught.value) and "server.toml" in str(caught.value)


def test_a_folder_that_is_none(fedit, tmp_path):
    for command in ("start", "nodes", "renew"):
        status, _, err = fedit("server", command, tmp_path)
        assert status == 2 and "no server's folder" in err


def test_addresses(server):
    assert server.addresses == ["fedit.example.org:8700", "192.0.2.7:8700"]
    assert server.local_address == "127.0.0.1:8700"
    edit(server, 'bind = "0.0.0.0"', 'bind = "::"')
    assert ServerFolder.open(server.folder).local_address == "[::1]:8700"


def test_the_file_is_toml_with_the_settings(server):
    values = tomllib.loads((server.folder / "server.toml").read_text(encoding="utf-8"))
    assert values["hosts"] == ["fedit.example.org", "192.0.2.7"]
    assert values["port"] == 8700
