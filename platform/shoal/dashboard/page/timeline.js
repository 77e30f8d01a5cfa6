// What happened: a picture of nodes over time with every mark on it, and the sentences.

const SHAPES = {
  recovery: "M0 -6L6 5L-6 5Z", loss: "M-5 -5L5 5M5 -5L-5 5", checkpoint: "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
  evaluation: "M4.5 0A4.5 4.5 0 1 1 -4.5 0A4.5 4.5 0 1 1 4.5 0Z", run: "M-4 -5H5V1H-4V6H-5.5V-6H-4Z", other: "M2 0A2 2 0 1 1 -2 0A2 2 0 1 1 2 0Z",
};
const WORDS = {recovery: "recovery", loss: "loss", checkpoint: "checkpoint", evaluation: "evaluation", run: "start or end"};
const PHASE_TONES = {notice: 1, detect: 1, pause: 3, decide: 3, form: 0, place: 4, join: 0, fill: 2, state: 2, "first step": 5};

function mark(group, attributes = {}) {
  return draw("path", {class: `mark-${group}`, d: SHAPES[group], ...attributes});
}

function icon(group) {
  return draw("svg", {class: "mark", viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true"}, mark(group));
}

/** Unix time -> seconds of the run; what lies between a session's last line and the next session is left out. */
function clockOf(sessions, times) {
  const starts = sessions.length ? sessions : times.slice(0, 1);
  const ascending = [...times].sort((a, b) => a - b);
  const lengths = starts.map((start, index) => {
    const until = index + 1 < starts.length ? starts[index + 1] : Infinity;
    let last = start;
    for (const time of ascending) if (time < until && time > last) last = time;
    return last - start;
  });
  const before = lengths.map((_, index) => lengths.slice(0, index).reduce((a, b) => a + b, 0));
  const told = (time) => {
    let index = 0;
    while (index + 1 < starts.length && starts[index + 1] <= time) index++;
    if (!starts.length) return 0;
    const within = Math.max(0, time - starts[index]);
    return before[index] + (index + 1 < starts.length ? Math.min(within, lengths[index]) : within);
  };
  told.seams = before.slice(1);
  return told;
}

function drawTimeline(place, run) {
  const rows = [...run.lanes.rows].sort((one, other) => one.node.localeCompare(other.node, "en", {numeric: true}));
  const lane = rows.length > 32 ? 9 : 15, end = run.head.last || 0, whole = Math.max(run.clock(end), 1e-3);
  const names = rows.map((row) => row.node), letters = Math.max(6, ...names.map((name) => name.length));
  const left = Math.min(190, 14 + 6.4 * Math.min(letters, 26)), width = Math.max(220, place.clientWidth), top = 42;
  const lanes = [];
  let down = top;
  rows.forEach((row, index) => {
    down += index && row.node !== rows[index - 1].node ? 6 : 0;
    lanes.push(down);
    down += lane;
  });
  const height = down + 26;
  const x = (time) => left + (run.clock(time) / whole) * (width - left - 12);
  const root = draw("svg", {width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"});
  for (const [at, words] of timeTicks(0, whole, width / 90)) {
    const line = left + (at / whole) * (width - left - 12);
    root.append(draw("line", {class: "grid", x1: line, x2: line, y1: top - 6, y2: down + 4}),
      draw("text", {x: line, y: height - 6, "text-anchor": "middle"}, words));
  }
  for (const told of run.story) {
    if (told.began === undefined) continue;
    root.append(draw("rect", {class: "trouble", x: x(told.began), y: top - 6, width: Math.max(2, x(told.time) - x(told.began)), height: down - top + 10}));
  }
  for (const seam of run.clock.seams) {
    const line = left + (seam / whole) * (width - left - 12);
    root.append(draw("line", {class: "seam", x1: line, x2: line, y1: top - 14, y2: down + 4}));
  }
  rows.forEach((row, index) => {
    if (!index || row.node !== rows[index - 1].node) {
      const name = row.node.length > 26 ? row.node.slice(0, 25) + "…" : row.node;
      root.append(draw("text", {x: left - 8, y: lanes[index] + lane / 2 + 4, "text-anchor": "end"}, name));
    }
    for (const [cell, start, until, died] of row.stays) {
      const from = x(start), to = x(until ?? end);
      const bar = draw("rect", {x: from, y: lanes[index] + 1, width: Math.max(1, to - from), height: lane - 3, rx: 2});
      if (cell === null) fill(bar, {fill: "var(--line)"}, []); else fill(bar, {fill: tone(Number(cell) || 0)}, []);
      if (cell !== null && to - from > 46 && lane > 12) root.append(bar, labelled(from + 6, lanes[index] + 10.5, `cell ${cell}`)); else root.append(bar);
      if (died) root.append(draw("path", {class: "cross", d: SHAPES.loss, transform: `translate(${to} ${lanes[index] + lane / 2 - 0.5})`}));
    }
  });
  let last = {};
  for (const told of run.story) { // of marks that would cover each other one is drawn
    if (told.group === "other") continue;
    const at = x(told.time);
    if (last[told.group] !== undefined && at - last[told.group] < 5) continue;
    last[told.group] = at;
    root.append(mark(told.group, {transform: `translate(${at} ${told.group === "recovery" || told.group === "loss" ? 11 : 27})`}));
  }
  root.append(draw("text", {x: left - 8, y: 15, "text-anchor": "end"}, "trouble"), draw("text", {x: left - 8, y: 31, "text-anchor": "end"}, "marks"));
  place.replaceChildren(root);
  const count = (group) => run.story.filter((told) => told.group === group).length;
  place.setAttribute("aria-label", `${plural(rows.length, "lane")} of workers over ${duration(whole)}: ${plural(count("recovery"), "recovery", "recoveries")}, `
    + `${plural(count("loss"), "loss", "losses")}, ${plural(count("checkpoint"), "checkpoint")}, ${plural(count("evaluation"), "evaluation")}. The table below tells each recovery.`);
}

function labelled(x, y, text) {
  const label = draw("text", {x, y}, text);
  label.style.fill = "var(--paper)";
  label.style.fontSize = "10px";
  return label;
}

const MAIN = new Set(["recovery", "loss", "run"]);

/** The newest entries as a list, `most` of them. */
function drawStory(place, run, kinds, most, more) {
  const wanted = run.story.filter((told) => kinds === "all" || MAIN.has(told.group));
  const shown = wanted.slice(-most).reverse();
  const longest = Math.max(1e-9, ...run.story.map((told) => told.seconds || 0));
  const rest = wanted.length - shown.length;
  const list = make("ol", {class: "entries", role: "list"}, ...shown.map((told) => entry(told, run, longest)));
  const button = rest > 0 ? make("button", {type: "button", id: "older"}, `Show ${Math.min(rest, 100)} older`) : null;
  if (button) button.addEventListener("click", more);
  place.replaceChildren(...[shown.length ? list : make("p", {class: "sentence"}, "Nothing yet."), button].filter((one) => one !== null));
}

function entry(told, run, longest) {
  const item = make("li", {class: told.group}, icon(told.group),
    make("time", {datetime: new Date(told.time * 1000).toISOString(), title: new Date(told.time * 1000).toLocaleString()},
      `${clock(told.time)}, ${duration(run.clock(told.time))} into the run`), told.text);
  if (told.phases && told.phases.length) {
    const bar = make("div", {class: "phases", "aria-hidden": "true"});
    bar.style.width = `${Math.max(4, (100 * told.seconds) / longest)}%`;
    for (const [name, seconds] of told.phases) {
      const part = make("i", {title: `${name} ${seconds.toFixed(2)} s`});
      part.style.flexGrow = Math.max(0, seconds);
      part.style.background = tone(PHASE_TONES[name] ?? 4);
      bar.append(part);
    }
    item.append(bar, make("small", {}, told.phases.map(([name, seconds]) => `${name} ${seconds.toFixed(2)} s`).join(", ")));
  }
  return item;
}

function timelineTable(run) {
  const rows = run.story.filter((told) => told.began !== undefined).map((told) => [duration(run.clock(told.began)), told.rung,
    told.next_commit === null || told.next_commit === undefined ? "–" : told.next_commit.toFixed(2), told.seconds.toFixed(2), told.lost, told.text]);
  return table(rows.length ? "Every recovery, and every change of shape" : "None was needed",
    ["began", "rung", "seconds to the next step", "seconds in all", "steps lost", "what"], rows);
}
