#!/usr/bin/env python3
"""Plays the visitors of a web shop and sends what they do with the PostHog library.

Each visitor arrives, looks around, and some register and buy. Everything but the times, the uuids and the run id
follows from the seed, so two runs tell the same story. Now and then a request is broken in a way that clients in the
field break them; the library would not send those, so they go out by plain HTTP, and the shop says what was answered.

    python send.py --host http://127.0.0.1:8000 --token phc_quickstart_web_shop --run-id my-run --events 3000

Every event has the property `run_id`, so that it can be found again, and `sent_at_ms`, when the shop handed it to the
library (milliseconds since 1970). Exit code 0: the library delivered every event and each broken request got an answer.
"""

import argparse
import http.client
import json
import logging
import random
import sys
import threading
import time
import uuid
from collections import Counter
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

from posthog import Posthog

PRODUCTS = [
    # sku, name, category, price
    ("BK-1001", "City bike", "bikes", 649.00),
    ("BK-1002", "Touring bike", "bikes", 1199.00),
    ("HL-2001", "Helmet", "safety", 59.90),
    ("LT-2002", "Dynamo light", "safety", 42.50),
    ("LK-2003", "Folding lock", "safety", 79.95),
    ("BG-3001", "Pannier bag", "bags", 89.00),
    ("BG-3002", "Handlebar bag", "bags", 49.90),
    ("TR-4001", "Tyre 28 inch", "parts", 34.90),
    ("CH-4002", "Chain", "parts", 27.99),
    ("BR-4003", "Brake pads", "parts", 14.49),
    ("PM-5001", "Floor pump", "tools", 39.00),
    ("MT-5002", "Multi-tool", "tools", 24.95),
]
BROWSERS = [
    ("Chrome", 141, "Windows", "Desktop", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/141.0 Safari/537.36"),
    ("Safari", 19, "iOS", "Mobile", "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) Version/19.1 Safari/604.1"),
    ("Firefox", 144, "Linux", "Desktop", "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0"),
    ("Edge", 141, "Windows", "Desktop", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/141.0 Edg/141.0"),
    ("Chrome", 141, "Android", "Mobile", "Mozilla/5.0 (Linux; Android 15) Chrome/141.0 Mobile Safari/537.36"),
]
BOT = ("", 0, "", "Desktop", "Mozilla/5.0 (compatible; ExampleBot/2.1; +https://bot.example.com)")
SOURCES = [
    ("direct", ""),
    ("search", "https://search.example.com/"),
    ("newsletter", ""),
    ("social", "https://social.example.com/"),
]
COUNTRIES = ["DE", "FR", "NL", "AT", "DK", "PL"]

# One visitor in so many is a crawler, and one request in so many is broken.
BOT_EVERY = 25
BROKEN_EVERY = 100


class Visitor:
    """One person on one device: who it is, and what every event of it says."""

    def __init__(self, rng, number):
        self.bot = number % BOT_EVERY == BOT_EVERY - 1
        browser, version, system, device, agent = BOT if self.bot else rng.choice(BROWSERS)
        source, referrer = rng.choice(SOURCES)
        self.distinct_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        self.email = f"visitor{number}@example.com"
        self.country = rng.choice(COUNTRIES)
        self.common = {
            "$session_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "$device_id": self.distinct_id,
            "$browser": browser,
            "$browser_version": version,
            "$os": system,
            "$device_type": device,
            "$raw_user_agent": agent,
            "$ip": f"192.0.2.{number % 254 + 1}",
            "$referrer": referrer,
            "utm_source": source,
        }


def visit(rng, number):
    """What one visitor does: (event, distinct id, properties), in order."""
    visitor = Visitor(rng, number)

    def page(path):
        url = f"https://shop.example.com{path}"
        return "$pageview", visitor.distinct_id, {**visitor.common, "$current_url": url, "$pathname": path}

    yield page("/")
    if visitor.bot:
        for sku, *_ in PRODUCTS:
            yield page(f"/product/{sku}")
        return
    cart = []
    for _ in range(rng.randint(1, 5)):
        sku, name, category, price = rng.choice(PRODUCTS)
        item = {"sku": sku, "name": name, "category": category, "price": price}
        yield page(f"/product/{sku}")
        yield "product viewed", visitor.distinct_id, {**visitor.common, **item}
        if rng.random() < 0.4:
            item = {**item, "quantity": rng.randint(1, 3)}
            cart.append(item)
            yield "product added", visitor.distinct_id, {**visitor.common, **item}
    if not cart or rng.random() < 0.35:
        return
    anonymous, visitor.distinct_id = visitor.distinct_id, f"customer-{number}"
    person = {"email": visitor.email, "country": visitor.country, "plan": rng.choice(["guest", "member"])}
    yield "$identify", visitor.distinct_id, {**visitor.common, "$anon_distinct_id": anonymous, "$set": person}
    yield "checkout started", visitor.distinct_id, {**visitor.common, "items": len(cart)}
    if rng.random() < 0.2:
        yield "payment failed", visitor.distinct_id, {**visitor.common, "reason": rng.choice(["declined", "timeout"])}
        return
    total = round(sum(item["price"] * item["quantity"] for item in cart), 2)
    order = {"order_id": f"O-{number:06d}", "total": total, "currency": "EUR", "products": cart, "email": visitor.email}
    yield "order completed", visitor.distinct_id, {**visitor.common, **order}


def broken_requests(token, run_id):
    """Bodies that clients in the field have sent: (what is wrong, body)."""
    properties = {"run_id": run_id}

    def event(**fields):
        sound = {"api_key": token, "event": "broken", "distinct_id": "broken", "properties": properties}
        return json.dumps(sound | fields)

    without_id = json.dumps({"api_key": token, "event": "broken", "properties": properties})
    without_token = json.dumps({"event": "broken", "distinct_id": "broken", "properties": properties})
    # One that the API cannot take beside two that it can, and one that a transformation step of the example fails on.
    good = {"event": "coupon used", "distinct_id": "neighbour", "properties": properties}
    mixed = json.dumps({"api_key": token, "batch": [good, {"event": "no id", "properties": properties}, good]})
    odd_email = event(event="newsletter", properties={**properties, "email": 4711})
    return [
        ("one bad in a batch", mixed),
        ("email is a number", odd_email),
        ("invalid JSON", event()[:-7]),
        ("no distinct_id", without_id),
        ("empty distinct_id", event(distinct_id="")),
        ("empty event name", event(event="")),
        ("no token", without_token),
        ("unknown token", event(api_key="phc_of_another_shop")),
        ("empty batch", json.dumps({"api_key": token, "batch": []})),
        ("empty body", ""),
    ]


class Account:
    """What the library handed over, and what the server answered to broken requests."""

    def __init__(self):
        self.lock = threading.Lock()
        self.errors = Counter()
        self.lost = 0
        self.answers = Counter()

    def on_error(self, error, batch):
        """Called by the library for a batch that it gives up."""
        with self.lock:
            self.errors[str(error)[:120]] += 1
            self.lost += len(batch)


def post(host, body):
    """Status that the server answers to a body."""
    parts = urlsplit(host)
    connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connection_type(parts.hostname, parts.port, timeout=15)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{parts.path.rstrip('/')}/i/v0/e/", body.encode(), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def progress(text, last=False):
    """One line that is written over on a terminal, and now and then a line elsewhere."""
    if sys.stdout.isatty():
        print(f"\r    {text}\033[K", end="\n" if last else "", flush=True)
    elif last:
        print(f"    {text}", flush=True)


def send(arguments):
    """Sends everything; returns the account, the number of events and their names."""
    rng = random.Random(arguments.seed)
    account = Account()
    # The library would write every failure to the terminal; the account has them.
    logging.getLogger("posthog").setLevel(logging.CRITICAL)
    client = Posthog(
        arguments.token,
        host=arguments.host,
        on_error=account.on_error,
        gzip=True,
        flush_interval=0.5,
        max_queue_size=100_000,
    )
    broken = broken_requests(arguments.token, arguments.run_id)
    names = Counter()
    sent = 0
    number = 0
    began = time.monotonic()
    while sent < arguments.events:
        # The shop's visitors of the last minutes; the clock of their events never runs ahead.
        at = datetime.now(timezone.utc) - timedelta(seconds=60)
        for event, distinct_id, properties in visit(rng, number):
            if sent == arguments.events:
                break
            at += timedelta(milliseconds=rng.randint(200, 3_000))
            client.capture(
                event,
                distinct_id=distinct_id,
                timestamp=min(at, datetime.now(timezone.utc)),
                uuid=str(uuid.uuid4()),
                properties={**properties, "run_id": arguments.run_id, "sent_at_ms": time.time_ns() // 1_000_000},
            )
            names[event] += 1
            sent += 1
            if sent % BROKEN_EVERY == 0:
                reason, body = broken[(sent // BROKEN_EVERY - 1) % len(broken)]
                account.answers[(reason, post(arguments.host, body))] += 1
            if sent % 100 == 0:
                progress(f"{sent} of {arguments.events} events")
        number += 1
    client.shutdown()
    seconds = time.monotonic() - began
    progress(f"{sent} events of {number} visitors in {seconds:.1f} s", last=True)
    return account, sent, names


def report(account, sent, names):
    """Prints the account."""
    print(f"    sent by the library     {sent}")
    print(f"    accepted                {sent - account.lost}")
    if account.lost:
        print(f"    given up                {account.lost}")
        for error, times in account.errors.most_common():
            print(f"      {times} batches: {error}")
    for event, times in names.most_common():
        print(f"      {event:<22}{times}")
    print(f"    broken requests         {sum(account.answers.values())}")
    for (reason, status), times in sorted(account.answers.items()):
        verdict = "taken, and kept as a dead letter" if status == 200 else "refused"
        print(f"      {reason:<22}{times} x {status} ({verdict})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True, help="URL of capture")
    parser.add_argument("--token", required=True, help="token of the project")
    parser.add_argument("--run-id", default=f"run-{int(time.time())}", help="value of the property run_id")
    parser.add_argument("--events", type=int, default=3_000, help="events that the library sends")
    parser.add_argument("--seed", type=int, default=42, help="another seed makes other visitors")
    arguments = parser.parse_args()
    try:
        account, sent, names = send(arguments)
    except OSError as error:
        sys.exit(f"error: cannot reach {arguments.host}: {error}")
    report(account, sent, names)
    sys.exit(1 if account.lost else 0)


if __name__ == "__main__":
    main()
