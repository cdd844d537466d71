"""Configuration: defaults, files, the environment, and clear errors for everything else."""

import pytest

from dpmesh import config
from dpmesh.config import load, seconds
from dpmesh.errors import ConfigError

BUDGET = {"name": "device-daily", "epsilon": 8.0, "delta": 1e-6}


def test_defaults_need_no_file():
    settings = load(None, {})
    assert settings.mode == "enforce"
    assert settings.ledger.url == "sqlite:///.dpmesh/ledger.db"
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
        "DPMESH_BUDGET_DEVICE_DAILY_EPSILON": "4",
        "HOME": "/",
    }
    settings = load(file, environment)
    assert settings.mode == "enforce"
    assert settings.ledger.url == "sqlite:///x.db"
    assert settings.policy.file == str(tmp_path / "p.yaml")
    assert settings.grpc == config.GrpcConfig(pass_metadata=("a", "b"), pass_status_details=True)
    assert (settings.budget[0].epsilon, settings.budget[0].window) == (4.0, "1h")


def test_the_environment_alone_changes_a_default_budget():
    assert load(None, {"DPMESH_BUDGET_UNIT_DAILY_EPSILON": "2"}).budget[0].epsilon == 2.0


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"ledgr": {}}, ["ledgr", "no such key", "allowed", "ledger"]),
        ({"ledger": {"ulr": "memory:"}}, ["ledger.ulr", "'memory:'", "allowed: url"]),
        ({"mode": "of"}, ["mode", "'of'", "enforce, observe"]),
        ({"budget": [{**BUDGET, "epsilom": 1}]}, ["budget[0].epsilom", "1", "allowed", "epsilon"]),
        ({"budget": [{**BUDGET, "epsilon": "8"}]}, ["budget[0].epsilon", "'8'"]),
        ({"budget": [{**BUDGET, "key": "device"}]}, ["budget[0].key", "'device'", "unit"]),
        (
            {"budget": [{**BUDGET, "on_exhausted": "replay"}]},
            ["budget[0].on_exhausted", "'replay'", "reject"],
        ),
        ({"budget": [{"epsilon": 8.0}]}, ["budget[0].name is missing"]),
        ({"budget": [BUDGET, BUDGET]}, ["device-daily", "two budgets"]),
        ({"budget": [{**BUDGET, "name": "a b"}]}, ["budget.name", "'a b'"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(document, words):
    with pytest.raises(ConfigError) as caught:
        load(document, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
    ("variable", "value", "words"),
    [
        ("DPMESH_LEDGER_ULR", "x", "DPMESH_LEDGER_URL"),
        ("DPMESH_LEGDER_URL", "x", "DPMESH_LEDGER_"),
        ("DPMESH_BUDGET_NONE_EPSILON", "1", "unit-daily"),
        ("DPMESH_BUDGET_UNIT_DAILY_EPSILOM", "1", "EPSILON"),
        ("DPMESH_BUDGET_UNIT_DAILY_EPSILON", "much", "not a number"),
        ("DPMESH_GRPC_PASS_STATUS_DETAILS", "maybe", "true"),
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
