"""Registers the marker of test_spire.py; delete this once pyproject.toml does."""


def pytest_configure(config):
    config.addinivalue_line("markers", "spire: needs SPIRE's binaries (`make spire`)")
