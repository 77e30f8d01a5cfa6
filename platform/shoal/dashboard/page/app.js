// What is shown, and how news come in.

const token = new URLSearchParams(location.search).get("token");
const DRAWN = ["loss", "tokens_per_second", "grad_norm", "lr", "held:bpb"];
const MOST_RUNS = 6, MOST_FIGURES = 16;

const state = {
  list: [], runs: new Map(), chosen: [], figures: null, stream: null, due: false, older: 40, reading: null, drag: null,
  names: [], retry: null,
};

const shownRuns = () => state.chosen.map((key) => state.runs.get(key)).filter((run) => run !== undefined);
const focus = () => state.runs.get(state.chosen[0]);
const figures = () => state.figures || DRAWN;

function address(path, pairs) {
  const query = new URLSearchParams(pairs);
  if (token !== null) query.append("token", token);
  return `${path}?${query}`;
}

const asked = () => [...state.chosen.map((key) => ["run", key]),
  ...figures().filter((name) => !name.startsWith("held:")).map((name) => ["figure", name])];

async function listRuns() {
  const answer = await fetch(address("/runs", []));
  if (!answer.ok) throw new Error(await answer.text());
  const found = await answer.json();
  state.list = found.runs;
  say($("where"), found.storage ? `Runs in ${found.storage}.` : "");
  if (found.problem) told(found.problem);
  const known = new Set(state.list.map((run) => run.key));
  const former = state.chosen.join();
  state.chosen = state.chosen.filter((key) => known.has(key));
  if (!state.chosen.length && state.list.length) {
    const before = state.list.filter((run) => state.names.includes(run.name)).map((run) => run.key);
    state.chosen = before.length ? before : [state.list[0].key];
  }
  drawChoices();
  if (state.chosen.join() !== former) listen();
  if (!state.list.length && !found.problem) say($("sentence"), "There is no run here yet. This page finds the first one by itself.");
}

/** Opens the stream of the chosen runs; what was there of them is replaced by its first messages. */
function listen() {
  if (state.stream) state.stream.close();
  state.stream = null;
  if (!state.chosen.length || document.hidden) return;
  for (const key of [...state.runs.keys()]) if (!state.chosen.includes(key)) state.runs.delete(key);
  const stream = state.stream = new EventSource(address("/news", asked()));
  const first = new Set();
  stream.onopen = () => { connected(true); first.clear(); };
  stream.onmessage = (message) => take(JSON.parse(message.data), first);
  stream.onerror = () => {
    connected(false);
    if (stream.readyState !== EventSource.CLOSED || state.stream !== stream) return;
    clearTimeout(state.retry); // the server was started anew: its keys are others
    state.names = shownRuns().map((run) => run.name);
    state.retry = setTimeout(() => { state.chosen = []; listRuns().catch(() => connected(false)); }, 2000);
  };
}

function connected(yes) {
  $("link").className = "link " + (yes ? "live" : "cut");
  say($("link"), yes ? "live" : "no connection");
}

/** One message: what is new of one run. `first`: runs that this stream has told of already. */
function take(update, first) {
  const listed = state.list.find((one) => one.key === update.run) || {};
  if (!first.has(update.run)) {
    first.add(update.run);
    const old = state.runs.get(update.run) || {};
    state.runs.set(update.run, {key: update.run, name: listed.name || update.run, story: [], clock: () => 0, shown: old.shown});
  }
  const run = state.runs.get(update.run);
  if (update.problem !== undefined) run.problem = update.problem;
  if (update.head) run.head = update.head;
  if (update.curves) run.curves = merged(run.curves, update.curves);
  for (const part of ["figures", "map", "lanes", "heldout", "quiet"]) if (update[part]) run[part] = update[part];
  if (update.story) {
    run.story = run.story.slice(0, update.story.at).concat(update.story.entries);
    if (update.run === state.chosen[0]) speak(update.story.entries);
  }
  if (run.head) {
    run.over = ["done", "failed", "stopped"].includes(run.head.status);
    run.clock = clockOf(run.lanes ? run.lanes.sessions : [], run.curves ? [...run.curves.time.slice(0, 1), ...run.curves.time, run.head.last] : [run.head.last || 0]);
  }
  run.fresh = {...(run.fresh || {}), ...Object.fromEntries(Object.keys(update).map((part) => [part, true]))};
  if (update.curves && $("span").value !== "all") askSpan();
  redraw();
}

/** The newest of what matters, for eyes and for screen readers. */
function speak(entries) {
  const matters = entries.filter((told) => MAIN.has(told.group));
  if (!matters.length) return;
  const told = matters[matters.length - 1];
  say($("news"), `${clock(told.time)}  ${told.text}`);
}

function told(problem) {
  $("problem").hidden = !problem;
  say($("problem"), problem || "");
}

/** Draws what has changed, once a frame. */
function redraw() {
  if (state.due) return;
  state.due = true;
  requestAnimationFrame(() => { state.due = false; drawAll(); });
}

function drawAll() {
  const run = focus();
  if (!run || !run.head) {
    if (run && run.problem) told(run.problem);
    return;
  }
  const fresh = run.fresh || {};
  run.fresh = {};
  drawHead(run);
  if (run.map && (fresh.map || fresh.quiet || fresh.all)) {
    drawCrew($("crew"), run, document.querySelector("input[name=arrange]:checked").value);
    $("crew-table").replaceChildren(crewTable(run));
  }
  if (fresh.story || fresh.all) {
    drawStory($("story"), run, $("kinds").value, state.older, () => { state.older += 100; again(); $("story").focus(); });
    $("timeline-table").replaceChildren(timelineTable(run));
  }
  if (run.lanes) drawTimeline($("timeline"), run);
  drawFigures(run);
  drawCurves();
  document.body.dataset.step = run.head.step;
  document.body.dataset.drawn = "yes";
}

function again() {
  for (const run of shownRuns()) run.fresh = {all: true};
  redraw();
}

function drawCurves() {
  const runs = shownRuns().filter((run) => run.curves), across = $("across").value;
  const view = {across, log: $("log").checked, extent: extent(runs, across), reading: null, drag: state.drag,
    troubles: runs.length === 1 ? troubles(runs[0], across) : []};
  view.reading = state.reading === null ? null : view.extent[0] + state.reading * (view.extent[1] - view.extent[0]);
  const place = $("curves"), many = runs.length > 1, rows = [];
  place.classList.toggle("many", many);
  const drawn = figures().map((name) => [name, seriesOf(runs, name, across)]).filter(([, series]) => series.length);
  const key = drawn.map(([name]) => name).join("\n");
  if (place.dataset.key !== key) {
    place.dataset.key = key;
    place.replaceChildren(...drawn.map(([name]) => make("figure", {}, make("figcaption", {}, make("b", {}, title(name)), make("span")),
      make("div", {class: "picture plot", role: "img"}))));
    for (const figure of place.children) draggable(figure.lastChild);
  }
  drawn.forEach(([name, series], index) => {
    const figure = place.children[index];
    plot(figure.lastChild, series, view);
    const words = readings(series, view.reading, many);
    say(figure.firstChild.lastChild, words);
    figure.lastChild.setAttribute("aria-label", `${title(name)}: ${words}`);
    rows.push(...series.map((one) => rowOf(name, one, view.reading)));
  });
  $("curves-table").replaceChildren(table("Of what is drawn", ["figure", "run", "first", "last", "lowest", "highest", "at the reading line"], rows));
  $("runs-legend").hidden = !many;
  $("runs-legend").replaceChildren(...(many ? runs : []).map((run, number) => make("li", {},
    draw("svg", {width: 30, height: 10, "aria-hidden": "true"}, draw("line", {class: "line", x1: 0, x2: 30, y1: 5, y2: 5, stroke: tone(number), "stroke-dasharray": DASHES[number]})), run.name)));
  const at = view.reading === null ? view.extent[1] : view.reading;
  const words = across === "time" ? `${duration(at)} into the run` : `${across === "tokens" ? "token" : "step"} ${short(Math.round(at), 7)}`;
  say($("at"), view.reading === null ? `${words}, the last` : words);
  $("cursor").setAttribute("aria-valuetext", `${words}: ` + drawn.slice(0, 4).map(([name, series]) => `${title(name)} ${readings(series, view.reading, many)}`).join("; "));
}

/** The pointer reads along a picture, and chooses a span by dragging. */
function draggable(place) {
  const within = (event) => place.placeAt(event.clientX - place.getBoundingClientRect().left);
  const share = (at) => {
    const [from, to] = extent(shownRuns().filter((run) => run.curves), $("across").value);
    return Math.max(0, Math.min(1, (at - from) / (to - from)));
  };
  place.addEventListener("pointermove", (event) => {
    if (state.drag) state.drag = [state.drag[0], within(event)];
    read(share(within(event)));
  });
  place.addEventListener("pointerdown", (event) => {
    if ($("across").value !== "step") return;
    place.setPointerCapture(event.pointerId);
    state.drag = [within(event), within(event)];
  });
  place.addEventListener("pointerup", () => {
    const drag = state.drag;
    state.drag = null;
    if (drag && Math.abs(share(drag[0]) - share(drag[1])) > 0.01) {
      $("first").value = Math.max(1, Math.round(Math.min(...drag)));
      $("last").value = Math.max(1, Math.round(Math.max(...drag)));
      $("span").value = "own";
      spanned();
    }
  });
  place.addEventListener("pointerleave", () => { if (!state.drag) read(null); });
}

function read(share) {
  state.reading = share;
  $("cursor").value = share === null ? 1 : share;
  redraw();
}

/** The curves of the chosen span, asked for: at most once at a time. */
async function askSpan() {
  if (state.asking) return;
  state.asking = true;
  try {
    const own = $("span").value === "own", last = Math.max(...shownRuns().map((run) => run.head ? run.head.step : 0));
    const ends = own ? [Number($("first").value) - 1, Number($("last").value) - 1] : [last - Number($("span").value), last - 1];
    const answer = await fetch(address("/curves", [...asked(), ["first", ends[0]], ["last", Math.max(...ends)]]));
    if (answer.ok) for (const [key, curves] of Object.entries(await answer.json())) if (state.runs.has(key) && $("span").value !== "all") state.runs.get(key).shown = curves;
  } catch { /* the stream tells that there is no connection */ }
  state.asking = false;
  redraw();
}

function spanned() {
  $("own").hidden = $("span").value !== "own";
  for (const run of shownRuns()) run.shown = undefined;
  if ($("span").value === "all") redraw(); else askSpan();
}

function drawFigures(run) {
  const names = [...(run.figures || []), ...Object.keys(run.heldout || {}).map((name) => "held:" + name)];
  const key = names.join("\n");
  if ($("figures").dataset.key === key) return;
  $("figures").dataset.key = key;
  $("figures").replaceChildren(...names.map((name) => {
    const box = make("input", {type: "checkbox"});
    box.checked = figures().includes(name);
    box.addEventListener("change", () => {
      const chosen = figures().filter((one) => one !== name);
      state.figures = box.checked ? [...chosen, name].slice(-MOST_FIGURES) : chosen;
      listen();
      spanned();
    });
    return make("label", {}, box, " " + title(name));
  }));
}

function drawChoices() {
  const choice = $("run"), key = JSON.stringify([state.list.map((run) => [run.key, run.status, run.problem]), state.chosen]);
  if (choice.dataset.key === key) return;
  choice.dataset.key = key;
  choice.replaceChildren(...state.list.map((run) => make("option", {value: run.key}, `${run.name} (${run.problem ? "damaged" : run.silent ? "silent" : run.status || "no status"})`)));
  choice.value = state.chosen[0] || "";
  const words = $("filter").value.toLowerCase();
  $("others").replaceChildren(...state.list.filter((run) => run.key !== state.chosen[0] && run.name.toLowerCase().includes(words)).map((run) => {
    const box = make("input", {type: "checkbox", value: run.key});
    box.checked = state.chosen.includes(run.key);
    box.addEventListener("change", () => {
      const others = state.chosen.slice(1).filter((one) => one !== run.key);
      choose([state.chosen[0], ...(box.checked ? [...others, run.key].slice(-(MOST_RUNS - 1)) : others)]);
    });
    return make("label", {}, box, ` ${run.name} `, make("small", {}, run.problem ? "damaged" : `${run.status || ""} ${grouped.format(run.step || 0)} steps`));
  }));
  say($("compared"), state.chosen.length > 1 ? ` (${state.chosen.length - 1})` : "");
}

function choose(keys) {
  if (keys[0] !== state.chosen[0]) say($("news"), "");
  state.chosen = keys;
  document.body.dataset.drawn = "";
  const focused = document.activeElement && document.activeElement.closest("#others") ? document.activeElement.value : null;
  drawChoices();
  if (focused !== null) ($("others").querySelector(`input[value="${CSS.escape(focused)}"]`) || $("filter")).focus();
  listen();
}

function themed(theme) {
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  $("theme").value = theme || "";
}

function legends() {
  const chipOf = (kind, text) => { const one = make("span", {class: `worker ${kind}`}, "n"); if (kind === "trains") one.style.setProperty("--tone", tone(0)); return make("span", {}, one, text); };
  $("crew-legend").replaceChildren(chipOf("trains", "trains, in its cell's colour"), chipOf("spare", "spare"), chipOf("gone", "gone"), chipOf("spare quiet", "quiet for over 5 s"));
  $("timeline-legend").replaceChildren(...Object.entries(WORDS).map(([group, words]) => make("span", {}, icon(group), words)),
    make("span", {}, draw("svg", {width: 18, height: 12, "aria-hidden": "true"}, draw("rect", {class: "trouble", width: 18, height: 12})), "recovering"));
}

function begin() {
  const theme = memory.get("theme");
  themed(theme);
  legends();
  $("theme").addEventListener("change", () => { memory.set("theme", $("theme").value); themed($("theme").value); });
  $("run").addEventListener("change", () => choose([$("run").value]));
  $("filter").addEventListener("input", () => { $("run").dataset.key = ""; drawChoices(); });
  document.querySelectorAll("input[name=arrange]").forEach((one) => one.addEventListener("change", again));
  $("kinds").addEventListener("change", again);
  for (const id of ["across", "log"]) $(id).addEventListener("change", redraw);
  for (const id of ["span", "first", "last"]) $(id).addEventListener("change", spanned);
  $("cursor").addEventListener("input", () => { state.reading = Number($("cursor").value); redraw(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const id of ["compare", "pick"]) if ($(id).open) { $(id).open = false; $(id).firstElementChild.focus(); }
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) { if (state.stream) state.stream.close(); } else { listen(); } });
  new ResizeObserver(again).observe($("main"));
  const list = () => { if (!document.hidden) listRuns().catch((error) => { connected(false); if (!state.chosen.length) told(String(error.message || error)); }); };
  list();
  setInterval(list, 5000);
}

begin();
