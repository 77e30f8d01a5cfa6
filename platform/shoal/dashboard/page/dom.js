// Elements, numbers and times as the page shows them. Text of a record is only ever set as text.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SERIES = 6;

/** An element: `make("p", {class: "x"}, "text", child)`; attributes that are null are left out. */
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A table with a header row; cells are texts. */
function table(caption, head, rows) {
  return make("table", {}, make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", {scope: "col"}, text)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", {}, String(text)))))));
}

/** Sets a text only if it is another, so that a live region speaks once. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const grouped = new Intl.NumberFormat("en", {maximumFractionDigits: 0});

/** A number in at most `digits` significant digits, large ones grouped. */
function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toPrecision(3) + " G";
  if (size >= 1e7) return (value / 1e6).toPrecision(3) + " M";
  if (size >= 1000) return grouped.format(value);
  if (size < 1e-3) return String(+value.toPrecision(3));
  return String(+value.toPrecision(digits));
}

function plural(count, noun, nouns) {
  return `${grouped.format(count)} ${count === 1 ? noun : nouns || noun + "s"}`;
}

function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  const whole = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function clock(time) {
  return new Date(time * 1000).toLocaleTimeString("en-GB");
}

const NAMES = {
  loss: "Loss", tokens_per_second: "Tokens a second", grad_norm: "Gradient norm", lr: "Learning rate",
  lm_loss: "Next-token loss", mtp_loss: "MTP loss", seconds: "Seconds a step", mfu: "MFU", bpb: "Held-out bits a byte",
  tokens: "Tokens a step", worker_seconds: "Seconds a step, workers' clock", cells: "Cells", generation: "Generation",
  tokens_per_second_per_gpu: "Tokens a second a GPU", peak_memory_bytes: "Peak memory, bytes", heldout_loss: "Held-out loss",
};

/** What a figure of a record is called; `held:` stands before those of evaluations. */
function title(figure) {
  const name = figure.replace(/^held:/, "");
  return NAMES[name] || (figure === name ? "" : "held out: ") + name.replaceAll("_", " ");
}

/** Round values for an axis between two ends, about so many. */
function ticks(low, high, about) {
  const raw = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

const TIMES = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

/** Round seconds for an axis between two ends, about so many, and what they are called. */
function timeTicks(low, high, about) {
  const step = TIMES.find((one) => (high - low) / one <= about) || TIMES.at(-1) * Math.ceil((high - low) / TIMES.at(-1) / about);
  const places = high - low < 2 ? ticks(low, high, about) : [];
  for (let at = Math.ceil(low / step) * step; high - low >= 2 && at <= high; at += step) places.push(at);
  return places.map((at) => [at, duration(at).replace(/\.0 s$/, " s").replace(/ 0 (s|min|h)$/, "")]);
}

/** The colour of the series of this number, as a custom property. */
const tone = (number) => `var(--c${((number % SERIES) + SERIES) % SERIES})`;
const DASHES = [null, "7 3", "2 3", "9 3 2 3", "12 4", "4 2"];

/** Remembers a choice where the browser allows it. */
const memory = {
  get(name) {
    try { return localStorage.getItem("shoal." + name); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem("shoal." + name, value); } catch { /* a private window */ }
  },
};
