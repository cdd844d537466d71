"""Configuration: defaults, files, the environment, and clear errors for everything else."""

import os
from pathlib import Path

import pytest

from dpmesh import config
from dpmesh.accounting import AMOUNT
from dpmesh.config import load, seconds
from dpmesh.errors import BudgetExhaustedError, ConfigError
from dpmesh.ledger import Ledger, open_store
from dpmesh.ledger.budget import Match

BUDGET = {"name": "device-daily", "epsilon": 8.0, "delta": 1e-6}
QUOTA = {"name": "partner", "under": "device-daily", "epsilon": 2.0}


def test_defaults_need_no_file():
    settings = load(None, {})
    assert settings.mode == "enforce"
    assert settings.ledger.url == f"sqlite:///{Path.cwd()}/.dpmesh/ledger.db"
    assert [(budget.key, budget.epsilon) for budget in settings.budget] == [("unit", 8.0), ("global", 8.0)]


def test_a_file_and_the_environment_over_it(tmp_path):
    file = tmp_path / "dpmesh.toml"
    file.write_text(
        'mode = "observe"\n[ledger]\nurl = "memory:"\n[policy]\nfile = "p.yaml"\n'
        '[[budget]]\nname = "device-daily"\nepsilon = 8.0\ndelta = 1e-6\nwindow = "1h"\n'
    )
    environment = {
        "DPMESH_MODE": "enforce",
        "DPMESH_LEDGER_URL": "sqlite:///x.db",
        "DPMESH_GRPC_PASS_METADATA": "a, b",
        "DPMESH_GRPC_PASS_STATUS_DETAILS": "true",
        "DPMESH_GRPC_PASS_UNJUDGED": "/acme.Legacy/*, /acme.Other/Call",
        "DPMESH_BUDGET_DEVICE_DAILY_EPSILON": "4",
        "HOME": "/",
    }
    settings = load(file, environment)
    assert settings.mode == "enforce"
    assert settings.ledger.url == f"sqlite:///{tmp_path}/x.db"
    assert settings.policy.file == str(tmp_path / "p.yaml")
    assert settings.grpc == config.GrpcConfig(
        pass_metadata=("a", "b"),
        pass_status_details=True,
        pass_unjudged=("/acme.Legacy/*", "/acme.Other/Call"),
    )
    assert (settings.budget[0].epsilon, settings.budget[0].window) == (4.0, "1h")


def test_the_environment_alone_changes_a_default_budget():
    assert load(None, {"DPMESH_BUDGET_UNIT_DAILY_EPSILON": "2"}).budget[0].epsilon == 2.0


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"grpc": {"pass_metadata": ["page", "Baggage"]}},
            ["grpc.pass_metadata", "'Baggage'", "allow a key"],
        ),
        ({"ledgr": {}}, ["ledgr", "no such key", "allowed", "ledger"]),
        ({"ledger": {"ulr": "memory:"}}, ["ledger.ulr", "no such key", "allowed: url"]),
        ({"mode": "of"}, ["mode", "'of'", "enforce, observe"]),
        ({"budget": [{**BUDGET, "epsilom": 1}]}, ["budget[0].epsilom", "1", "allowed", "epsilon"]),
        ({"budget": [{**BUDGET, "epsilon": "8"}]}, ["budget[0].epsilon", "'8'"]),
        ({"budget": [{**BUDGET, "key": "device"}]}, ["budget[0].key", "'device'", "unit"]),
        (
            {"budget": [{**BUDGET, "on_exhausted": "repeat"}]},
            ["budget[0].on_exhausted", "'repeat'", "reject"],
        ),
        ({"budget": [{"epsilon": 8.0}]}, ["budget[0].name is missing"]),
        ({"budget": [BUDGET, BUDGET]}, ["device-daily", "two budgets"]),
        ({"budget": [{**BUDGET, "name": "a b"}]}, ["budget.name", "'a b'"]),
        (
            {"budget": [{**BUDGET, "directions": ["request", "both"]}]},
            ["budget[0].directions[1]", "'both'", "allowed: request, response"],
        ),
        ({"budget": [{**BUDGET, "methods": "/a.B/C"}]}, ["budget[0].methods", "'/a.B/C'", "array"]),
        ({"budget": [BUDGET], "quota": [{**QUOTA, "window": "1h"}]}, ["quota[0].window", "allowed", "under"]),
        ({"budget": [BUDGET], "quota": [{**QUOTA, "epsilon": "2"}]}, ["quota[0].epsilon", "'2'"]),
        (
            {"budget": [BUDGET], "quota": [{**QUOTA, "on_exhausted": "repeat"}]},
            ["quota[0].on_exhausted", "'repeat'", "allowed: reject, suppress, replay"],
        ),
        ({"budget": [BUDGET], "quota": [{"name": "q", "epsilon": 1.0}]}, ["quota[0].under is missing"]),
        (
            {"budget": [BUDGET], "quota": [{**QUOTA, "consumers": []}]},
            ["quota[0].consumers", "[]", "length >= 1"],
        ),
        ({"budget": [{"name": "daily", "epsilon": 8.0}]}, ["configuration: budget 'daily': delta", "'pure'"]),
        ({"budget": [{**BUDGET, "epsilon": -1.0}]}, ["configuration: budget 'device-daily': epsilon"]),
        (
            {"budget": [{**BUDGET, "window": "1day"}]},
            ["configuration: budget 'device-daily': window", "'1day'"],
        ),
        ({"budget": [{**BUDGET, "methods": ["a.B"]}]}, ["configuration: budget", "'a.B'", "'device-daily'"]),
        ({"budget": [{**BUDGET, "a.b": 1}]}, ["budget[0].a.b", "1", "no such key", "epsilon"]),
        (
            {"budget": [BUDGET], "quota": [{**QUOTA, "under": "daily"}]},
            ["quota.under", "'daily'", "allowed: device-daily"],
        ),
        (
            {"budget": [BUDGET], "quota": [QUOTA, {**QUOTA, "name": "q", "under": "partner"}]},
            ["quota.under", "'partner'", "'q'", "allowed: device-daily"],
        ),
        ({"budget": [], "quota": [QUOTA]}, ["quota.under", "there is no budget"]),
        ({"budget": [BUDGET], "quota": [QUOTA, QUOTA]}, ["quota.name", "'partner'", "two quotas"]),
        (
            {"budget": [BUDGET], "quota": [{**QUOTA, "name": "device-daily"}]},
            ["'device-daily'", "a budget and a quota"],
        ),
        ({"budget": [BUDGET], "quota": [{**QUOTA, "name": "a/b"}]}, ["quota.name", "'a/b'"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(document, words):
    with pytest.raises(ConfigError) as caught:
        load(document, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


SECRET_URL = "postgresql://scott:hunter2@db/x"


@pytest.mark.parametrize(
    ("document", "environment", "words"),
    [
        ({"ledger": {"uri": SECRET_URL}}, {}, ["ledger.uri", "allowed: url"]),
        ({"ledger": {"password": "hunter2", "url": "memory:"}}, {}, ["ledger.password", "allowed: url"]),
        ({"ledger": {"url": [SECRET_URL]}}, {}, ["ledger.url", "'postgresql://***@db/x'"]),
        ({"ledger": {"url": {"scott": SECRET_URL, "password": "hunter2"}}}, {}, ["ledger.url"]),
        ({"ledger": SECRET_URL}, {}, ["ledger = 'postgresql://***@db/x'"]),
        ({"ledger": "host=db user=scott password=hunter2"}, {}, ["ledger = '***'"]),
        ({"ledgr": {"url": SECRET_URL}}, {}, ["ledgr", "allowed: mode, ledger"]),
        ({"password": "hunter2"}, {}, ["password", "no such key"]),
        ({SECRET_URL: 1}, {}, ["postgresql://***@db/x", "no such key"]),
        ({"mode": SECRET_URL}, {}, ["mode = 'postgresql://***@db/x'", "allowed: enforce, observe"]),
        ({"budget": [{**BUDGET, "url": SECRET_URL}]}, {}, ["budget[0].url = 'postgresql://***@db/x'"]),
        ({"budget": [{**BUDGET, "name": SECRET_URL}]}, {}, ["budget.name", "postgresql://***"]),
        (
            {"budget": [BUDGET], "quota": [{**QUOTA, "under": SECRET_URL}]},
            {},
            ["quota.under", "device-daily"],
        ),
        ({}, {"DPMESH_LEDGER_URLL": SECRET_URL}, ["DPMESH_LEDGER_URLL", "allowed: DPMESH_LEDGER_URL"]),
        ({}, {"DPMESH_LEDGER_PASSWORD": "hunter2"}, ["DPMESH_LEDGER_PASSWORD", "no such key"]),
        ({}, {"DPMESH_PASSWORD": "hunter2"}, ["DPMESH_PASSWORD", "allowed: DPMESH_MODE"]),
        ({}, {"DPMESH_BUDGET_X_PASSWORD": "hunter2"}, ["DPMESH_BUDGET_X_PASSWORD", "no such key"]),
        ({}, {"DPMESH_BUDGET_UNIT_DAILY_EPSILON": SECRET_URL}, ["'postgresql://***@db/x' is not a number"]),
        ({}, {"DPMESH_GRPC_PASS_STATUS_DETAILS": SECRET_URL}, ["neither true nor false"]),
        ({}, {"DPMESH_BUDGET_UNIT_DAILY_WINDOW": SECRET_URL}, ["window", "lifetime"]),
        ({}, {"DPMESH_LEDGER_URL": SECRET_URL.replace("://", ":/")}, ["ledger.url", "allowed are"]),
    ],
)
def test_no_error_shows_a_password(document, environment, words):
    with pytest.raises(ConfigError) as caught:
        settings = load(document, environment)
        config.budgets(settings)
        open_store(settings.ledger.url)
    text = str(caught.value)
    assert "hunter2" not in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("value", "consumers"),
    [
        ("a, spiffe://b/*", ("a", "spiffe://b/*")),
        ('""', ("",)),
        ('a,""', ("a", "")),
        ("", None),
        (" , ", None),
    ],
)
def test_a_quota_for_nobody_is_refused(value, consumers):
    environment = {"DPMESH_QUOTA_PARTNER_CONSUMERS": value}
    document = {"budget": [BUDGET], "quota": [QUOTA]}
    if consumers is None:
        with pytest.raises(ConfigError, match="DPMESH_QUOTA_PARTNER_CONSUMERS.*names nobody"):
            load(document, environment)
    else:
        assert load(document, environment).quota[0].consumers == consumers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"window": "1 day"}, "window"),
        ({"window": "0s"}, "window"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        config.budgets(load({"budget": [{**BUDGET, **change}]}, {}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.0}, ["quota 'partner'", "epsilon"]),
        ({"epsilon": 8.5}, ["quota.epsilon", "8.5", "8.0", "'device-daily'"]),
        ({"methods": ["a.B/C"]}, ["quota.methods", "'a.B/C'", "/package.Service/Method"]),
        ({"methods": [""]}, ["quota.methods", "''"]),
        ({"messages": ["/a.B/C"]}, ["quota.messages", "'/a.B/C'", "package.Message"]),
        ({"messages": [".a.B"]}, ["quota.messages", "'.a.B'"]),
        ({"labels": [""]}, ["quota.labels", "''"]),
    ],
)
def test_a_quota_that_means_nothing_is_refused(change, words):
    with pytest.raises(ConfigError) as caught:
        config.budgets(load({"budget": [BUDGET], "quota": [{**QUOTA, **change}]}, {}))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_quota_takes_from_its_budget_what_it_does_not_say():
    parent = {**BUDGET, "window": "1h", "on_exhausted": "suppress"}
    lists = {"methods": ["/a.B/*"], "messages": ["a.*"], "directions": ["response"], "labels": ["health"]}
    settings = load({"budget": [parent], "quota": [QUOTA, {**QUOTA, "name": "strict", **lists}]}, {})
    budget, partner, strict = config.budgets(settings)
    assert (partner.key, partner.delta, partner.accounting) == (
        "unit/consumer",
        budget.delta,
        budget.accounting,
    )
    assert (partner.window, partner.on_exhausted, partner.under) == (3600.0, "suppress", "device-daily")
    assert (partner.match.everything, partner.is_for("anyone"), partner.is_for("")) == (True, True, True)
    assert strict.match == Match(("/a.B/*",), ("a.*",), ("response",), ("health",))
    assert (
        config.budgets(load({"quota": [{**QUOTA, "under": "global-daily"}]}, {}))[2].key == "global/consumer"
    )


def test_the_environment_changes_lists_and_quotas():
    environment = {
        "DPMESH_BUDGET_DEVICE_DAILY_METHODS": "/a.B/C, /d.E/*",
        "DPMESH_BUDGET_DEVICE_DAILY_DIRECTIONS": "response",
        "DPMESH_QUOTA_PARTNER_EPSILON": "0.5",
        "DPMESH_QUOTA_PARTNER_CONSUMERS": "spiffe://mesh.example/*",
        "DPMESH_QUOTA_PARTNER_ON_EXHAUSTED": "suppress",
    }
    settings = load({"budget": [BUDGET], "quota": [QUOTA]}, environment)
    assert settings.budget[0].methods == ("/a.B/C", "/d.E/*")
    assert settings.budget[0].directions == ("response",)
    (quota,) = settings.quota
    assert (quota.epsilon, quota.consumers, quota.on_exhausted) == (
        0.5,
        ("spiffe://mesh.example/*",),
        "suppress",
    )


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DPMESH_LEDGER_ULR", "x", "DPMESH_LEDGER_URL"),
        ("DPMESH_LEGDER_URL", "x", "DPMESH_LEDGER_"),
        ("DPMESH_BUDGET_NONE_EPSILON", "1", "unit-daily"),
        ("DPMESH_BUDGET_UNIT_DAILY_EPSILOM", "1", "EPSILON"),
        ("DPMESH_BUDGET_UNIT_DAILY_EPSILON", "much", "not a number"),
        ("DPMESH_GRPC_PASS_STATUS_DETAILS", "maybe", "true"),
        ("DPMESH_QUOTA_NONE_EPSILON", "1", "no quota has this name; there are none"),
        ("DPMESH_QUOTA_NONE_WINDOW", "1h", "DPMESH_QUOTA_<NAME>_UNDER"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_allowed(variable, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load(None, {variable: value})
    assert variable in str(caught.value)


def test_files_that_are_missing_or_not_toml_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("[ledger\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "bad.toml", {})
    with pytest.raises(ConfigError, match="none.toml: .*; the path starts in the working directory"):
        load("none.toml", {})


@pytest.mark.parametrize(
    ("text", "length"),
    [("90s", 90.0), ("15m", 900.0), ("24h", 86400.0), ("7d", 604800.0), ("lifetime", None)],
)
def test_windows(text, length):
    assert seconds(text, "window") == length


@pytest.mark.parametrize(
    ("document", "variable", "words"),
    [
        ({"ledger": "x"}, "DPMESH_LEDGER_URL", "ledger = 'x'"),
        ({"budget": "x"}, "DPMESH_BUDGET_X_EPSILON", "budget = 'x'"),
        ({"budget": ["x"]}, "DPMESH_BUDGET_X_EPSILON", "no budget has this name"),
        (
            {"budget": [{"name": "a-b", "epsilon": 1.0}, {"name": "a_b", "epsilon": 1.0}]},
            "DPMESH_BUDGET_A_B_EPSILON",
            "two budgets have this name; there are a-b, a_b",
        ),
    ],
)
def test_a_variable_that_meets_a_document_it_does_not_fit_is_refused_by_name(document, variable, words):
    with pytest.raises(ConfigError, match=words):
        load(document, {variable: "3"})


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A configuration's folder, and the working directory, which is another one."""
    folders = tmp_path / "configuration", tmp_path / "elsewhere"
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[1])
    return folders


@pytest.mark.parametrize(
    ("written", "environment"),
    [
        ('[ledger]\nurl = "sqlite:///data/x.db"\n', {}),
        ("", {"DPMESH_LEDGER_URL": "sqlite:///data/x.db"}),
    ],
)
def test_two_working_directories_share_a_ledger(folders, monkeypatch, written, environment):
    """A relative URL follows the configuration file, also in the environment, and also one that is given relatively."""
    home = folders[0]
    (home / "dpmesh.toml").write_text(written)
    found = {load(home / "dpmesh.toml", environment).ledger.url}
    found.add(load(os.path.relpath(home / "dpmesh.toml"), environment).ledger.url)
    monkeypatch.chdir(home)
    found.add(load("dpmesh.toml", environment).ledger.url)
    assert found == {f"sqlite:///{home}/data/x.db"}


def test_the_default_ledger_follows_the_file_and_without_one_the_working_directory(folders):
    home, elsewhere = folders
    (home / "dpmesh.toml").touch()
    assert load(home / "dpmesh.toml", {}).ledger.url == f"sqlite:///{home}/.dpmesh/ledger.db"
    assert load({}, {}).ledger.url == load(None, {}).ledger.url == f"sqlite:///{elsewhere}/.dpmesh/ledger.db"


@pytest.mark.parametrize(
    "url", ["memory:", "sqlite:////var/x.db", "postgresql://h/d", "sqlite://x", "sqlite:///"]
)
def test_other_urls_stay_as_they_are(folders, url):
    (folders[0] / "dpmesh.toml").write_text(f'[ledger]\nurl = "{url}"\n')
    assert load(folders[0] / "dpmesh.toml", {}).ledger.url == url


@pytest.mark.parametrize("left", ["x.db", "x.db-witness"])
def test_a_ledger_where_earlier_versions_kept_it_is_not_forgotten(folders, left):
    home, elsewhere = folders
    (home / "dpmesh.toml").write_text('[ledger]\nurl = "sqlite:///x.db"\n')
    (elsewhere / left).touch()
    with pytest.raises(ConfigError, match="move it") as caught:
        load(home / "dpmesh.toml", {})
    assert f"{home}/x.db" in str(caught.value)
    assert f"{elsewhere}/x.db" in str(caught.value)
    (home / "x.db").touch()  # moved, or another one
    assert load(home / "dpmesh.toml", {}).ledger.url == f"sqlite:///{home}/x.db"


def test_a_working_directory_that_is_gone(folders):
    home, elsewhere = folders
    (home / "dpmesh.toml").touch()
    elsewhere.rmdir()
    assert load(home / "dpmesh.toml", {}).ledger.url == f"sqlite:///{home}/.dpmesh/ledger.db"


def service_link(service: str, protocol: str, port: int, name: str, address: str) -> dict[str, str]:
    """What Kubernetes puts into the environment for a Service with one port."""
    prefix = service.upper().replace("-", "_")
    shown = f"[{address}]" if ":" in address else address
    url = f"{protocol}://{shown}:{port}"
    one = f"{prefix}_PORT_{port}_{protocol.upper()}"
    return {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}": str(port),
        f"{prefix}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": address,
    }


@pytest.mark.parametrize(
    ("service", "protocol", "name", "address"),
    [
        ("dpmesh", "tcp", "grpc", "10.0.0.1"),
        ("dpmesh-ledger", "tcp", "postgres", "10.96.0.12"),
        ("dpmesh-policy", "udp", "x", "fd00::1"),
        ("dpmesh-service", "sctp", "service-port", "10.0.0.1"),
        ("dpmesh-mode", "tcp", "mode", "10.0.0.1"),
        ("dpmesh-budget-fleet", "tcp", "epsilon", "10.0.0.1"),
        ("dpmesh-quota", "tcp", "on-exhausted", "10.0.0.1"),
    ],
)
def test_what_kubernetes_says_of_services_is_passed_over(caplog, service, protocol, name, address):
    links = service_link(service, protocol, 50051, name, address)
    assert load(None, {**links, "DPMESH_MODE": "observe"}) == load({"mode": "observe"}, {})
    (record,) = caplog.records
    assert all(variable in record.getMessage() for variable in links)
    assert "enableServiceLinks" in record.getMessage()
    caplog.clear()
    for variable, value in links.items():
        if not variable.endswith(f"_SERVICE_PORT_{name.upper().replace('-', '_')}"):
            load(None, {variable: value})  # each by itself, too


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DPMESH_SERVICE_HOTS", "10.0.0.1"),
        ("DPMESH_LEDGER_HOST", "10.0.0.1"),
        ("DPMESH_LEDGER_PORT", "5432"),
        ("DPMESH_LEDGER_SERVICE_HOST", "db.example"),
        ("DPMESH_LEDGER_SERVICE_URL", "tcp://10.0.0.1:5432"),
        ("DPMESH_PORT", "tcp://db.example:5432"),
        ("DPMESH_PORT_5432_TCP_ADRR", "10.0.0.1"),
        ("DPMESH_PORT_5432_HTTP_ADDR", "10.0.0.1"),
        ("DPMESH_PORT_TCP_ADDR", "10.0.0.1"),
        ("DPMESH_SERVICE_HOST_", "10.0.0.1"),
        ("DPMESH_BUDGET_SERVICE_PORT_EPSILON", "4"),  # of a budget that there isn't
        ("DPMESH_SERVICE_HOST\n", "10.0.0.1"),
    ],
)
def test_a_misspelled_key_is_no_service_link(variable, value):
    with pytest.raises(ConfigError, match=variable.strip()):
        load(None, {variable: value})


def test_a_budget_may_be_called_like_a_service(caplog):
    """A key that there is counts, whatever its name looks like, also beside a Service that is called like the budget."""
    document = {"budget": [{**BUDGET, "name": "service-port"}, {**BUDGET, "name": "service-host"}]}
    environment = {
        "DPMESH_BUDGET_SERVICE_PORT_EPSILON": "4",
        "DPMESH_BUDGET_SERVICE_HOST_EPSILON": "5",
        "DPMESH_BUDGET_SERVICE_HOST": "10.0.0.1",
    }
    assert [entry.epsilon for entry in load(document, environment).budget] == [4.0, 5.0]
    assert "DPMESH_BUDGET_SERVICE_HOST" in caplog.text
    assert "EPSILON" not in caplog.text


async def test_what_is_spent_in_one_working_directory_is_spent_in_all(folders, monkeypatch):
    home, _ = folders
    (home / "dpmesh.toml").write_text(
        '[ledger]\nurl = "sqlite:///.dpmesh/x.db"\n[[budget]]\nname = "life"\nepsilon = 1.0\nwindow = "lifetime"\n'
        'accounting = "pure"\n'
    )
    refused = []
    for folder in folders:
        monkeypatch.chdir(folder)
        settings = load(home / "dpmesh.toml", {})
        ledger = Ledger(open_store(settings.ledger.url), config.budgets(settings))
        await ledger.open()
        try:
            await ledger.charge([(0, b"a", AMOUNT)])
        except BudgetExhaustedError:
            refused.append(folder)
        await ledger.close()
    assert refused == [folders[1]]


def test_an_empty_policy_file_takes_no_rules_away(tmp_path):
    """A variable that nobody has set is often passed on as an empty one."""
    file = tmp_path / "dpmesh.toml"
    file.write_text('[policy]\nfile = "policy.yaml"\n')
    for source, environment in ((file, {"DPMESH_POLICY_FILE": ""}), ({"policy": {"file": ""}}, {})):
        with pytest.raises(ConfigError, match=r"policy\.file = ''"):
            load(source, environment)


@pytest.mark.parametrize("key", ["methods", "messages", "labels"])
@pytest.mark.parametrize("glob", ["/acme.S/M ", "acme.M\n", " *"])
def test_a_glob_with_a_space_at_its_end_fits_nothing(key, glob):
    with pytest.raises(ConfigError, match="without spaces"):
        config.budgets(load({"budget": [{**BUDGET, key: [glob]}]}, {}))
