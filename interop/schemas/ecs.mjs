// Reads one event a line and writes what ECS has against it, one line for each
// event: a JSON list of complaints. It knows the field table of @elastic/ecs
// and nothing about the product but the name of its own namespace.
import { createInterface } from "node:readline";
import { isIP } from "node:net";
import ecs from "@elastic/ecs";

const fields = ecs.EcsFlat;
const own = "gatebook";
const required = ["@timestamp", "ecs.version", "event.kind", "event.category", "event.type", "event.outcome"];

const types = {
  keyword: (v) => typeof v === "string",
  constant_keyword: (v) => typeof v === "string",
  wildcard: (v) => typeof v === "string",
  text: (v) => typeof v === "string",
  match_only_text: (v) => typeof v === "string",
  boolean: (v) => typeof v === "boolean",
  long: (v) => Number.isInteger(v),
  date: (v) => typeof v === "string" && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(v) && !Number.isNaN(Date.parse(v)),
  ip: (v) => typeof v === "string" && isIP(v) !== 0 && !v.includes("%"),
};

function check(event) {
  const bad = [];
  const seen = new Map();
  const walk = (path, value) => {
    const field = fields[path];
    if (field && field.type !== "object") {
      seen.set(path, value);
      const many = Array.isArray(value);
      if (many !== field.normalize.includes("array")) bad.push(`${path}: ${many ? "is a list" : "is no list"}`);
      const ok = types[field.type];
      for (const v of many ? value : [value]) {
        if (!ok) bad.push(`${path}: type ${field.type} is not known here`);
        else if (!ok(v)) bad.push(`${path}: ${JSON.stringify(v)} is no ${field.type}`);
        else if (typeof v === "string" && field.ignore_above && v.length > field.ignore_above) bad.push(`${path}: is longer than ${field.ignore_above}`);
        const allowed = field.allowed_values ?? [];
        if (allowed.length > 0 && !allowed.some((a) => a.name === v)) bad.push(`${path}: ${JSON.stringify(v)} is not allowed`);
      }
    } else if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      if (path === own) return;
      for (const [key, v] of Object.entries(value)) walk(path ? `${path}.${key}` : key, v);
    } else {
      bad.push(`${path}: is not a field of ECS`);
    }
  };
  walk("", event);
  for (const path of required) if (!seen.has(path)) bad.push(`${path}: is missing`);
  const categories = fields["event.category"].allowed_values.filter((a) => (seen.get("event.category") ?? []).includes(a.name));
  for (const type of seen.get("event.type") ?? []) {
    if (!categories.some((c) => c.expected_event_types.includes(type))) bad.push(`event.type: ${type} does not go with ${seen.get("event.category")}`);
  }
  return bad;
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(check(JSON.parse(line))));
}
