"""A real SPIRE for tests: a server on a free port of the loopback interface, and agents with sockets in a folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
DOMAIN = "fleet.test"
NAMES = ("spire-server", "spire-agent")


def find() -> Path | None:
    """The folder that `make spire` found or filled: SPIRE_BINARIES, in .cache/spire, or on the PATH."""
    named = os.environ.get("SPIRE_BINARIES")
    built = sorted((ROOT / ".cache" / "spire").glob("v*[0-9]"))
    on_path = shutil.which(NAMES[0])
    candidates = [Path(named)] if named else [*reversed(built), *([Path(on_path).parent] if on_path else [])]
    return next((path for path in candidates if all(_is_v1(path / name) for name in NAMES)), None)


def _is_v1(path: Path) -> bool:
    if not os.access(path, os.X_OK):
        return False
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return (done.stdout + done.stderr).startswith("1.")


class _Process:
    """One of SPIRE's two programs, with its configuration and log in a folder. Stopped by its own pid, and only it."""

    def __init__(self, command: list[str | Path], folder: Path, configuration: dict[str, Any]) -> None:
        self._log = folder / "log"
        file = folder / "configuration.json"
        file.write_text(json.dumps(configuration))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-config", file],
                # Nothing of this process' environment: SPIRE reads some of it.
                env={"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Whether it holds before the process or patience ends."""
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.1)
        return False

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Agent:
    """An agent, which is one node to the server. It keeps its key in its folder, so that it can come back.

    Attributes:
        address: Of its Workload API, as in SPIFFE_ENDPOINT_SOCKET.
    """

    def __init__(self, binaries: Path, folder: Path, port: int, bundle: Path, token: str) -> None:
        self._binaries = binaries
        self._folder = folder
        self._socket = folder / "api.sock"
        self.address = f"unix://{self._socket}"
        (folder / "token").write_text(token)
        self._configuration = {
            "agent": {
                "data_dir": str(folder / "data"),
                "log_level": "INFO",
                "server_address": "127.0.0.1",
                "server_port": port,
                "socket_path": str(self._socket),
                "trust_bundle_path": str(bundle),
                "trust_domain": DOMAIN,
                "join_token_file": str(folder / "token"),
                "experimental": {"sync_interval": "1s"},
            },
            "plugins": {
                "NodeAttestor": {"join_token": {"plugin_data": {}}},
                "KeyManager": {"disk": {"plugin_data": {"directory": str(folder / "data")}}},
                "WorkloadAttestor": {"unix": {"plugin_data": {}}},
            },
        }
        self._process: _Process | None = None

    def start(self) -> None:
        self._process = _Process([self._binaries / "spire-agent", "run"], self._folder, self._configuration)
        assert self._process.wait_for(self._healthy), self._process.log()

    def _healthy(self) -> bool:
        command = [self._binaries / "spire-agent", "healthcheck", "-socketPath", self._socket]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class Spire:
    """The server, and all agents that it was asked for; use it with `with`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        self._socket = folder / "api.sock"
        self._port = 0
        self._process: _Process | None = None
        self._agents: list[Agent] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        """Another program may take the port in between, so it may try again."""
        for _ in range(3):
            self._port = _free_port()
            self._process = _Process(
                [self._binaries / "spire-server", "run"], self._folder, self._configuration()
            )
            if self._process.wait_for(self._healthy):
                (self._folder / "bundle.pem").write_text(self.ask("bundle", "show"))
                return
            self._process.kill()
        assert self._process is not None
        raise AssertionError(f"SPIRE's server did not start:\n{self._process.log()}")

    def _configuration(self) -> dict[str, Any]:
        database = f"{self._folder / 'datastore.sqlite3'}"
        return {
            "server": {
                "bind_address": "127.0.0.1",
                "bind_port": self._port,
                "socket_path": str(self._socket),
                "trust_domain": DOMAIN,
                "data_dir": str(self._folder / "data"),
                "log_level": "INFO",
                "experimental": {"cache_reload_interval": "1s"},
            },
            "plugins": {
                "DataStore": {
                    "sql": {"plugin_data": {"database_type": "sqlite3", "connection_string": database}}
                },
                "NodeAttestor": {"join_token": {"plugin_data": {}}},
                "KeyManager": {"memory": {"plugin_data": {}}},
            },
        }

    def _healthy(self) -> bool:
        return self._run("healthcheck").returncode == 0

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [self._binaries / "spire-server", *words, "-socketPath", self._socket]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def ask(self, *words: str) -> str:
        """What a command of spire-server prints."""
        done = self._run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def agent(self, name: str) -> Agent:
        """A new node, whose SPIFFE ID has the name for its path."""
        folder = self._folder / name
        folder.mkdir(parents=True)
        answer = self.ask("token", "generate", "-spiffeID", f"spiffe://{DOMAIN}/{name}", "-output", "json")
        agent = Agent(
            self._binaries,
            folder,
            self._port,
            self._folder / "bundle.pem",
            json.loads(answer)["value"],
        )
        self._agents.append(agent)
        agent.start()
        return agent

    def register(self, node: str, path: str, ttl: int, dns: str | None = None) -> str:
        """Lets this user's processes at a node have an SVID; returns the entry's id."""
        words = ["entry", "create", "-output", "json"]
        words += ["-parentID", f"spiffe://{DOMAIN}/{node}", "-spiffeID", f"spiffe://{DOMAIN}/{path}"]
        words += ["-selector", f"unix:uid:{os.getuid()}", "-x509SVIDTTL", str(ttl)]
        words += ["-dns", dns] if dns is not None else []
        return str(json.loads(self.ask(*words))["results"][0]["entry"]["id"])

    def stop(self) -> None:
        for agent in self._agents:
            agent.kill()
        if self._process is not None:
            self._process.kill()
            self._process = None


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
