"""Sends events with the PostHog Python library, and prints an account of them as one JSON object.

    python send.py --host http://localhost:8000 --token phc_... --count 500 --run-id r1

One event in ten is an identify (`$set`), the others are those of a web shop. The first half goes uncompressed, the
second half as gzip. Every event has the property `run_id`, and those of the shop a number of their own. The exit code
is 1 when an event was not accepted.
"""

import argparse
import json
import sys
from datetime import datetime, timezone

from posthog import Posthog
from posthog.version import VERSION

NAMES = ["$pageview", "product viewed", "product added", "order completed"]


def send(client, numbers):
    """Hands events to the library and returns how many it took."""
    taken = 0
    for number in numbers:
        person = f"visitor-{number % 97}"
        if number % 10 == 9:
            plan = "free" if number % 20 == 9 else "paid"
            uuid = client.set(distinct_id=person, properties={"plan": plan})
        else:
            properties = {
                "number": number,
                "$current_url": f"https://shop.example.com/products/{number % 211}",
                "price": 19.5,
                "title": 'Ünïcode ☕ "quoted"',
            }
            uuid = client.capture(
                NAMES[number % len(NAMES)],
                distinct_id=person,
                properties=properties,
                timestamp=datetime.now(timezone.utc),
            )
        taken += uuid is not None
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="base URL of capture")
    parser.add_argument("--token", required=True, help="token of the project")
    parser.add_argument("--count", type=int, default=500, help="events to send")
    parser.add_argument("--run-id", required=True, help="value of the property run_id")
    arguments = parser.parse_args()

    failed = []
    errors = []

    def on_error(error, batch):
        failed.extend(batch)
        errors.append(f"{type(error).__name__}: {error}")

    taken = 0
    half = arguments.count // 2
    for gzip, numbers in [(False, range(half)), (True, range(half, arguments.count))]:
        client = Posthog(
            arguments.token,
            host=arguments.host,
            on_error=on_error,
            gzip=gzip,
            flush_interval=0.2,
            max_queue_size=arguments.count + 1,
            super_properties={"run_id": arguments.run_id},
        )
        taken += send(client, numbers)
        client.flush()
        client.shutdown()

    account = {
        "client": "posthog-python",
        "version": VERSION,
        "run_id": arguments.run_id,
        "sent": arguments.count,
        "accepted": taken - len(failed),
        "errors": errors,
    }
    print(json.dumps(account))
    return 0 if account["accepted"] == arguments.count else 1


if __name__ == "__main__":
    sys.exit(main())
