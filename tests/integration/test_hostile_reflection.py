"""`--reflect` on servers that mean harm: whatever they send, one line says what is wrong, soon, and steers nothing."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from dpmesh import cli
from dpmesh.cli.descriptors import reflection
from dpmesh.v1 import privacy_pb2

Answer = Callable[[pb.ServerReflectionRequest], Iterator[pb.ServerReflectionResponse]]

CONTROLS = "\x1b\x9b\x07\r\u202e"
ESCAPES = "\x1b[2J\x9b31m\x07\r\n::error::mine\u202e"
SERVICE = "acme.S"


def empty(name: str, *imports: str) -> FileDescriptorProto:
    return FileDescriptorProto(name=name, syntax="proto3", dependency=imports)


def declaring(name: str, *imports: str) -> FileDescriptorProto:
    """A file with the service, whose messages have nothing in them."""
    file = empty(name, *imports)
    file.package = "acme"
    file.message_type.add(name="M")
    method = file.service.add(name="S").method.add(name="Do", input_type=".acme.M", output_type=".acme.M")
    assert method.name
    return file


def services(*names: str) -> pb.ServerReflectionResponse:
    listed = [pb.ServiceResponse(name=name) for name in names]
    return pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=listed))


def files(*sent: FileDescriptorProto | bytes) -> pb.ServerReflectionResponse:
    serialized = [file if isinstance(file, bytes) else file.SerializePartialToString() for file in sent]
    return pb.ServerReflectionResponse(
        file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=serialized)
    )


def having(*sent: FileDescriptorProto | bytes) -> Answer:
    """A server with one service, which sends the files whatever it is asked."""
    return lambda request: iter([services(SERVICE) if request.list_services else files(*sent)])


def chained(by_name: Callable[[str], FileDescriptorProto]) -> Answer:
    """A server with one service in a.proto, which sends one file for each name."""

    def answer(request: pb.ServerReflectionRequest) -> Iterator[pb.ServerReflectionResponse]:
        if request.list_services:
            yield services(SERVICE)
        else:
            yield files(by_name(request.file_by_filename or "a.proto"))

    return answer


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    servers: list[grpc.Server] = []

    def start(answer: Answer) -> str:
        def handle(requests: Iterator[pb.ServerReflectionRequest], context: grpc.ServicerContext):
            for request in requests:
                yield from answer(request)

        handler = grpc.stream_stream_rpc_method_handler(
            handle,
            request_deserializer=pb.ServerReflectionRequest.FromString,
            response_serializer=pb.ServerReflectionResponse.SerializeToString,
        )
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def check(serve, capsys: pytest.CaptureFixture[str]):
    """Runs `dpmesh check --reflect` on a server that answers like this."""

    def call(answer: Answer, *options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["check", "--reflect", serve(answer), *options])
        return (code, *capsys.readouterr())

    return call


def refused(ran: tuple[int, str, str], words: str) -> None:
    code, out, err = ran
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert "mistake of dpmesh" not in err
    assert not any(letter in err for letter in CONTROLS)


def test_a_server_that_means_no_harm(check) -> None:
    assert check(having(declaring("a.proto")))[0] == 0


def test_imports_without_an_end(check, monkeypatch) -> None:
    monkeypatch.setattr(reflection, "MOST_FILES", 100)
    numbers = itertools.count()
    endless = chained(lambda name: empty(name, f"f{next(numbers)}.proto"))
    refused(check(endless), "sends more than 100 files")


def test_files_without_an_end_in_each_answer(check, monkeypatch) -> None:
    monkeypatch.setattr(reflection, "MOST_FILES", 1000)
    numbers = itertools.count()

    def answer(request: pb.ServerReflectionRequest) -> Iterator[pb.ServerReflectionResponse]:
        if request.list_services:
            yield services(SERVICE)
        else:
            new = [empty(f"f{next(numbers)}.proto") for _ in range(300)]
            yield files(empty(request.file_by_filename or "a.proto", f"x{next(numbers)}.proto"), *new)

    refused(check(answer), "sends more than 1000 files")


def test_files_that_are_too_large(check, monkeypatch) -> None:
    monkeypatch.setattr(reflection, "MOST_BYTES", 1_000_000)
    numbers = itertools.count()

    def large(name: str) -> FileDescriptorProto:
        file = empty(name, f"f{next(numbers)}.proto")
        file.package = "a" * 400_000
        return file

    refused(check(chained(large)), "MB")


def test_an_answer_that_is_too_large(check) -> None:
    refused(check(having(b"x" * 5_000_000)), "RESOURCE_EXHAUSTED")


def test_a_long_chain_of_imports_is_no_harm(check) -> None:
    chain = [declaring("a.proto", "f0.proto")]
    chain += [empty(f"f{number}.proto", f"f{number + 1}.proto") for number in range(3000)]
    chain.append(empty("f3000.proto"))
    assert check(having(*chain))[0] == 0


@pytest.mark.parametrize("length", [1, 2, 3000])
def test_files_that_import_each_other(check, length: int) -> None:
    ring = [empty(f"f{number}.proto", f"f{(number + 1) % length}.proto") for number in range(length)]
    refused(check(having(declaring("a.proto", "f0.proto"), *ring)), "imports itself")


def test_a_server_that_never_answers(check, monkeypatch) -> None:
    monkeypatch.setattr(reflection.from_server, "__defaults__", (0.2,))
    ended = threading.Event()

    def silent(request: pb.ServerReflectionRequest) -> Iterator[pb.ServerReflectionResponse]:
        ended.wait(60)
        yield from ()

    refused(check(silent), "DEADLINE_EXCEEDED")
    ended.set()


def test_a_server_that_answers_slowly(check, monkeypatch) -> None:
    """Each answer comes in time, and they have no end."""
    monkeypatch.setattr(reflection, "LIMIT", 0.5)
    numbers = itertools.count()

    def slow(name: str) -> FileDescriptorProto:
        time.sleep(0.05)
        return empty(name, f"f{next(numbers)}.proto")

    ran = check(chained(slow))
    # The limit may pass between two questions, or during one.
    refused(ran, "takes longer" if "takes longer" in ran[2] else "DEADLINE_EXCEEDED")


def test_an_endless_stream_of_answers_is_not_read(check) -> None:
    sent = []

    def endless(request: pb.ServerReflectionRequest) -> Iterator[pb.ServerReflectionResponse]:
        while True:
            sent.append(1)
            yield services(SERVICE) if request.list_services else files(declaring("a.proto"))

    assert check(endless)[0] == 0


@pytest.mark.parametrize("style", ["text", "json", "github"])
def test_names_that_would_steer_a_terminal_or_a_runner(check, style: str) -> None:
    file = declaring(f"{ESCAPES}.proto")
    message = file.message_type[0]
    message.options.Extensions[privacy_pb2.message].epsilon = -1
    message.field.add(name="x", number=1, type=1, label=1).options.Extensions[
        privacy_pb2.field
    ].numeric.SetInParent()
    file.dependency.append("dpmesh/v1/privacy.proto")
    code, out, err = check(having(file), "--format", style)
    assert (code, err) == (1, "")
    assert not any(letter in out for letter in CONTROLS)
    commands = [line for line in out.splitlines() if line.lstrip().startswith("::")]
    if style == "github":
        assert all(line.startswith("::error file=\N{REPLACEMENT CHARACTER}[2J") for line in commands)
        assert len(commands) == len(out.splitlines()) - 1
    else:
        assert commands == []
    if style == "json":
        assert json.loads(out)["findings"][0]["file"] == f"{ESCAPES}.proto"


def test_errors_that_would_steer_a_terminal(check) -> None:
    error = pb.ErrorResponse(error_code=5, error_message=ESCAPES * 1000)
    ran = check(lambda request: iter([pb.ServerReflectionResponse(error_response=error)]))
    refused(ran, "reflection: ")
    assert len(ran[2]) < 400


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ((b"\xff\xff",), "no descriptor"),
        ((b"\x0a\x03\xff\xfe\xfd",), "127.0.0.1"),
        ((b"\x0a\x07a.proto\x1a\x02\xff\xfe",), "127.0.0.1"),
        ((b"",), "without a name"),
        ((empty("other.proto"),), "sent no file that declares its service acme.S"),
        ((declaring("a.proto"), declaring("a.proto", "google/protobuf/any.proto")), "two different files"),
        ((declaring("a.proto"), declaring("b.proto")), "not a valid descriptor"),
        ((declaring(ESCAPES, "missing.proto"),), "does not know its own file missing.proto"),
        ((declaring("a.proto", ESCAPES),), "does not know its own file"),
        ((empty("google/protobuf/\0.proto"), declaring("a.proto", "google/protobuf/..x/.proto")), "own file"),
    ],
)
def test_nonsense(check, sent: tuple[FileDescriptorProto | bytes, ...], words: str) -> None:
    refused(check(having(*sent)), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: setattr(file.message_type[0], "name", ESCAPES),
        lambda file: setattr(file.message_type[0], "name", "M\nN"),
        lambda file: file.message_type[0].field.add(
            name="f", number=1, type=11, label=1, type_name=f".{ESCAPES}"
        ),
        lambda file: file.message_type[0].field.add(name="f", number=-1, type=1, label=1),
        lambda file: file.message_type[0].field.add(name="f", number=1, type=1, label=1, oneof_index=7),
        lambda file: file.public_dependency.append(99),
        lambda file: setattr(file, "syntax", ESCAPES),
        lambda file: file.message_type[0].options.uninterpreted_option.add().name.add(),
    ],
)
def test_descriptors_that_are_none(check, change: Callable[[FileDescriptorProto], object]) -> None:
    file = declaring("a.proto")
    change(file)
    code, out, err = check(having(file))
    assert code in (0, 1, 2)
    assert "mistake of dpmesh" not in err
    assert not any(letter in out + err for letter in CONTROLS)
    assert len(err.splitlines()) <= 1


@pytest.mark.parametrize(
    "name", ["google/protobuf/descriptor.proto", "dpmesh/v1/privacy.proto", "google/rpc/status.proto"]
)
def test_installed_files_are_never_replaced(check, name: str) -> None:
    """A server that sends its own privacy.proto would have fields without rules where there are some."""
    own = FileDescriptorProto(name=name, syntax="proto3", package="evil")
    file = declaring("a.proto", name, "dpmesh/v1/privacy.proto")
    field = file.message_type[0].field.add(name="x", number=1, type=1, label=1)
    field.options.Extensions[privacy_pb2.field].numeric.SetInParent()
    code, out, _ = check(having(own, file), "--json")
    assert code == 1
    assert "acme.M.x" in {finding["element"] for finding in json.loads(out)["findings"]}
    assert descriptor_pb2.FileDescriptorProto.DESCRIPTOR.full_name == "google.protobuf.FileDescriptorProto"


def test_a_service_in_a_file_with_the_name_of_another_is_looked_at(check) -> None:
    """No name makes a file count as one of Google's, of gRPC's or of dpmesh's."""
    for name in ("google/api/mine.proto", "dpmesh/v1/mine.proto", "grpc/health/mine.proto"):
        code, out, _ = check(having(declaring(name)), "--json")
        assert (code, json.loads(out)["summary"]["message_types"]) == (0, 1)
    refused(check(having(declaring("grpc/health/v1/health.proto"))), "no file that declares its service")


def test_a_target_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("localhost:1\n", "\udcff:1", "\x1b[31m"):
        assert cli.run(["check", "--reflect", target]) == 2
        assert capsys.readouterr().err == "dpmesh: --reflect: write HOST:PORT\n"
