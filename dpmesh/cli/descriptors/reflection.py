"""Descriptors of a live server, by gRPC server reflection.

The server is not trusted: limits bound how much it may send, and how long it may take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from dpmesh.cli.console import InputError
from dpmesh.cli.descriptors import sources
from dpmesh.report.sources import Sources

TIMEOUT = 10.0
LIMIT = 60.0
"""Seconds that all questions together may take."""
MOST_FILES = 10_000
MOST_BYTES = 64 * 1024 * 1024
"""The largest size of all files together."""

# How much of a server's own text an error quotes.
_LONGEST_TEXT = 200
# Both versions have the same messages. Servers in other languages may offer only one of them.
_METHODS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
_INFRASTRUCTURE = frozenset(
    {
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.health.v1.Health",
    }
)


def from_server(target: str, timeout: float = TIMEOUT) -> Sources:
    """Asks a server for the files of all its services, except reflection and health themselves.

    Args:
        target: HOST:PORT of a server without TLS.
        timeout: For each question, in seconds.

    Raises:
        InputError: The server can't be reached, does not answer, or answers with too much or with nonsense.
    """
    if not target.isprintable():
        raise InputError("--reflect: write HOST:PORT")
    with grpc.insecure_channel(target) as channel:
        server = _Server(channel, target, timeout)
        services = [name for name in server.services() if name not in _INFRASTRUCTURE]
        if not services:
            raise InputError(f"{target}: has no services but reflection and health")
        files = server.files(services)
    loaded = sources.load(files.values(), sources.user_files(files), {})
    declared = {service.full_name for service in loaded.services()}
    # A service without its file would pass as one without findings.
    for name in services:
        if name not in declared:
            raise InputError(f"{target}: sent no file that declares its service {name}")
    return loaded


class _Server:
    """The reflection service of one server."""

    def __init__(self, channel: grpc.Channel, target: str, timeout: float) -> None:
        self._channel = channel
        self._target = target
        self._timeout = timeout
        self._end = time.monotonic() + LIMIT
        self._methods = list(_METHODS)
        self._sent: dict[str, bytes] = {}
        self._bytes = 0

    def services(self) -> list[str]:
        answer = self._ask(pb.ServerReflectionRequest(list_services="*"))
        return [service.name for service in answer.list_services_response.service]

    def files(self, services: Sequence[str]) -> dict[str, FileDescriptorProto]:
        """The files that declare the services, and all that these import."""
        found: dict[str, FileDescriptorProto] = {}
        for service in services:
            self._take(pb.ServerReflectionRequest(file_containing_symbol=service), found)
        missing = list(_missing(found))
        while missing:
            new: dict[str, FileDescriptorProto] = {}
            for name in missing:
                if name not in new:
                    self._take(pb.ServerReflectionRequest(file_by_filename=name), new)
                if name not in new:
                    raise InputError(f"{self._target}: does not know its own file {name}")
            found |= new
            # Only the imports of new files: otherwise a chain of imports takes quadratic time.
            missing = [name for name in _missing(new) if name not in found]
        return found

    def _take(self, request: pb.ServerReflectionRequest, found: dict[str, FileDescriptorProto]) -> None:
        for serialized in self._ask(request).file_descriptor_response.file_descriptor_proto:
            file = sources.read_file(serialized, self._target)
            before = self._sent.setdefault(file.name, serialized)
            if before is serialized:
                self._bytes += len(serialized)
                if len(self._sent) > MOST_FILES or self._bytes > MOST_BYTES:
                    raise InputError(
                        f"{self._target}: sends more than {MOST_FILES} files or {MOST_BYTES >> 20} MB"
                    )
            elif before != serialized:
                raise InputError(f"{self._target}: sent two different files {file.name}")
            found.setdefault(file.name, file)

    def _ask(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """One question, to the first version of the service that the server implements."""
        while True:
            left = self._end - time.monotonic()
            if left <= 0:
                raise InputError(f"{self._target}: takes longer than {LIMIT:g} s to send its files")
            method = self._channel.stream_stream(
                self._methods[0],
                request_serializer=pb.ServerReflectionRequest.SerializeToString,
                response_deserializer=pb.ServerReflectionResponse.FromString,
            )
            call = method(iter([request]), timeout=min(self._timeout, left))
            try:
                answer: Any = next(call)
            except StopIteration:
                raise InputError(f"{self._target}: reflection ended without an answer") from None
            except grpc.RpcError as error:
                self._next_version(error)
                continue
            finally:
                call.cancel()  # A server may send endless answers.
            if answer.HasField("error_response"):
                text = answer.error_response.error_message[:_LONGEST_TEXT]
                raise InputError(f"{self._target}: reflection: {text}")
            return answer

    def _next_version(self, error: grpc.RpcError) -> None:
        code = error.code()
        if code is not grpc.StatusCode.UNIMPLEMENTED:
            raise InputError(f"{self._target}: can't be reached for reflection ({code.name})") from None
        if len(self._methods) == 1:
            raise InputError(f"{self._target}: does not offer server reflection") from None
        self._methods.pop(0)


def _missing(found: dict[str, FileDescriptorProto]) -> Iterator[str]:
    """Imports that are missing, except those that come with protobuf or dpmesh."""
    names = {name for file in found.values() for name in file.dependency}
    return iter(sorted(sources.user_files(names - set(found))))
