"""Calls that no client should make: bytes that are no message, values that make no sense, audio that lies.

A case follows from (seed, number) alone, so any one can be made again. Plain `random` instead of Hypothesis: its engine
draws examples one after the other, while here many calls have to be in progress at once, and what it is good at, making
a failing example smaller, needs a server that forgets the examples before.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from asr_server import riva_service, service
from benchmarks import false_audio

_NUMBERS = (0, 1, 2, 7, 8, 9, 30, 31, 4000, 8000, 16000, 44100, 48000, 10**6, 2**31 - 1, -1, -8000, -(2**31))
_LONG = (*_NUMBERS, 2**63 - 1, -(2**63), 315576000000)
_REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 20.0, 1e30, -1e30, 1e-40, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    *("", " ", "en-US", "en", "de-DE", "xx", "default", "latest_long", "hello", "one two", "a" * 101, "a" * 20000),
    *("../../etc/passwd", "gs://bucket/file", "%s%n{}", "\0", "\n\r\t", "'\"<&;--", "é", "\u202e", "😀", "\uffff"),
    *("nan", "inf", "-1", "0", "1e999", "true", "LINEAR16", "$time", "${c}", "operations/1", "grpc.health.v1.Health"),
)
_METADATA_NAMES = (
    *("x-request-id", "authorization", "traceparent", "tracestate", "user-agent-2", "x-goog-request-params"),
    *("earsight-alpha", "earsight-beta", "earsight-beam_width", "earsight-beam-width", "earsight-lexicon"),
    *("earsight-stop_history", "earsight-stop-threshold", "earsight-language_model", "earsight-", "earsight-x"),
)
SECOND_NAMES = {  # that reflection does not list
    service.SERVICE_NAME: service.GOOGLE_SERVICE_NAME,
    riva_service.SERVICE_NAME: riva_service.RIVA_SERVICE_NAME,
}
ENDLESS = ("Watch", "WaitOperation")  # calls of these go on until their callers end them
_SMALL = 3  # levels of messages inside messages


@dataclass(frozen=True)
class Method:
    """One that the server has, with the descriptor of what it takes."""

    path: str  # /SERVICE/METHOD
    request: Descriptor
    endless: bool = False  # a call that nobody ends goes on


def methods(address: str) -> list[Method]:
    """Every method of every service, as the server describes itself."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool, found = DescriptorPool(database), []
        for first in database.get_services():
            for name in (first, *(SECOND_NAMES[first] for _ in range(first in SECOND_NAMES))):
                served = pool.FindServiceByName(first).methods
                found += [Method(f"/{name}/{each.name}", each.input_type, each.name in ENDLESS) for each in served]
    return found


@dataclass(frozen=True)
class Case:
    """One call."""

    kind: str
    path: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    seconds: float | None = None  # the caller's deadline; None: the server has to end it
    cancel_after: int | None = None  # the call is cancelled after so many messages
    compressed: bool = False


class Malformed:
    """Makes the cases."""

    def __init__(self, methods: Sequence[Method], seed: int) -> None:
        self._methods, self._seed = methods, seed
        self._speech = [method for method in methods if method.path.endswith("Recognize")]
        self._files = false_audio.originals(random.Random(seed))
        self._bombs = false_audio.bombs()

    def case(self, number: int) -> Case:
        """number: from 0."""
        chance = random.Random(f"{self._seed} {number}")
        kinds: tuple[tuple[int, Callable[[random.Random], Case]], ...] = (
            (25, self._bytes),
            (20, self._fields),
            (30, self._false_audio),
            (15, self._order),
            (10, self._metadata),
            (1, self._connection),
        )
        if number % 2000 == 1999:
            return self._bomb(chance)
        weights, makers = zip(*kinds, strict=True)
        case: Case = chance.choices(makers, weights)[0](chance)
        return case

    def _bytes(self, chance: random.Random) -> Case:
        """Of one to three messages, none of which need be one."""
        method = chance.choice(self._methods)
        count = chance.choice((1, 1, 1, 2, 3))
        return self._sent("bytes", method, [self._damaged(method, chance) for _ in range(count)], chance)

    def _damaged(self, method: Method, chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return chance.randbytes(chance.choice((0, 1, 2, 10, 100, 5000)))
        data = bytearray(self._filled(method.request, chance).SerializeToString() or b"\n\0")
        for _ in range(chance.choice((1, 2, 5))):
            place = chance.randrange(len(data) + 1)
            wrong = chance.choice((b"", b"\xff" * 10, b"\x0b" * 200, b"\x0a\xff\xff\xff\xff\x07", chance.randbytes(4)))
            data[place : place + chance.choice((0, 1, 4))] = wrong
        return bytes(data)

    def _fields(self, chance: random.Random) -> Case:
        """Well-formed messages with anything in their fields."""
        method = chance.choice(self._methods)
        count = 1 if not method.path.endswith("StreamingRecognize") else chance.choice((1, 2, 3))
        messages = [self._filled(method.request, chance).SerializeToString() for _ in range(count)]
        return self._sent("fields", method, messages, chance)

    def _false_audio(self, chance: random.Random) -> Case:
        """A request that is right but for a few fields, with audio that is not what it says."""
        audio = false_audio.falsified(self._files, chance)
        return self._recognition("audio", audio, chance, chance.choice((0, 0, 1, 2)))

    def _bomb(self, chance: random.Random) -> Case:
        kind = chance.choice((*sorted(self._bombs), "gzip"))
        if kind == "gzip":  # gRPC's own compression
            return Case("bombs", chance.choice(self._speech).path, (bytes(48 << 20),), compressed=True)
        return self._recognition("bombs", self._bombs[kind], chance, 0)

    def _order(self, chance: random.Random) -> Case:
        """Configurations and audio in any order and size, often ended in the middle of it."""
        method = chance.choice([method for method in self._speech if "Streaming" in method.path] or self._speech)
        opening, audio = self._opening(method, chance, 0), self._files["pcm"]
        messages = [opening] if chance.random() < 0.8 else []
        for _ in range(chance.choice((0, 1, 3, 20))):
            size = chance.choice((0, 1, 3199, 3200, 3201, 48000))
            messages.append(opening if chance.random() < 0.1 else self._audio_message(method, audio[:size]))
        cancelled = chance.randrange(len(messages) + 1) if chance.random() < 0.5 else None
        seconds = chance.choice((0.001, 0.01, 0.1)) if cancelled is None and chance.random() < 0.3 else None
        return Case("order", method.path, tuple(messages), (), seconds, cancelled)

    def _connection(self, chance: random.Random) -> Case:
        """No call at all: bytes that are no HTTP/2, or frames that make no sense after its preface."""
        sent = [chance.choice((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", chance.randbytes(24)))]
        for _ in range(chance.choice((0, 1, 5))):
            size = chance.choice((0, 4, 8, 16385))
            head = size.to_bytes(3, "big") + chance.randbytes(2) + chance.choice((bytes(4), chance.randbytes(4)))
            sent.append(head + chance.randbytes(size))
        return Case("connections", "", tuple(sent))

    def _metadata(self, chance: random.Random) -> Case:
        pairs: list[tuple[str, str | bytes]] = []
        for _ in range(chance.choice((1, 2, 5))):
            name = chance.choice(_METADATA_NAMES)
            text = chance.choice(_TEXTS)[:3000].encode("ascii", "ignore").decode()
            printable = "".join(each for each in text if each.isprintable()).strip()
            pairs.append((name, chance.choice((printable, str(chance.choice(_REALS)), str(chance.choice(_LONG))))))
        if chance.random() < 0.2:
            pairs.append(("trace-bin", chance.randbytes(50)))
        case = self._recognition("metadata", self._files["pcm"][:6400], chance, 0)
        return Case(case.kind, case.path, case.messages, tuple(pairs))

    def _recognition(self, kind: str, audio: bytes, chance: random.Random, wrong: int) -> Case:
        method = chance.choice(self._speech)
        opening = self._opening(method, chance, wrong)
        if "Streaming" not in method.path:
            return self._sent(kind, method, [opening + self._audio_message(method, audio)], chance)
        size = chance.choice((100, 3200, 100000)) if len(audio) < 200000 else 100000
        pieces = [self._audio_message(method, audio[at : at + size]) for at in range(0, len(audio), size)]
        return self._sent(kind, method, [opening, *pieces], chance)

    def _opening(self, method: Method, chance: random.Random, wrong: int) -> bytes:
        """A request with a configuration as clients send it, but for `wrong` random changes."""
        request: Any = message_factory.GetMessageClass(method.request)()
        config = request.streaming_config.config if "Streaming" in method.path else request.config
        config.language_code = "en-US"
        config.encoding = chance.choice((0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5, 6, 8, 9, 10, 20))
        config.sample_rate_hertz = chance.choice((0, 0, 0, 8000, 16000, 16000, 48000))
        config.audio_channel_count = chance.choice((0, 0, 0, 0, 1, 2, 8, 9))
        for _ in range(wrong):
            self._set(config, chance.choice(config.DESCRIPTOR.fields), chance, 1)
        return bytes(request.SerializeToString())

    def _audio_message(self, method: Method, audio: bytes) -> bytes:
        request: Any = message_factory.GetMessageClass(method.request)()
        if "Streaming" in method.path:
            request.audio_content = audio
        elif method.request.fields_by_name["audio"].message_type:
            request.audio.content = audio
        else:
            request.audio = audio
        return bytes(request.SerializeToString())

    def _sent(self, kind: str, method: Method, messages: Sequence[bytes], chance: random.Random) -> Case:
        seconds = 0.2 if method.endless else None
        cancel = chance.randrange(len(messages) + 1) if chance.random() < 0.02 else None
        return Case(kind, method.path, tuple(messages), (), seconds, cancel)

    def _filled(self, descriptor: Descriptor, chance: random.Random, depth: int = 0) -> Message:
        message = message_factory.GetMessageClass(descriptor)()
        share = chance.choice((0.1, 0.4, 0.8))
        for field in descriptor.fields:
            if chance.random() < share:
                self._set(message, field, chance, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, chance: random.Random, depth: int) -> None:
        count = chance.choice((0, 1, 1, 2, 3)) if depth else chance.choice((0, 1, 2, 3, 300))
        if field.message_type and field.message_type.GetOptions().map_entry:
            for _ in range(count):
                if field.message_type.fields_by_name["value"].message_type is None:
                    getattr(message, field.name)[chance.choice(_TEXTS)] = chance.choice(_TEXTS)
        elif field.message_type:
            if depth < _SMALL:
                for _ in range(count if field.is_repeated else 1):
                    inner = self._filled(field.message_type, chance, depth + 1)
                    target = getattr(message, field.name)
                    (target.add() if field.is_repeated else target).CopyFrom(inner)
        elif field.is_repeated:
            getattr(message, field.name).extend(self._value(field, chance) for _ in range(count))
        else:
            setattr(message, field.name, self._value(field, chance))

    def _value(self, field: FieldDescriptor, chance: random.Random) -> object:
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            is_bytes = field.type == FieldDescriptor.TYPE_BYTES
            return false_audio.falsified(self._files, chance) if is_bytes else chance.choice(_TEXTS)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
            return chance.choice(_REALS)
        if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM):
            return chance.choice(_NUMBERS)
        number = chance.choice(_LONG)
        unsigned = {FieldDescriptor.CPPTYPE_UINT32: 2**32, FieldDescriptor.CPPTYPE_UINT64: 2**64}
        return number % unsigned[kind] if kind in unsigned else number
