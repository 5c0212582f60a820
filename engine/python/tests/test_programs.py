"""Python programs beside real engines on loopback. Environment: SEQCAST_ENGINE is the engine's program."""

import array
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import seqcast
from seqcast import Event, EventKind, Message, Position, Publisher, Subscriber

ENGINE = os.environ["SEQCAST_ENGINE"]
EXAMPLES = Path(__file__).parent.parent / "examples"
LONG = 30.0


class Engine:
    """A server, an archive and a client in one engine, with a directory that outlives it."""

    def __init__(self, ring: str = "1 MiB", lane: str = "1 MiB") -> None:
        self.files = tempfile.TemporaryDirectory(prefix="seqcast-python-")
        home = Path(self.files.name)
        self.socket = home / "socket"
        pid = os.getpid()
        stream = f"239.86.{pid >> 8 & 255}.{pid & 255}:21950"
        self.config = home / "engine.toml"
        self.config.write_text(f"""
            [engine]
            interface = "lo"
            link = "udp"
            idle = "block"
            [programs]
            socket = "{self.socket}"
            ring = "{ring}"
            lane = "{lane}"
            [[publish]]
            stream = "{stream}"
            source = {{ program = true }}
            state = "{home / "server"}"
            linger_ms = 0
            [[subscribe]]
            stream = "{stream}"
            sink = {{ program = true }}
            [[archive]]
            stream = "{stream}"
            dir = "{home / "archive"}"
        """)
        self.stream = stream
        self.start()

    def start(self) -> None:
        self.log = open(self.config.with_suffix(".log"), "w+")
        self.process = subprocess.Popen([ENGINE, "run", "--config", self.config], stdout=self.log, stderr=self.log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.files.cleanup()

    def publisher(self) -> Publisher:
        while self.process.poll() is None:
            try:
                return Publisher(self.socket, patience=1)
            except seqcast.Gone:
                pass
        self.log.seek(0)
        raise AssertionError(f"the engine has ended: {self.log.read()}")


def messages(subscriber: Subscriber) -> Iterator[Message]:
    return (m for m in subscriber.until_idle(LONG) if isinstance(m, Message))


class Programs(unittest.TestCase):
    def test_messages_come_once_and_in_order_copied_and_in_place(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            self.assertEqual(publisher.stream, engine.stream)
            for n in range(5000):
                text = str(n).encode()
                if n % 2:
                    publisher.publish(text, "py.copied", LONG)
                    continue
                while True:
                    try:
                        with publisher.claim(len(text), "py.placed") as place:
                            place[:] = text
                        break
                    except seqcast.Full:
                        publisher.flush(LONG)
            publisher.flush(LONG)
            with Subscriber(engine.socket, start="session", subjects=["py.*"]) as subscriber:
                for n, message in zip(range(5000), messages(subscriber)):
                    self.assertEqual(bytes(message.payload), str(n).encode())
                    self.assertEqual(message.sequence, n + 1)
                    self.assertEqual(message.subject, "py.copied" if n % 2 else "py.placed")
                    self.assertEqual(subscriber.position, message.position)
                    self.assertGreater(message.time_ns, 1_700_000_000 * 10**9)

    def test_a_payload_is_in_place_until_the_next_message(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            for n in range(4):
                publisher.publish(b"message %d" % n, timeout=LONG)
            subscriber = Subscriber(engine.socket, start="session")
            arrivals = messages(subscriber)
            first = next(arrivals)
            view = first.payload
            self.assertTrue(view.readonly)
            self.assertEqual((view, len(first), view is first.payload), (b"message 0", 9, True))
            second = next(arrivals)
            with self.assertRaises(ValueError):
                view.tobytes()
            for gone in (lambda: first.payload, lambda: bytes(first)):
                with self.assertRaisesRegex(ValueError, "asked for the next"):
                    gone()
            # What was made of the view holds the subscriber back until it is given up; nothing is lost by it.
            kept = second.payload[3:]
            for use in (subscriber.receive, subscriber.close):
                with self.assertRaisesRegex(BufferError, "still in use"):
                    use()
            self.assertEqual(kept, b"sage 1")
            kept.release()
            third = next(arrivals)
            self.assertEqual(bytes(third), b"message 2")
            # The way around the view that was given.
            place = third.payload.obj
            fourth = next(arrivals)
            with self.assertRaisesRegex(BufferError, "given back"):
                memoryview(place)
            # A view outlives the subscriber that nobody closed.
            last = memoryview(fourth.payload)
            del subscriber, arrivals, first, second, third, fourth
            gc.collect()
            self.assertEqual(last, b"message 3")

    def test_a_claim_is_published_at_the_end_of_its_block_or_not_at_all(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            with self.assertRaisesRegex(ZeroDivisionError, "division"), publisher.claim(4) as place:
                place[:] = b"lost"
                1 / 0
            publisher.claim(4).abandon()
            publisher.claim(4)  # never entered
            claim = publisher.claim(4)
            with claim as place:
                place[:] = b"good"
                for use in (lambda: publisher.publish(b"x"), lambda: publisher.claim(1), publisher.close):
                    with self.assertRaisesRegex(RuntimeError, "a claim is open"):
                        use()
            with self.assertRaises(ValueError):
                place[0] = 0
            with self.assertRaisesRegex(RuntimeError, "entered before"), claim:
                pass
            with self.assertRaises(BufferError), (claim := publisher.claim(4)) as place:
                kept = memoryview(place)
            kept.release()
            claim.abandon()
            publisher.publish(b"last", timeout=LONG)
            with Subscriber(engine.socket, start="session") as subscriber:
                self.assertEqual([bytes(m) for m in islice(messages(subscriber), 2)], [b"good", b"last"])

    def test_everything_with_bytes_can_be_published(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            numbers = array.array("d", [1.5, -2.0])
            for payload in (b"", bytearray(b"array"), memoryview(b"abcdef")[2:4], numbers):
                publisher.publish(payload, timeout=LONG)
            with self.assertRaises(BufferError):
                publisher.publish(memoryview(b"abcdef")[::2])
            with self.assertRaises(TypeError):
                publisher.publish("text")  # type: ignore[arg-type]
            with Subscriber(engine.socket, start="session") as subscriber:
                got = [bytes(m) for m in islice(messages(subscriber), 4)]
            self.assertEqual(got, [b"", b"array", b"cd", numbers.tobytes()])

    def test_what_makes_no_sense_is_refused(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            with self.assertRaises(seqcast.TooLarge) as raised:
                publisher.publish(bytes(publisher.max_message + 1))
            self.assertEqual(raised.exception.code, 4)
            for subject in ("a..b", "a.*", "a" * 300):
                with self.assertRaises(seqcast.BadSubject):
                    publisher.publish(b"", subject)
            for timeout in (-1.0, float("nan")):
                with self.assertRaisesRegex(ValueError, "time in seconds"):
                    publisher.flush(timeout)
            with self.assertRaises(OverflowError):
                publisher.claim(-1)
            with self.assertRaisesRegex(ValueError, "start is"):
                Subscriber(engine.socket, start="yesterday")  # type: ignore[arg-type]
            with self.assertRaisesRegex(ValueError, "group and a port"):
                Subscriber(engine.socket, stream="here")
            with self.assertRaises(seqcast.Refused) as refused:
                Subscriber(engine.socket, stream="239.1.2.3:4")
            self.assertEqual(refused.exception.code, 19)
            with self.assertRaises(seqcast.BadSubject):
                Subscriber(engine.socket, subjects=["a.>.b"])
            publisher.close()
            with self.assertRaisesRegex(ValueError, "closed"):
                publisher.publish(b"")
        with self.assertRaisesRegex(seqcast.Gone, "/nonexistent/socket"):
            Publisher("/nonexistent/socket", patience=0.2)

    def test_a_full_lane_is_said_and_waited_for(self) -> None:
        with Engine(lane="64 KiB") as engine, engine.publisher() as publisher:
            os.kill(engine.process.pid, signal.SIGSTOP)
            with self.assertRaises(seqcast.Full):
                while True:
                    publisher.publish(bytes(1000), timeout=0)
            with self.assertRaises(seqcast.Full):
                publisher.claim(1000)
            with self.assertRaises(seqcast.Timeout):
                publisher.publish(bytes(1000), timeout=0.1)
            os.kill(engine.process.pid, signal.SIGCONT)
            publisher.publish(bytes(1000), timeout=LONG)
            publisher.flush(LONG)

    def test_programs_go_on_when_the_engine_was_killed(self) -> None:
        with Engine() as engine, engine.publisher() as publisher:
            subscriber = Subscriber(engine.socket, start="session")
            publisher.publish(b"before", timeout=LONG)
            self.assertEqual(bytes(next(messages(subscriber))), b"before")
            engine.kill()
            kinds: list[EventKind] = []
            while EventKind.ENGINE_GONE not in kinds:
                event = subscriber.receive(LONG)
                assert isinstance(event, Event)
                kinds.append(event.kind)
            self.assertFalse(subscriber.attached)
            engine.start()
            publisher.publish(b"after", timeout=LONG)
            publisher.flush(LONG)
            for received in subscriber.until_idle(LONG):
                if isinstance(received, Message):
                    self.assertEqual(bytes(received), b"after")
                    break
                kinds.append(received.kind)
            self.assertIn(EventKind.ENGINE_BACK, kinds)
            self.assertNotIn(EventKind.LOST, kinds)
            seen = [publisher.poll(), publisher.poll()]
            self.assertEqual([e and e.kind for e in seen], [EventKind.ENGINE_GONE, EventKind.ENGINE_BACK])

    def test_who_is_too_slow_gets_what_was_missed_or_hears_of_it(self) -> None:
        with Engine(ring="256 KiB") as engine, engine.publisher() as publisher:
            patient = Subscriber(engine.socket, start="session")
            hasty = Subscriber(engine.socket, recover=False)
            publisher.publish(b"0", timeout=LONG)
            for subscriber in (patient, hasty):
                self.assertEqual(bytes(next(messages(subscriber))), b"0")
            for n in range(1, 3000):
                publisher.publish(str(n).encode() + bytes(900), timeout=LONG)
            publisher.flush(LONG)
            numbers = [m.sequence for m in islice(messages(patient), 2999)]
            self.assertEqual(numbers, list(range(2, 3001)))
            missed = range(0)
            for received in hasty.until_idle(LONG):
                if isinstance(received, Message):
                    self.assertEqual(received.sequence, missed.stop)
                    break
                if received.kind == EventKind.MISSED:
                    missed = range(received.first, received.last + 1)
            self.assertEqual(missed.start, 2)

    def test_a_wait_lets_others_run_and_can_be_interrupted(self) -> None:
        with Engine() as engine, engine.publisher(), Subscriber(engine.socket) as subscriber:
            self.assertIsNone(subscriber.receive(0))
            problems: list[BaseException] = []

            def meddle() -> None:
                try:
                    while True:
                        subscriber.position
                except RuntimeError as problem:
                    problems.append(problem)
                signal.raise_signal(signal.SIGINT)

            other = threading.Thread(target=meddle)
            # Who starts the tests in the background may have had interrupts ignored.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            self.addCleanup(signal.signal, signal.SIGINT, before)
            with self.assertRaises(KeyboardInterrupt):
                other.start()
                while True:
                    subscriber.receive()
            other.join()
            self.assertIn("another thread", str(problems[0]))

    def test_positions_and_events_are_values(self) -> None:
        a, b = Position(1, 2), Position(2, 1)
        self.assertTrue(a < b and a == Position(1, 2) and len({a, b, Position(1, 2)}) == 2)
        self.assertEqual(repr(a), "Position(session=1, sequence=2)")
        self.assertEqual(int(EventKind.LOST), 3)
        match a:
            case Position(session, sequence):
                self.assertEqual((session, sequence), (1, 2))

    def test_the_examples_run(self) -> None:
        lines = [f"line {n}" for n in range(1000)]
        with Engine() as engine:
            run = [sys.executable, str(EXAMPLES / "publish.py"), str(engine.socket), "py.example"]
            subprocess.run(run, input="\n".join(lines), text=True, check=True, timeout=LONG)
            run = [sys.executable, str(EXAMPLES / "subscribe.py"), str(engine.socket), "py.>"]
            got = subprocess.run(run, capture_output=True, text=True, check=True, timeout=LONG)
        wanted = [f"{n} py.example {line}" for n, line in enumerate([*lines, "the end"], 1)]
        self.assertEqual(got.stdout.splitlines(), wanted)


if __name__ == "__main__":
    unittest.main()
