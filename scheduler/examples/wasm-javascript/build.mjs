// Makes greenest.wasm: node build.mjs
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const source = await readFile(new URL("greenest.js", import.meta.url), "utf8");
const { component } = await componentize(source, {
  witPath: new URL("../../wasm/wit", import.meta.url).pathname,
  worldName: "scheduler-plugin",
  // A plugin needs none of it, and is given little of it.
  disableFeatures: ["stdio", "random", "clocks", "http", "fetch-event"],
});
await writeFile(new URL("greenest.wasm", import.meta.url), component);
