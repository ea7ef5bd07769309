// What the scheduler does, drawn. No framework and no build step: this file is served as it is.
//
// Names of pods, nodes, taints and plugins come from the API and may be anything: they enter the document by textContent alone
// (`text`, `el`). The page reads `scheduling/state` while somebody looks at it, and follows `scheduling/events`.
"use strict";

const BASE = "scheduling";
/** Milliseconds between two looks at the state; longer where reading it takes long. */
const PERIOD = 3000;
/** So many decisions are kept and shown. */
const KEPT = 300;
/** Rows of the table of nodes on a page, and of pods. */
const NODES_A_PAGE = 100;
const PODS_SHOWN = 200;
/** The map is at most this high, as long as cells of the smallest size fit. */
const MAP_HEIGHT = 420;
const SMALLEST_CELL = 6;
const LARGEST_CELL = 28;

/** Steps of the heat map: up to which share, and in words. */
const STEPS = [
  { most: 0, words: "nothing" },
  { most: 0.25, words: "up to 25 %" },
  { most: 0.5, words: "up to 50 %" },
  { most: 0.75, words: "up to 75 %" },
  { most: 0.9, words: "up to 90 %" },
  { most: 1, words: "up to 100 %" },
  { most: Infinity, words: "more than it has" },
];
const UNKNOWN = -1;

const $ = (id) => document.getElementById(id);
const compare = new Intl.Collator(undefined, { numeric: true }).compare;
const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hour12: false });

/** What is shown. */
const view = {
  state: null,
  /** Nodes in the order of the map and of the table, after the filter. */
  nodes: [],
  /** The name of the node the keyboard is at: it stays when nodes come and go. */
  current: null,
  hovered: null,
  columns: 1,
  cell: SMALLEST_CELL,
  page: 0,
  decisions: [],
  last: -1,
  missed: 0,
  paused: false,
  unseen: 0,
  /** When decisions came in the last seconds, and how many. */
  arrivals: [],
  since: null,
};

// ---- the document ---------------------------------------------------------------------------------------------------

/** An element with text or children; attributes are set by name. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function text(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** Marks a line that is about something that does not work; only then is it read aloud, since it changes all the time. */
function failed(line, is) {
  line.classList.toggle("failed", is);
  line.setAttribute("aria-live", is ? "polite" : "off");
}

/** Makes the rows of a table body those of `items`, keeping the rows (and the focus) of those that stay. */
function rows(body, items, keyOf, make, update) {
  const known = body.known ??= new Map();
  const wanted = new Map(items.map((item) => [keyOf(item), item]));
  for (const [key, row] of known) {
    if (!wanted.has(key)) { row.remove(); known.delete(key); }
  }
  let at = body.firstElementChild;
  for (const [key, item] of wanted) {
    let row = known.get(key);
    if (!row) { row = make(item); known.set(key, row); }
    update(row, item);
    if (row === at) at = at.nextElementSibling; else body.insertBefore(row, at);
  }
}

// ---- words and numbers ----------------------------------------------------------------------------------------------

function amount(value, unit) {
  if (unit === "milli") return `${short.format(value / 1000)} ${Math.abs(value) === 1000 ? "core" : "cores"}`;
  if (unit !== "bytes") return whole.format(value);
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let step = 0;
  while (Math.abs(value) >= 1024 && step < units.length - 1) { value /= 1024; step += 1; }
  return `${short.format(value)} ${units[step]}`;
}

function duration(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const took = (microseconds) => microseconds < 1000 ? `${microseconds} µs` : `${short.format(microseconds / 1000)} ms`;
const percent = (share) => `${Math.round(share * 100)} %`;
const many = (count, one, more) => `${whole.format(count)} ${count === 1 ? one : more}`;
const podName = (pod) => `${pod.namespace}/${pod.name}`;

/** How much of resource `index` is requested of a node; null: it does not have it. */
function shareOf(node, index) {
  const has = node.allocatable[index], asked = node.requested[index];
  if (has === null || has === undefined || (has === 0 && asked === 0)) return null;
  return has === 0 ? Infinity : asked / has;
}

function stepOf(share) {
  return share === null ? UNKNOWN : STEPS.findIndex((step) => share <= step.most);
}

function notes(node) {
  const words = node.unschedulable ? ["takes no new pods"] : [];
  return words.concat((node.taints ?? []).map((taint) => `taint ${taint}`));
}

/** A node in a sentence, for the line below the map and for screen readers. */
function sentence(node) {
  const index = resource(), { name, unit } = view.state.resources[index];
  const share = shareOf(node, index), has = node.allocatable[index];
  let words = share === null
    ? `no ${name}`
    : `${name} ${amount(node.requested[index], unit)} of ${amount(has, unit)} requested` + (isFinite(share) ? ` (${percent(share)})` : "");
  if (name !== "pods") words += `, ${many(node.requested[podsIndex()], "pod", "pods")}`;
  return [`${node.name}: ${words}`, ...notes(node)].join("; ");
}

const resource = () => Math.max(0, $("resource").selectedIndex);
const podsIndex = () => view.state.resources.findIndex((kind) => kind.name === "pods");

// ---- the map --------------------------------------------------------------------------------------------------------

/** The colours of the scheme in force, by the names of the style sheet. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    heat: STEPS.map((_, step) => of(`--heat-${step}`)),
    edge: of("--edge"), rim: of("--rim"), ink: of("--ink"), focus: of("--focus"), card: of("--card"),
    marks: [of("--mark"), of("--mark-on-dark")],
  };
}

/** Light or dark, whichever is seen better on a colour such as #2468ad. */
function markOn(colour, marks) {
  const part = (at) => { const c = parseInt(colour.slice(at, at + 2), 16) / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5) > 0.18 ? marks[0] : marks[1];
}

/** One node: fill by step, an outline where little or nothing is filled, a line for cordoned, a corner for tainted. */
function drawCell(context, x, y, size, look, palette) {
  const step = look.step;
  if (step === UNKNOWN) {
    context.strokeStyle = palette.edge;
    context.lineWidth = 1;
    const dot = Math.max(2, Math.round(size / 4)), off = Math.floor((size - dot) / 2);
    context.strokeRect(x + off + 0.5, y + off + 0.5, dot - 1, dot - 1);
  } else {
    context.fillStyle = palette.heat[step];
    context.fillRect(x, y, size, size);
    if (step <= 1) {
      context.strokeStyle = step === 0 ? palette.edge : palette.rim;
      context.lineWidth = 1;
      context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
  }
  const mark = step === UNKNOWN ? palette.ink : markOn(palette.heat[step], palette.marks);
  const mark0 = step === 0 ? palette.ink : mark;
  if (look.unschedulable) {
    context.strokeStyle = mark0;
    context.lineWidth = size > 12 ? 2 : 1.25;
    context.beginPath();
    context.moveTo(x + 1, y + size - 1);
    context.lineTo(x + size - 1, y + 1);
    context.stroke();
  }
  if (look.tainted) {
    const corner = Math.max(3, Math.round(size * 0.42));
    context.fillStyle = mark0;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + corner, y);
    context.lineTo(x, y + corner);
    context.fill();
  }
}

function lookOf(node) {
  return { step: stepOf(shareOf(node, resource())), unschedulable: node.unschedulable, tainted: Boolean(node.taints?.length) };
}

/** Sharp on dense screens: the context takes CSS pixels. */
function sized(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

let asked = false;
/** Draws with the next frame, however often it is asked to. */
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; drawMap(); });
}

function drawMap() {
  if (!view.state || $("map-view").hidden) return;
  const count = Math.max(1, view.nodes.length), width = Math.floor($("map-box").clientWidth);
  let cell = LARGEST_CELL;
  while (cell > SMALLEST_CELL && Math.ceil(count / Math.floor(width / cell)) * cell > MAP_HEIGHT) cell -= 1;
  view.cell = cell;
  view.columns = Math.max(1, Math.floor(width / cell));
  const gap = cell > 14 ? 2 : 1;
  // Room for the ring around the current node at the edges.
  const context = sized($("map"), width, Math.ceil(count / view.columns) * cell + 2);
  const palette = colours();
  view.nodes.forEach((node, at) => {
    const [x, y] = placeOf(at);
    drawCell(context, x, y, cell - gap, lookOf(node), palette);
  });
  const ring = (name, colour) => {
    const at = view.nodes.findIndex((node) => node.name === name);
    if (at < 0) return;
    const [x, y] = placeOf(at);
    context.lineWidth = 4;
    context.strokeStyle = palette.card;
    context.strokeRect(x - 1, y - 1, cell - gap + 2, cell - gap + 2);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.strokeRect(x - 1, y - 1, cell - gap + 2, cell - gap + 2);
  };
  if (view.hovered !== null) ring(view.hovered, palette.ink);
  if (view.current !== null && document.activeElement === $("map")) ring(view.current, palette.focus);
}

const placeOf = (at) => [(at % view.columns) * view.cell + 2, Math.floor(at / view.columns) * view.cell + 2];

function nodeAt(event) {
  const box = $("map").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - 2) / view.cell), row = Math.floor((event.clientY - box.top - 2) / view.cell);
  if (column < 0 || column >= view.columns || row < 0) return undefined;
  return view.nodes[row * view.columns + column];
}

function drawLegend() {
  const palette = colours(), counts = new Map();
  let [cordoned, tainted] = [0, 0];
  for (const node of view.nodes) {
    const look = lookOf(node);
    counts.set(look.step, (counts.get(look.step) ?? 0) + 1);
    cordoned += look.unschedulable ? 1 : 0;
    tainted += look.tainted ? 1 : 0;
  }
  const items = STEPS.map((step, at) => ({ look: { step: at }, words: step.words, count: counts.get(at) ?? 0 }));
  items.push({ look: { step: UNKNOWN }, words: "does not have it", count: counts.get(UNKNOWN) ?? 0 });
  items.push({ look: { step: 1, unschedulable: true }, words: "takes no new pods", count: cordoned });
  items.push({ look: { step: 1, tainted: true }, words: "tainted", count: tainted });
  rows($("legend"), items, (item) => item.words, (item) => {
    const canvas = el("canvas", { "aria-hidden": "true" });
    return el("li", {}, canvas, el("span", {}, item.words), el("span", { class: "count" }));
  }, (row, item) => {
    drawCell(sized(row.firstChild, 16, 16), 1, 1, 14, item.look, palette);
    text(row.lastChild, whole.format(item.count));
  });
}

function goTo(at) {
  const node = view.nodes[Math.min(Math.max(at, 0), view.nodes.length - 1)];
  if (!node) return;
  view.current = node.name;
  view.hovered = null;
  text($("current"), sentence(node));
  text($("spoken"), sentence(node));
  draw();
}

function onMapKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = view.nodes.findIndex((node) => node.name === view.current);
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.columns, ArrowDown: view.columns, PageUp: -10 * view.columns, PageDown: 10 * view.columns };
  if (event.key in by) {
    const to = at + by[event.key];
    // Up and down stay where there is no row; a page goes as far as it can.
    const page = event.key.startsWith("Page");
    if (at < 0) goTo(0); else if (page || (to >= 0 && to < view.nodes.length)) goTo(to);
  } else if (event.key === "Home") goTo(0);
  else if (event.key === "End") goTo(view.nodes.length - 1);
  else if (event.key === "Enter" || event.key === " ") { if (at >= 0) openNode(view.nodes[at]); else goTo(0); }
  else return;
  event.preventDefault();
}

// ---- nodes ----------------------------------------------------------------------------------------------------------

function showNodes() {
  const index = resource(), order = $("order").value, wanted = $("filter").value.trim().toLowerCase();
  const matches = (node) => !wanted || node.name.toLowerCase().includes(wanted) || (node.taints ?? []).some((t) => t.toLowerCase().includes(wanted));
  const nodes = view.state.nodes.filter(matches);
  const share = (node) => shareOf(node, index) ?? -1;
  const byName = (a, b) => compare(a.name, b.name);
  if (order === "name") nodes.sort(byName);
  else nodes.sort((a, b) => (order === "most" ? share(b) - share(a) : share(a) - share(b)) || byName(a, b));
  view.nodes = nodes;
  const all = view.state.nodes.length + view.state.nodesOmitted;
  const shown = nodes.length === all ? many(all, "node", "nodes") : `${whole.format(nodes.length)} of ${many(all, "node", "nodes")}`;
  $("map").setAttribute("aria-label", `Heat map of ${shown} by ${view.state.resources[index].name} requested`);
  const current = nodes.find((node) => node.name === view.current);
  text($("current"), current ? sentence(current) : nodes.length ? `${shown}. Point at one, or use the arrow keys.` : "No node matches.");
  draw();
  drawLegend();
  showNodeTable(index);
}

function showNodeTable(index) {
  if ($("table-view").hidden) return;
  const pages = Math.max(1, Math.ceil(view.nodes.length / NODES_A_PAGE));
  view.page = Math.min(view.page, pages - 1);
  const from = view.page * NODES_A_PAGE, unit = view.state.resources[index].unit, pods = podsIndex();
  rows($("node-rows"), view.nodes.slice(from, from + NODES_A_PAGE), (node) => node.name, (node) => {
    const button = el("button", { type: "button", class: "name" }, node.name);
    button.addEventListener("click", () => openNode(view.state.nodes.find((n) => n.name === node.name) ?? node));
    const number = () => el("td", { class: "number" });
    return el("tr", {}, el("th", { scope: "row" }, button), number(), number(), number(), number(), el("td"));
  }, (row, node) => {
    const share = shareOf(node, index), cells = row.children;
    text(cells[1], amount(node.requested[index], unit));
    text(cells[2], node.allocatable[index] === null ? "none" : amount(node.allocatable[index], unit));
    text(cells[3], share === null ? "–" : isFinite(share) ? percent(share) : "more than it has");
    text(cells[4], whole.format(node.requested[pods]));
    text(cells[5], notes(node).join("; "));
  });
  text($("page-number"), `Page ${view.page + 1} of ${pages}`);
  $("previous").disabled = view.page === 0;
  $("next").disabled = view.page >= pages - 1;
}

function openNode(node) {
  const table = el("table", {}, el("caption", { class: "hidden" }, "Resources of the node"));
  const heads = ["Resource", "Requested", "Of", "Share"].map((head, at) => el("th", { scope: "col", class: at ? "number" : "" }, head));
  table.append(el("thead", {}, el("tr", {}, ...heads)));
  const body = el("tbody");
  view.state.resources.forEach(({ name, unit }, index) => {
    const share = shareOf(node, index);
    if (node.allocatable[index] === null && node.requested[index] === 0) return;
    const cell = el("td", { class: "number" }, share === null ? "–" : isFinite(share) ? percent(share) : "more than it has");
    if (share !== null) cell.append(el("progress", { class: "bar", max: "1", value: String(Math.min(1, share)), "aria-hidden": "true" }));
    body.append(el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "number" }, amount(node.requested[index], unit)),
      el("td", { class: "number" }, node.allocatable[index] === null ? "none" : amount(node.allocatable[index], unit)), cell));
  });
  table.append(body);
  const list = notes(node);
  const about = list.length ? el("ul", {}, ...list.map((note) => el("li", {}, note))) : el("p", {}, "Takes new pods, no taints.");
  const more = el("div", {}, el("p", { class: "help" }, "Reading its pods…"));
  open(node.name, about, table, more);
  read(`nodes/${encodeURIComponent(node.name)}`).then((details) => {
    more.replaceChildren(el("h3", {}, many(details.pods.length, "pod", "pods")), podsOfNode(details.pods));
    const labels = Object.entries(details.labels);
    if (labels.length) more.append(el("h3", {}, "Labels"), el("ul", {}, ...labels.map(([key, value]) => el("li", {}, `${key}=${value}`))));
  }, (error) => more.replaceChildren(el("p", { class: "failed" }, error.message)));
}

function podsOfNode(pods) {
  const heads = ["Pod", "CPU", "Memory", "Priority"].map((head, at) => el("th", { scope: "col", class: at ? "number" : "" }, head));
  const number = (words) => el("td", { class: "number" }, words);
  const lines = pods.map((pod) => el("tr", {}, el("th", { scope: "row" }, podName(pod)), number(amount(pod.milliCpu, "milli")),
    number(amount(pod.memory, "bytes")), number(whole.format(pod.priority))));
  return el("table", {}, el("caption", { class: "hidden" }, "Pods of the node"), el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...lines));
}

/** Opens the dialog; the browser keeps the focus in it and gives it back. */
function open(title, ...content) {
  text($("details-title"), title);
  $("details-body").replaceChildren(...content);
  if (!$("details").open) $("details").showModal();
}

// ---- pods that wait -------------------------------------------------------------------------------------------------

function showWaiting() {
  const { queue, waiting, waitingOmitted, time } = view.state;
  const now = Date.parse(time), part = $("queue").value, wanted = $("pod-filter").value.trim().toLowerCase();
  text($("queues"), `${whole.format(queue.active)} active, ${whole.format(queue.backoff)} backing off, ` +
    `${whole.format(queue.unschedulable)} unschedulable, ${whole.format(queue.gated)} gated, ${whole.format(queue.inFlight)} in flight`);
  const haystack = (pod) => [podName(pod), pod.message, pod.gatedBy ?? "", ...pod.rejectedBy].join("\n").toLowerCase();
  const found = waiting.filter((pod) => (!part || pod.queue === part) && (!wanted || haystack(pod).includes(wanted)));
  rows($("pod-rows"), found.slice(0, PODS_SHOWN), podName, (pod) => {
    const button = el("button", { type: "button", class: "name", "aria-label": `Why does ${podName(pod)} wait?` }, podName(pod));
    button.addEventListener("click", () => openPod(pod));
    return el("tr", {}, el("th", { scope: "row" }, button), el("td", { class: "part" }), el("td", { class: "number" }), el("td", { class: "number" }),
      el("td", { class: "why" }, el("strong"), el("span", { class: "reason" })));
  }, (row, pod) => {
    const cells = row.children, left = pod.backoffMilliseconds;
    text(cells[1], pod.queue === "backoff" && left ? `backoff, ${duration(left)} more` : pod.queue);
    text(cells[2], duration(now - Date.parse(pod.since)));
    text(cells[3], whole.format(pod.attempts));
    const who = pod.gatedBy ? [pod.gatedBy] : pod.rejectedBy;
    text(cells[4].firstChild, who.length ? `${who.join(", ")} ` : "");
    text(cells[4].lastChild, pod.message || (who.length ? "" : pod.attempts ? "" : "not tried yet"));
  });
  const beyond = found.length - Math.min(found.length, PODS_SHOWN) + (part || wanted ? 0 : waitingOmitted);
  text($("pods-note"), beyond ? `And ${whole.format(beyond)} more.` : found.length ? "" : waiting.length ? "No pod matches." : "No pod waits.");
}

function openPod(pod) {
  open(podName(pod), el("p", { class: "help" }, "Asking the scheduler…"));
  read(`why/${encodeURIComponent(pod.namespace)}/${encodeURIComponent(pod.name)}`).then((why) => {
    open(podName(pod), ...explanation(why));
  }, (error) => open(podName(pod), el("p", { class: "failed" }, error.message)));
}

/** The answer of `kubectl gantry why`, in a dialog. */
function explanation(why) {
  if (why.node) return [el("p", {}, `It is on node ${why.node}.`)];
  const parts = [];
  if (why.wouldGoTo) parts.push(el("p", {}, `It would go to ${why.wouldGoTo} now; it fits on ${many(why.feasibleNodes, "node", "nodes")}.`));
  if (why.message) parts.push(el("p", {}, why.message));
  for (const group of why.groups ?? []) {
    parts.push(el("h3", {}, `${many(group.nodes, "node", "nodes")}: ${[group.plugin, group.reasons.join(", ")].filter(Boolean).join(": ")}`));
    parts.push(el("p", { class: "help" }, `Such as ${group.examples.join(", ")}.`));
    for (const lack of group.missing ?? []) {
      const { unit } = view.state.resources.find((kind) => kind.name === lack.resource) ?? { unit: "count" };
      parts.push(el("p", {}, `Nearest: ${lack.resource} asks for ${amount(lack.requested, unit)}, free are ${amount(lack.free, unit)}.`));
    }
  }
  if (why.preemption) {
    const { plugin, node, victims, refused } = why.preemption;
    const words = node ? `On ${node} there would be room without ${(victims ?? []).join(", ")}.` : refused || "It does not help.";
    parts.push(el("h3", {}, `Preemption (${plugin})`), el("p", {}, words));
  }
  if (why.wokenBy?.length) {
    const wakes = why.wokenBy.map((wake) => el("li", {}, `${wake.plugin}: ${wake.resource} ${wake.actions.join(", ")}`));
    parts.push(el("h3", {}, "It is tried again after"), el("ul", {}, ...wakes));
  }
  return parts;
}

// ---- decisions ------------------------------------------------------------------------------------------------------

const RESULTS = { node: ["placed", "on "], rejected: ["rejected", "rejected"], error: ["error", "error"] };

function decisionRow(decision) {
  const [kind, words] = RESULTS[decision.result] ?? RESULTS.error;
  const what = el("td", { class: "why" }, el("span", { class: kind }, words + (decision.node ?? "")));
  if (decision.rejectedBy) what.append(` by ${decision.rejectedBy.join(", ")}`);
  if (decision.message) what.append(el("br"), el("span", { class: "reason" }, decision.message));
  return el("tr", { class: "new" }, el("td", { class: "when" }, clock.format(new Date(decision.time))), el("th", { scope: "row" }, podName(decision)), what,
    el("td", { class: "number" }, decision.score === undefined ? "–" : whole.format(decision.score)), el("td", { class: "number" }, took(decision.microseconds)));
}

function onDecisions(event) {
  const batch = JSON.parse(event.data);
  const next = Number(event.lastEventId);
  // Another process counts from 0 again.
  if (next <= view.last) view.last = -1;
  const fresh = batch.decisions.filter((decision) => decision.sequence > view.last);
  view.last = next - 1;
  view.missed += batch.missed;
  view.decisions = view.decisions.concat(fresh).slice(-KEPT);
  // What was decided before anybody looked is no news.
  const first = view.decisions.length === fresh.length;
  if (!first) view.arrivals.push([Date.now(), fresh.length]);
  view.since ??= Date.now();
  if (view.paused) view.unseen += fresh.length; else showDecisions(first ? undefined : fresh);
  showStream();
}

const wantedDecision = (decision) => !$("failures").checked || decision.result !== "node";

/** Puts new ones on top; without an argument all anew. */
function showDecisions(fresh) {
  const body = $("decision-rows"), lines = (fresh ?? view.decisions).slice(-KEPT).filter(wantedDecision).map(decisionRow).reverse();
  if (!fresh) lines.forEach((line) => line.classList.remove("new"));
  if (fresh) body.prepend(...lines); else body.replaceChildren(...lines);
  while (body.childElementCount > KEPT) body.lastElementChild.remove();
}

function showStream(problem) {
  const line = $("stream");
  failed(line, Boolean(problem));
  if (problem) { text(line, problem); return; }
  const now = Date.now();
  view.arrivals = view.arrivals.filter(([when]) => now - when < 10000);
  const count = view.arrivals.reduce((sum, [, some]) => sum + some, 0);
  const rate = count / Math.min(10, Math.max(1, (now - view.since) / 1000));
  const parts = [count ? (rate < 1 ? "Less than one a second" : `About ${whole.format(Math.round(rate))} a second`) : view.decisions.length ? "Waiting for the next" : "None yet"];
  if (view.missed) parts.push(`${whole.format(view.missed)} went by unseen`);
  if (view.paused) parts.push(`paused: ${whole.format(view.unseen)} new`);
  text(line, parts.join("; "));
}

// ---- reading --------------------------------------------------------------------------------------------------------

/** Reads JSON; an answer that is none of it is an error in the server's words. */
async function read(path) {
  const response = await fetch(`${BASE}/${path}`, { headers: { Accept: "application/json" }, cache: "no-store" });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? body.message ?? `the scheduler answers ${response.status}`);
  return body;
}

function showSummary() {
  const { resources, nodes, nodesOmitted, queue, profiles } = view.state;
  const share = (name) => {
    const index = resources.findIndex((kind) => kind.name === name);
    const sum = (of) => nodes.reduce((total, node) => total + (of(node) ?? 0), 0);
    const has = sum((node) => node.allocatable[index]);
    return has ? percent(sum((node) => node.requested[index]) / has) : "–";
  };
  const waiting = queue.active + queue.backoff + queue.unschedulable + queue.gated;
  const facts = [["Nodes", whole.format(nodes.length + nodesOmitted)], ["CPU requested", share("cpu")], ["Memory requested", share("memory")],
    ["Pods waiting", whole.format(waiting)], [profiles.length === 1 ? "Profile" : "Profiles", profiles.join(", ")]];
  rows($("summary"), facts, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")), (row, [, value]) => text(row.lastChild, value));
}

function showResources() {
  const select = $("resource"), names = view.state.resources.map((kind) => kind.name);
  if (names.length === select.length && names.every((name, at) => select.options[at].value === name)) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function show() {
  showResources();
  showSummary();
  showNodes();
  showWaiting();
}

let timer = 0, reading = false;
/** Looks at the state, and again after a while, as long as the page is seen. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden || reading) return;
  reading = true;
  const began = performance.now(), line = $("connection");
  try {
    view.state = await read("state");
    show();
    failed(line, false);
    text(line, `As of ${new Date(view.state.time).toLocaleTimeString()}`);
    if (events?.readyState === EventSource.OPEN) showStream();
  } catch (error) {
    failed(line, true);
    text(line, `Not up to date: ${error.message}`);
  }
  reading = false;
  timer = setTimeout(poll, Math.max(PERIOD, 10 * (performance.now() - began)));
}

let events = null;
function follow() {
  events?.close();
  events = new EventSource(`${BASE}/events`);
  events.addEventListener("decisions", onDecisions);
  events.addEventListener("end", (event) => showStream(`Stream ended: ${JSON.parse(event.data).reason}`));
  events.addEventListener("error", () => {
    showStream("Not connected; trying again.");
    // A browser gives up where the answer was no stream.
    if (events.readyState === EventSource.CLOSED) setTimeout(() => { if (!document.hidden) follow(); }, 5000);
  });
}

function onVisibility() {
  if (document.hidden) events?.close(); else { follow(); poll(); }
}

function begin() {
  for (const id of ["resource", "order"]) $(id).addEventListener("change", () => view.state && showNodes());
  $("filter").addEventListener("input", () => { view.page = 0; if (view.state) showNodes(); });
  for (const id of ["queue", "pod-filter"]) $(id).addEventListener("input", () => view.state && showWaiting());
  for (const radio of document.getElementsByName("view")) {
    radio.addEventListener("change", () => {
      $("map-view").hidden = radio.value !== "map";
      $("table-view").hidden = radio.value !== "table";
      if (view.state) showNodes();
    });
  }
  const turn = (by) => { view.page += by; showNodeTable(resource()); };
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("failures").addEventListener("change", () => showDecisions());
  $("pause").addEventListener("click", () => {
    view.paused = !view.paused;
    view.unseen = 0;
    $("pause").setAttribute("aria-pressed", String(view.paused));
    if (!view.paused) showDecisions();
    showStream();
  });
  const map = $("map");
  map.addEventListener("keydown", onMapKey);
  map.addEventListener("focus", () => { if (view.current === null) goTo(0); else draw(); });
  map.addEventListener("blur", draw);
  map.addEventListener("mousemove", (event) => {
    const node = nodeAt(event);
    if (!node || view.hovered === node.name) return;
    view.hovered = node.name;
    text($("current"), sentence(node));
    draw();
  });
  map.addEventListener("mouseleave", () => { view.hovered = null; if (view.state) showNodes(); });
  map.addEventListener("click", (event) => { const node = nodeAt(event); if (node) { view.current = node.name; openNode(node); } });
  new ResizeObserver(draw).observe($("map-box"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (view.state) showNodes(); });
  document.addEventListener("visibilitychange", onVisibility);
  onVisibility();
}

begin();
