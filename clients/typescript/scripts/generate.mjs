// Makes src/messages.ts: a type for everything that the server sends and accepts, from the server's own description.
//
//   node scripts/generate.mjs            asks the Python in .venv, or the one that PYTHON names
//   node scripts/generate.mjs a.json     reads a file with {"openapi": ..., "asyncapi": ...}
//   ... --print                          prints it instead of writing the file

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { compile } from "json-schema-to-typescript";

const here = (path) => new URL(path, import.meta.url);
const ASK = "import json; from tapeline.web.description import asyncapi, openapi; print(json.dumps({'openapi': openapi(), 'asyncapi': asyncapi()}))";
const files = process.argv.slice(2).filter((word) => !word.startsWith("--"));

function described() {
  if (files[0]) return JSON.parse(readFileSync(files[0], "utf8"));
  const python = process.env.PYTHON ?? here("../../../.venv/bin/python").pathname;
  return JSON.parse(execFileSync(python, ["-c", ASK], { encoding: "utf8", maxBuffer: 1 << 26 }));
}

/** The parameters of an address as one object. */
function query(parameters, title) {
  const properties = Object.fromEntries(parameters.map(({ name, schema }) => [name, schema]));
  const required = parameters.filter((one) => one.required).map((one) => one.name);
  return { title, type: "object", properties, required, additionalProperties: false };
}

const { openapi, asyncapi } = described();
const definitions = { ...openapi.components.schemas, ...asyncapi.components.schemas };
for (const [path, { get }] of Object.entries(openapi.paths)) {
  if (!get?.parameters?.length) continue;
  const name = path.split("/").pop();
  const title = `${name[0].toUpperCase()}${name.slice(1)}Query`;
  definitions[title] = query(get.parameters, title);
}
const sent = asyncapi.operations.get.messages.map(({ $ref }) => ({ $ref: `#/$defs/${$ref.split("/").pop()}` }));
const message = { title: "Message", description: "Any message of the live feed.", oneOf: sent };
const every = Object.fromEntries(Object.keys(definitions).map((name) => [name, { $ref: `#/$defs/${name}` }]));
const schema = { title: "Schemas", type: "object", properties: { Message: message, ...every }, $defs: definitions };
/** An object of which nothing more is said may have any keys. */
const open = (_, some) => (some?.type === "object" && !some.properties && some.additionalProperties === undefined ? { ...some, additionalProperties: true } : some);
const text = await compile(JSON.parse(JSON.stringify(schema).replaceAll("#/components/schemas/", "#/$defs/"), open), "Schemas", {
  additionalProperties: false,
  ignoreMinAndMaxItems: true,
  bannerComment: "// Made from the server's description by `npm run generate`. Do not edit.",
  style: { printWidth: 140 },
});
if (process.argv.includes("--print")) process.stdout.write(text);
else writeFileSync(here("../src/messages.ts"), text);
