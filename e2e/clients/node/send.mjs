// Sends events with the PostHog library for Node.js, and prints an account of them as one JSON object.
//
//     node send.mjs --host http://localhost:8000 --token phc_... --count 500 --run-id r1
//
// One event in ten is an identify, the others are those of a web shop. The first half goes uncompressed, the second half
// as gzip. Every event has the property `run_id`, and those of the shop a number of their own. The exit code is 1 when
// an event was not accepted.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { parseArgs } from "node:util";

import { PostHog } from "posthog-node";

const NAMES = ["$pageview", "product viewed", "product added", "order completed"];

/** Version of the installed library: its package.json is above its entry point, and not among its exports. */
function libraryVersion() {
  const entry = createRequire(import.meta.url).resolve("posthog-node");
  const end = entry.lastIndexOf(`${path.sep}posthog-node${path.sep}`) + "posthog-node".length + 2;
  return JSON.parse(readFileSync(path.join(entry.slice(0, end), "package.json"), "utf8")).version;
}

function send(client, number) {
  const distinctId = `visitor-${number % 97}`;
  if (number % 10 === 9) {
    const plan = number % 20 === 9 ? "free" : "paid";
    client.identify({ distinctId, properties: { plan } });
    return;
  }
  client.capture({
    distinctId,
    event: NAMES[number % NAMES.length],
    timestamp: new Date(),
    properties: {
      number,
      $current_url: `https://shop.example.com/products/${number % 211}`,
      price: 19.5,
      title: 'Ünïcode ☕ "quoted"',
    },
  });
}

const { values } = parseArgs({
  options: {
    host: { type: "string" },
    token: { type: "string" },
    count: { type: "string", default: "500" },
    "run-id": { type: "string" },
  },
});
const count = Number(values.count);
const runId = values["run-id"];
if (!values.host || !values.token || !runId || !Number.isInteger(count)) {
  console.error("usage: node send.mjs --host URL --token TOKEN --run-id ID [--count N]");
  process.exit(2);
}

const errors = [];
let accepted = 0;
const half = Math.floor(count / 2);
for (const [disableCompression, from, to] of [
  [true, 0, half],
  [false, half, count],
]) {
  const client = new PostHog(values.token, {
    host: values.host,
    flushAt: 100,
    flushInterval: 200,
    disableCompression,
    before_send: (event) => ({ ...event, properties: { ...event.properties, run_id: runId } }),
  });
  client.on("error", (error) => errors.push(String(error)));
  client.on("flush", (messages) => (accepted += messages.length));
  for (let number = from; number < to; number++) {
    send(client, number);
    // The library's queue has room for 1000 events and drops the oldest beyond that.
    if (number % 100 === 99) await client.flush();
  }
  await client.shutdown();
}

console.log(
  JSON.stringify({ client: "posthog-node", version: libraryVersion(), run_id: runId, sent: count, accepted, errors }),
);
process.exit(accepted === count ? 0 : 1);
