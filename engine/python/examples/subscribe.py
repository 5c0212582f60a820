"""Prints a session from its first message to one that says "the end": subscribe.py SOCKET [PATTERN]...

What happens beside the messages is said on standard error.
"""

import sys

import seqcast


def main(socket: str, *patterns: str) -> None:
    with seqcast.Subscriber(socket, start="session", subjects=patterns, patience=10) as subscriber:
        for received in subscriber:
            match received:
                case seqcast.Message(sequence, subject, payload):
                    # The payload is a view, good until the next message is asked for.
                    text = str(payload, "utf-8")
                    print(sequence, subject, text)
                    if text == "the end":
                        break
                case seqcast.Event(seqcast.EventKind.LOST):
                    print(f"lost: {received.first} to {received.last}", file=sys.stderr)
                case event:
                    print(event, file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
