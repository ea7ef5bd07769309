// Greenest: prefers nodes whose power is clean, and rejects those whose power is not clean enough.
//
// A node says by a label how many grams of CO2 a kilowatt hour of it takes. Arguments: {"label": "example.com/carbon-intensity", "most": 400}.
import { write } from "gantry:scheduler/log@0.1.0";

let label = "example.com/carbon-intensity";
let most = Infinity;

// What a node that says nothing is thought to take.
const UNKNOWN = 1000;
const grams = [];

export const plugin = {
  configure(json) {
    const { label: named = label, most: limit = most, ...unknown } = JSON.parse(json);
    const names = Object.keys(unknown);
    if (names.length > 0) throw `unknown arguments: ${names.join(", ")}`;
    if (typeof named !== "string" || named === "") throw `label: Invalid value: ${JSON.stringify(named)}: must be a label's name`;
    if (typeof limit !== "number" || limit < 0) throw `most: Invalid value: ${JSON.stringify(limit)}: must be a number that is not negative`;
    [label, most] = [named, limit];
    write("info", `prefers nodes with a small ${label}`);
    return {
      points: { filter: true, score: true },
      podFields: {},
      nodeFields: { labels: true },
      scope: "node",
      normalize: "by-max-reversed",
    };
  },

  updateNodes(nodes) {
    for (const { slot, labels } of nodes) {
      const text = labels.find(([key]) => key === label)?.[1];
      grams[slot] = /^[0-9]{1,9}$/.test(text ?? "") ? Number(text) : UNKNOWN;
    }
  },

  filter(slots, _pod) {
    return {
      verdicts: Uint16Array.from(slots, (slot) => (grams[slot] > most ? 1 : 0)),
      rejections: [{ code: "unresolvable", reason: "node(s) had power that is not clean enough" }],
    };
  },

  score(slots, _pod) {
    return BigInt64Array.from(slots, (slot) => BigInt(grams[slot]));
  },
};
