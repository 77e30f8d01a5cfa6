// The curves: a small picture a figure, all on one axis and with one reading line. A band goes from the lowest to the
// highest step of each bucket, the line through their means.

const HEIGHT = 168;
const EDGE = {left: 54, right: 8, top: 8, bottom: 22};

/** Puts what is new of a run's curves into what is there. */
function merged(before, update) {
  if (!before || update.at === 0 || before.size !== update.size) return update;
  const joined = (old, fresh) => old.slice(0, update.at).concat(fresh);
  const of = {};
  for (const [name, parts] of Object.entries(update.of)) {
    of[name] = {};
    for (const part of Object.keys(parts)) of[name][part] = joined((before.of[name] || {})[part] || [], parts[part]);
  }
  return {...update, at: 0, of, step: joined(before.step, update.step), time: joined(before.time, update.time),
    tokens: joined(before.tokens, update.tokens)};
}

/** Where a run's points stand on the axis: committed steps, tokens, or seconds of the run without what lies between
    sessions. */
function places(run, curves, across) {
  if (across === "tokens") return curves.tokens;
  if (across === "time") return curves.time.map((time) => run.clock(time));
  return curves.step.map((step) => step + 1);
}

/** The series of one figure: `{run, number, x, mean, low, high}` a run that has it. */
function seriesOf(runs, figure, across) {
  const found = [];
  runs.forEach((run, number) => {
    const held = figure.startsWith("held:") ? (run.heldout || {})[figure.slice(5)] : null;
    const curves = run.shown || run.curves;
    if (held) {
      const x = held.map(([step]) => placeOfStep(run, step, across));
      const [first, last] = run.shown ? ends(places(run, run.shown, across)) : [-Infinity, Infinity];
      const inside = held.map((pair, index) => index).filter((index) => x[index] >= first && x[index] <= last);
      found.push({run, number, dots: true, x: inside.map((i) => x[i]), mean: inside.map((i) => held[i][1])});
    } else if (curves && curves.of[figure]) {
      found.push({run, number, x: places(run, curves, across), ...curves.of[figure]});
    }
  });
  return found.filter((one) => one.mean.some((value) => value !== null));
}

const ends = (values) => [values.length ? values[0] : 0, values.length ? values[values.length - 1] : 1];

function placeOfStep(run, step, across) {
  if (across === "step" || !run.curves || !run.curves.step.length) return step;
  const index = Math.max(0, Math.min(run.curves.step.length - 1, nearest(run.curves.step, step - 1)));
  return places(run, run.curves, across)[index];
}

/** The index of the value that is nearest to another, in values that ascend. */
function nearest(values, wanted) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle; else high = middle;
  }
  return high >= 0 && Math.abs(values[high] - wanted) < Math.abs(values[low] - wanted) ? high : Math.max(0, low);
}

/** From where to where on the axis a run was recovering. */
function troubles(run, across) {
  const curves = run.shown || run.curves;
  if (!curves || !curves.step.length) return [];
  const on = places(run, curves, across);
  const at = across === "time" ? (time) => run.clock(time) : (time) => on[nearest(curves.time, time)];
  return run.story.filter((told) => told.began !== undefined).map((told) => [at(told.began), at(told.time)]);
}

/** The runs' whole extent on the axis. */
function extent(runs, across) {
  let [low, high] = [Infinity, -Infinity];
  for (const run of runs) {
    const curves = run.shown || run.curves;
    if (!curves || !curves.step.length) continue;
    const [first, last] = ends(places(run, curves, across));
    [low, high] = [Math.min(low, first), Math.max(high, last)];
  }
  return low <= high ? [low, high > low ? high : low + 1] : [0, 1];
}

/** Draws one figure's series into its place; `view`: across, log, extent, reading (where on the axis, or
    null), troubles (from and to). */
function plot(place, series, view) {
  const width = Math.max(200, place.clientWidth), [from, to] = view.extent;
  const usable = (value) => value !== null && (!view.log || value > 0);
  let [low, high] = [Infinity, -Infinity];
  for (const one of series) {
    for (const part of [one.low || one.mean, one.high || one.mean]) {
      for (const value of part) if (usable(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  if (low > high) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  if (!view.log) low = low >= 0 && low < 0.4 * high ? 0 : low - (high - low) * 0.05;
  const scale = view.log && low > 0 ? Math.log10 : (value) => value;
  const [bottom, top] = [scale(low), scale(high)];
  const x = (at) => EDGE.left + ((at - from) / (to - from)) * (width - EDGE.left - EDGE.right);
  const y = (value) => HEIGHT - EDGE.bottom - ((scale(value) - bottom) / (top - bottom)) * (HEIGHT - EDGE.bottom - EDGE.top);

  const root = draw("svg", {width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true"});
  const marks = scale === Math.log10 ? ticks(bottom, top, 3).map((at) => 10 ** at) : ticks(low, high, 4);
  for (const value of marks) {
    const at = y(value);
    if (at < EDGE.top - 1 || at > HEIGHT - EDGE.bottom + 1) continue;
    root.append(draw("line", {class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at}),
      draw("text", {x: EDGE.left - 7, y: at + 4, "text-anchor": "end"}, short(value, 3)));
  }
  const across = view.across === "time" ? timeTicks(from, to, width / 90) : ticks(from, to, width / 75).map((at) => [at, short(at, 3)]);
  for (const [at, words] of across) {
    if (at > to || at < from) continue;
    root.append(draw("text", {x: x(at), y: HEIGHT - 5, "text-anchor": "middle"}, words));
  }
  root.append(draw("line", {class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom}));
  for (const [began, ended] of view.troubles) {
    if (ended < from || began > to) continue;
    const start = x(Math.max(from, began));
    root.append(draw("rect", {class: "trouble", x: start, y: EDGE.top, width: Math.max(view.troubles.length > 20 ? 0.7 : 2, x(Math.min(to, ended)) - start), height: HEIGHT - EDGE.top - EDGE.bottom}));
  }
  for (const one of series) {
    const colour = tone(one.number);
    if (one.low) root.append(draw("path", {class: "band", d: bandOf(one, x, y, usable), fill: colour}));
    root.append(draw("path", {class: "line", d: lineOf(one, x, y, usable), stroke: colour, "stroke-dasharray": DASHES[one.number]}));
    if (one.dots) one.x.forEach((at, index) => root.append(draw("circle", {cx: x(at), cy: y(one.mean[index]), r: 3.2, fill: colour})));
  }
  if (view.reading !== null && view.reading >= from && view.reading <= to) {
    const at = x(view.reading);
    root.append(draw("line", {class: "reading", x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom}));
    for (const one of series) {
      const index = nearest(one.x, view.reading);
      if (usable(one.mean[index])) root.append(draw("circle", {class: "dot", cx: x(one.x[index]), cy: y(one.mean[index]), r: 4, fill: tone(one.number)}));
    }
  }
  if (view.drag) root.append(draw("rect", {class: "chosen", x: Math.min(x(view.drag[0]), x(view.drag[1])), y: EDGE.top,
    width: Math.abs(x(view.drag[1]) - x(view.drag[0])), height: HEIGHT - EDGE.top - EDGE.bottom}));
  place.replaceChildren(root);
  place.placeAt = (pixel) => from + ((pixel - EDGE.left) / (width - EDGE.left - EDGE.right)) * (to - from);
}

function lineOf(one, x, y, usable) {
  let path = "", pen = "M";
  for (let index = 0; index < one.mean.length; index++) {
    if (!usable(one.mean[index])) { pen = "M"; continue; }
    path += `${pen}${x(one.x[index]).toFixed(1)} ${y(one.mean[index]).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

/** Down the highest values and back along the lowest, stretch by stretch. */
function bandOf(one, x, y, usable) {
  let path = "", stretch = [];
  const close = () => {
    if (stretch.length > 1) path += "M" + stretch.map((i) => `${x(one.x[i]).toFixed(1)} ${y(one.high[i]).toFixed(1)}`).join("L")
      + "L" + stretch.reverse().map((i) => `${x(one.x[i]).toFixed(1)} ${y(one.low[i]).toFixed(1)}`).join("L") + "Z";
    stretch = [];
  };
  for (let index = 0; index < one.mean.length; index++) {
    if (usable(one.low[index])) stretch.push(index); else close();
  }
  close();
  return path;
}

/** What a figure's series are at a place of the axis, in words. */
function readings(series, at, many) {
  return series.map((one) => {
    const value = one.mean[at === null ? one.mean.length - 1 : nearest(one.x, at)];
    return many ? `${one.run.name} ${short(value)}` : short(value);
  }).join(", ");
}

/** First, last, lowest and highest of a series. */
function rowOf(figure, one, at) {
  const known = one.mean.filter((value) => value !== null);
  const lowest = (one.low || one.mean).filter((value) => value !== null), highest = (one.high || one.mean).filter((value) => value !== null);
  const least = lowest.reduce((a, b) => Math.min(a, b), Infinity), most = highest.reduce((a, b) => Math.max(a, b), -Infinity);
  return [title(figure), one.run.name, short(known[0]), short(known[known.length - 1]), short(least), short(most), readings([one], at, false)];
}
