"""Publishes lines of standard input: publish.py SOCKET [SUBJECT]."""

import sys

import seqcast


def main(socket: str, subject: str = "") -> None:
    with seqcast.Publisher(socket, name="publish.py", patience=10) as publisher:
        for line in sys.stdin.buffer:
            # A copy; waits for room, or for an engine that is away.
            publisher.publish(line.rstrip(b"\n"), subject)
        with publisher.claim(len(b"the end"), subject) as place:
            # Written where the engine reads it.
            place[:] = b"the end"
        publisher.flush(timeout=10)


if __name__ == "__main__":
    main(*sys.argv[1:])
