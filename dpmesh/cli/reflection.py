"""Descriptors of a live server, by gRPC server reflection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2 as pb

from dpmesh.cli import sources
from dpmesh.cli.console import InputError
from dpmesh.cli.sources import Sources

TIMEOUT = 10.0
# The two versions have the same messages; servers of other languages may offer only one of them.
_METHODS = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)
_INFRASTRUCTURE = ("grpc.reflection.", "grpc.health.")


def from_server(target: str, timeout: float = TIMEOUT) -> Sources:
    """Asks a server for the files of all its services, except reflection and health themselves.

    Args:
        target: HOST:PORT of a server without TLS.
        timeout: For each question, in seconds.

    Raises:
        InputError: The server can't be reached, or does not answer.
    """
    with grpc.insecure_channel(target) as channel:
        server = _Server(channel, target, timeout)
        services = [name for name in server.services() if not name.startswith(_INFRASTRUCTURE)]
        if not services:
            raise InputError(f"{target}: has no services but reflection and health")
        files = server.files(services)
    return sources.load(files.values(), sources.theirs(files), {})


class _Server:
    """The reflection service of one server."""

    def __init__(self, channel: grpc.Channel, target: str, timeout: float) -> None:
        self._channel = channel
        self._target = target
        self._timeout = timeout
        self._methods = list(_METHODS)

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
            for name in missing:
                self._take(pb.ServerReflectionRequest(file_by_filename=name), found)
                if name not in found:
                    raise InputError(f"{self._target}: does not know its own file {name}")
            missing = list(_missing(found))
        return found

    def _take(self, request: pb.ServerReflectionRequest, found: dict[str, FileDescriptorProto]) -> None:
        for serialized in self._ask(request).file_descriptor_response.file_descriptor_proto:
            try:
                file = FileDescriptorProto.FromString(serialized)
            except (DecodeError, UnicodeDecodeError):  # The latter from pure-Python protobuf.
                raise InputError(f"{self._target}: answered with something that is no descriptor") from None
            found.setdefault(file.name, file)

    def _ask(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """One question, to the first version of the service that the server implements."""
        while True:
            call = self._channel.stream_stream(
                self._methods[0],
                request_serializer=pb.ServerReflectionRequest.SerializeToString,
                response_deserializer=pb.ServerReflectionResponse.FromString,
            )
            try:
                answer: Any = next(call(iter([request]), timeout=self._timeout))
            except StopIteration:
                raise InputError(f"{self._target}: reflection ended without an answer") from None
            except grpc.RpcError as error:
                self._next_version(error)
                continue
            if answer.HasField("error_response"):
                raise InputError(f"{self._target}: reflection: {answer.error_response.error_message}")
            return answer

    def _next_version(self, error: grpc.RpcError) -> None:
        code = error.code()
        if code is not grpc.StatusCode.UNIMPLEMENTED:
            raise InputError(f"{self._target}: can't be reached for reflection ({code.name})") from None
        if len(self._methods) == 1:
            raise InputError(f"{self._target}: does not offer server reflection") from None
        self._methods.pop(0)


def _missing(found: dict[str, FileDescriptorProto]) -> Iterator[str]:
    """Imports that nobody has sent, except those that come with protobuf or dpmesh."""
    names = {name for file in found.values() for name in file.dependency}
    return iter(sorted(sources.theirs(names - set(found))))
