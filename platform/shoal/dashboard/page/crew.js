// Who is there: cells with their seats, or nodes with their workers.

const DENSE = 160; // workers from which on they are squares without names

/** `cell 1, stage 0, shard 2`, or what else a worker is. */
function seatWords(worker) {
  if (worker.cell === null) return worker.state === "gone" ? "a spare that went" : "spare";
  const stage = worker.stage === null ? "" : `, stage ${worker.stage}`;
  return `cell ${worker.cell}${stage}, shard ${worker.shard}`;
}

function stateWords(worker, run) {
  if (worker.state === "gone") return "gone" + (worker.how ? `: ${worker.how}` : "");
  const quiet = (run.quiet || {})[worker.actor];
  if (quiet !== undefined) return `quiet for ${quiet.toFixed(0)} s`;
  if (run.over) return worker.state === "spare" ? "was a spare at the end" : "trained to the end";
  return worker.state === "spare" ? "spare" : "trains";
}

/** One worker as a chip; `words`: its two lines. */
function chip(worker, run, words) {
  const quiet = (run.quiet || {})[worker.actor] !== undefined;
  const element = make("div", {class: `worker ${worker.state}${quiet ? " quiet" : ""}`,
    title: `${worker.actor}\n${seatWords(worker)}: ${stateWords(worker, run)}`}, make("b", {}, words[0]), words[1]);
  if (worker.state === "trains" && worker.cell !== null) element.style.setProperty("--tone", tone(Number(worker.cell) || 0));
  return element;
}

function drawCrew(place, run, arrange) {
  const {workers, nodes} = run.map;
  const stages = workers.some((worker) => worker.stage);
  place.className = "cells" + (workers.length > DENSE ? " dense" : "");
  place.replaceChildren(...(arrange === "node" ? byNode(run, workers, nodes, stages) : byCell(run, workers, stages)));
  place.setAttribute("aria-label", crewWords(run, workers, nodes));
}

function byCell(run, workers, stages) {
  const cells = groups(workers.filter((worker) => worker.cell !== null && worker.state !== "gone"), (worker) => worker.cell);
  const boxes = [...cells].map(([cell, crew]) => {
    const seats = make("div", {class: "seats"});
    const shards = Math.max(...crew.map((worker) => worker.shard ?? worker.rank ?? 0)) + 1;
    seats.style.gridTemplateColumns = `repeat(${shards}, minmax(0, auto))`;
    for (const worker of crew) {
      const element = chip(worker, run, [worker.node, stages ? `stage ${worker.stage}, shard ${worker.shard}` : `shard ${worker.shard}`]);
      element.style.gridRow = (worker.stage || 0) + 1;
      element.style.gridColumn = (worker.shard ?? worker.rank ?? 0) + 1;
      seats.append(element);
    }
    const box = make("div", {class: "cell"}, make("h3", {}, `Cell ${cell}`, make("small", {}, plural(crew.length, "worker"))), seats);
    box.style.setProperty("--tone", tone(Number(cell) || 0));
    return box;
  });
  const others = (state, name) => {
    const crew = workers.filter((worker) => worker.state === state);
    if (!crew.length) return null;
    const seats = make("div", {class: "cells"}, ...crew.map((worker) =>
      chip(worker, run, [(state === "gone" ? "✕ " : "") + worker.node, state === "gone" && worker.cell !== null ? `was in cell ${worker.cell}` : "spare"])));
    return make("div", {class: "cell" + (state === "gone" ? " lost" : "")}, make("h3", {}, name, make("small", {}, plural(crew.length, "worker"))), seats);
  };
  return [...boxes, others("spare", "Spares"), others("gone", "Gone")].filter((box) => box !== null);
}

function byNode(run, workers, nodes, stages) {
  const crews = groups(workers, (worker) => worker.node);
  return Object.entries(nodes).map(([node, state]) => {
    const crew = crews.get(node) || [];
    const said = {here: plural(crew.length, "worker"), gone: "gone", lost: "✕ lost", draining: "▼ to go", aside: "set aside"}[state];
    return make("div", {class: "cell" + (state === "here" ? "" : " lost")}, make("h3", {}, node, make("small", {}, said)),
      make("div", {class: "cells"}, ...crew.map((worker) => {
        const seat = worker.cell === null ? "spare" : stages ? `stage ${worker.stage}, shard ${worker.shard}` : `shard ${worker.shard}`;
        return chip(worker, run, [(worker.state === "gone" ? "✕ " : "") + (worker.cell === null ? "–" : `cell ${worker.cell}`), seat]);
      })));
  });
}

function groups(items, key) {
  const found = new Map();
  for (const item of items) found.set(key(item), [...(found.get(key(item)) || []), item]);
  return found;
}

/** The picture in one sentence. */
function crewWords(run, workers, nodes) {
  const of = (state) => workers.filter((worker) => worker.state === state);
  const cells = new Set(of("trains").map((worker) => worker.cell)).size;
  const lost = Object.entries(nodes).filter(([, state]) => state !== "here").map(([node]) => node);
  return `${plural(of("trains").length, "worker")} in ${plural(cells, "cell")}, ${plural(of("spare").length, "spare")}, `
    + `${plural(of("gone").length, "worker")} gone` + (lost.length ? `; not as they should be: ${lost.slice(0, 8).join(", ")}` : "");
}

function crewTable(run) {
  const rows = run.map.workers.slice(0, 1000).map((worker) => [worker.cell ?? "–", worker.stage ?? "–", worker.shard ?? "–",
    worker.node, stateWords(worker, run), worker.pid ?? "–", worker.actor]);
  const more = run.map.workers.length > 1000 ? `, the first 1,000 of ${run.map.workers.length}` : "";
  return table(`Generation ${run.map.generation ?? "–"}: every worker${more}`, ["cell", "stage", "shard", "node", "state", "pid", "name"], rows);
}
