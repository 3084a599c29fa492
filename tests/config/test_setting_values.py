"""What the values of settings become: hosts, origins, numbers by key, the ledger's place."""

from base64 import b64encode
from pathlib import Path

import pytest

from serve_app.config.key_numbers import daily_quotas_by_key, weights_by_key
from serve_app.config.network import machine_names
from serve_app.config.settings import VARIABLES, Settings
from serve_app.core.errors import SettingsError
from serve_app.core.service.ledger_place import LedgerDatabase, LedgerFile
from serve_app.core.service.webhooks import WebhookReceiver
from tests.support.blocked_imports import blocked_imports


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_where_others_may_call_the_names_of_this_machine_are_hosts(tmp_path: Path) -> None:
    listed = {"ALLOWED_HOSTS": "pictures.example"}
    assert Settings.read(listed, tmp_path).hosts == ("pictures.example",)
    for access in ({"API_KEYS": "k"}, {"ALLOW_ANONYMOUS": "1"}):
        hosts = Settings.read(listed | access, tmp_path).hosts
        assert hosts == ("pictures.example", *machine_names())


def test_paths_do_not_depend_on_where_a_replica_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_CHECKPOINT_DIR", "./models/sdxl")
    assert Settings.read().model_checkpoint_dir == tmp_path / "models" / "sdxl"


def test_origins_are_the_list_our_own_address_and_local_development(tmp_path: Path) -> None:
    settings = Settings.read(
        {
            "ALLOWED_ORIGINS": "https://a.example, https://b.example",
            "IMAGE_SERVICE_BASE_URL": "https://me.example/",
            "VITE_PORT": "5199",
        },
        tmp_path,
    )
    assert settings.origins[:3] == ("https://a.example", "https://b.example", "https://me.example")
    assert "http://localhost:5199" in settings.origins
    assert "http://127.0.0.1:3000" in settings.origins


def test_an_origin_is_reduced_to_what_browsers_send(tmp_path: Path) -> None:
    given = {
        "ALLOWED_ORIGINS": "https://A.example:443/,http://b.example:81/page,https://münchen.de",
        "IMAGE_SERVICE_BASE_URL": "http://[fd00::1]:4000/images/",
        "ALLOWED_HOSTS": "pictures.example",
    }
    settings = Settings.read(given, tmp_path)
    assert settings.origins[:4] == (
        "https://a.example",
        "http://b.example:81",
        "https://xn--mnchen-3ya.de",
        "http://[fd00::1]:4000",
    )
    assert settings.hosts == ("pictures.example", "[fd00::1]")
    assert settings.image_service_base_url == "http://[fd00::1]:4000/images"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Pictures.example", "pictures.example"),
        ("pictures.example:4000", "pictures.example"),
        ("https://pictures.example/", "pictures.example"),
        ("https://münchen.de", "xn--mnchen-3ya.de"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("[fd00::1]:4000", "[fd00::1]"),
        ("*.example.org", "*.example.org"),
        ("*", "*"),
    ],
)
def test_a_host_is_reduced_to_its_name_in_the_host_header(
    tmp_path: Path, text: str, name: str
) -> None:
    assert Settings.read({"ALLOWED_HOSTS": text}, tmp_path).hosts == (name,)
    if "*" not in text and "://" in text:
        assert Settings.read({"IMAGE_SERVICE_BASE_URL": text}, tmp_path).hosts == (name,)


@pytest.mark.parametrize("text", ["a.*.example", "**", "ftp://a.example", "a@b", "a b:x"])
def test_a_text_that_is_not_a_host_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"ALLOWED_HOSTS=.* must be host names such as"):
        Settings.read({"ALLOWED_HOSTS": text}, tmp_path)


@pytest.mark.parametrize(
    "origin", ["*", "a.example", "ftp://a.example", "https://", "https://a@b", "https://a:9x"]
)
def test_a_text_that_is_not_an_origin_is_refused(tmp_path: Path, origin: str) -> None:
    for name in ("ALLOWED_ORIGINS", "IMAGE_SERVICE_BASE_URL"):
        with pytest.raises(SettingsError, match=f"{name}=.*must"):
            Settings.read({name: origin}, tmp_path)


def test_weights_of_keys_stand_in_the_order_of_the_keys(tmp_path: Path) -> None:
    settings = Settings.read({"API_KEYS": "one,two", "KEY_WEIGHTS": "3, 0.5"}, tmp_path)
    assert weights_by_key(settings) == {"one": 3.0, "two": 0.5}
    assert weights_by_key(Settings.read({"API_KEYS": "one,two"}, tmp_path)) == {}


def test_daily_quotas_of_keys_stand_in_the_order_of_the_keys(tmp_path: Path) -> None:
    given = {"API_KEYS": "one,two", "KEY_DAILY_MPSTEPS": "5000, 0"}
    assert daily_quotas_by_key(Settings.read(given, tmp_path)) == {"one": 5000.0, "two": 0.0}
    for quotas, problem in (("5000", "one number for each key"), ("-1,2", "must be at least 0")):
        given["KEY_DAILY_MPSTEPS"] = quotas
        with pytest.raises(SettingsError, match=problem) as refused:
            daily_quotas_by_key(Settings.read(given, tmp_path))
        assert refused.value.variable == "KEY_DAILY_MPSTEPS"


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("3", "must have one number for each key: API_KEYS has 2, this has 1"),
        ("0,1", r"must be at least 0\.01"),
        ("1,101", "must be at most 100"),
        ("one:3,two:1", "must be a number"),
    ],
)
def test_weights_that_do_not_fit_the_keys_are_refused(
    tmp_path: Path, weights: str, problem: str
) -> None:
    given = {"API_KEYS": "secret-a,secret-b", "KEY_WEIGHTS": weights}
    with pytest.raises(SettingsError, match=problem) as refused:
        weights_by_key(Settings.read(given, tmp_path))
    assert refused.value.variable == "KEY_WEIGHTS"
    assert "secret" not in str(refused.value)


def test_the_ledger_is_in_a_file_unless_there_is_a_database(tmp_path: Path) -> None:
    file = {"LEDGER_FILE": str(tmp_path / "l"), "LEDGER_ON_DAMAGE": "replace"}
    assert Settings.read(file).ledger == LedgerFile(tmp_path / "l", replaces_damaged=True)
    url = "postgresql://aura:s3cret@db.example/pictures"
    settings = Settings.read({**file, "LEDGER_URL": url, "LEDGER_SCHEMA": "pictures"})
    assert settings.ledger == LedgerDatabase(url, "pictures")
    assert "s3cret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    "url",
    ["mysql://u:s3cret@h/d", "h/d?password=s3cret", "postgresql://u:s3cret@h:port/d", "s3cret"],
)
def test_an_illegal_address_of_a_database_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="LEDGER_URL must be an address such as") as error:
        Settings.read({"LEDGER_URL": url})
    assert "s3cret" not in str(error.value)
    assert error.value.variable == "LEDGER_URL"


def test_a_schema_is_a_plain_name() -> None:
    with pytest.raises(SettingsError, match=r"LEDGER_SCHEMA=.* must be a plain name"):
        Settings.read({"LEDGER_SCHEMA": "a; DROP TABLE jobs"})


SECRET, OTHER = b"a" * 24, b"b" * 64


def whsec(secret: bytes) -> str:
    return "whsec_" + b64encode(secret).decode()


def test_receivers_of_webhooks_stand_with_their_secrets(tmp_path: Path) -> None:
    hook, local = "https://a.example/hook?of=aura", "http://127.0.0.1:8000/"
    given = f"{hook}={whsec(SECRET)}, {local}={whsec(OTHER)}, {hook}={whsec(OTHER)}"
    settings = Settings.read({"WEBHOOK_URLS": given}, tmp_path)
    assert settings.webhook_urls == (
        WebhookReceiver(hook, (SECRET, OTHER)),  # while they are exchanged
        WebhookReceiver(local, (OTHER,)),
    )
    assert "whsec" not in repr(settings)
    assert str(SECRET) not in repr(settings)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("https://a.example/hook", "must be addresses, each with its secret"),
        ("https://a.example/hook=secret", "must be addresses, each with its secret"),
        (f"http://a.example/hook={whsec(SECRET)}", "https addresses, or http ones of this machine"),
        (f"https://a:b@a.example/={whsec(SECRET)}", "without a user"),
        (f"https://a.example/#part={whsec(SECRET)}", "https addresses"),
        (f"ftp://localhost/={whsec(SECRET)}", "https addresses"),
        (f"https://a.example/#={whsec(SECRET)}", "https addresses"),
        (f"https://a.example/a b={whsec(SECRET)}", "https addresses"),
        (f"https://a.example/\x7f={whsec(SECRET)}", "https addresses"),
        (f"https://*.a.example/={whsec(SECRET)}", "https addresses"),
        ("https://a.example/=whsec_no", "secrets of 24 to 64 bytes"),
        (f"https://a.example/={whsec(b'a' * 23)}", "secrets of 24 to 64 bytes"),
        (f"https://a.example/={whsec(b'a' * 65)}", "secrets of 24 to 64 bytes"),
        (f"{whsec(SECRET)}", "must be addresses, each with its secret"),
    ],
)
def test_a_receiver_that_is_not_safe_is_refused_and_its_secret_not_repeated(
    tmp_path: Path, text: str, problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        Settings.read({"WEBHOOK_URLS": text}, tmp_path)
    assert refused.value.variable == "WEBHOOK_URLS"
    assert "a.example" not in str(refused.value)
    assert text.rpartition("whsec_")[2] not in str(refused.value) or "whsec_" not in text


def test_assistants_are_let_in_only_where_their_protocol_is_installed(tmp_path: Path) -> None:
    assert not Settings.read({}, tmp_path).mcp_api
    assert Settings.read({"MCP_API": "1"}, tmp_path).mcp_api
    with blocked_imports("mcp"):
        assert not Settings.read({"MCP_API": "0"}, tmp_path).mcp_api
        with pytest.raises(SettingsError, match=r"pip install 'aura-serve\[mcp\]'"):
            Settings.read({"MCP_API": "1"}, tmp_path)
