// The run in a line, and in figures.

function drawHead(run) {
  const head = run.head, silent = head.silent && !run.over;
  const status = silent ? "silent" : head.status;
  say($("name"), run.name);
  $("status").className = `status ${status}`;
  say($("status"), {running: "▶ running", done: "✓ done", failed: "✕ failed", stopped: "■ stopped", recovering: "↻ recovering",
    silent: "? silent", starting: "… starting"}[status] || status);
  document.title = `${run.name}: ${status}, step ${grouped.format(head.step)} – Shoal`;
  say($("sentence"), sentenceOf(run, silent));
  told(run.problem);
  const bar = $("progress");
  bar.hidden = !head.steps;
  bar.setAttribute("aria-valuemax", head.steps || 0);
  bar.setAttribute("aria-valuenow", head.step);
  bar.setAttribute("aria-valuetext", `${grouped.format(head.step)} of ${grouped.format(head.steps || 0)} steps`);
  bar.firstElementChild.style.width = `${head.steps ? Math.min(100, (100 * head.step) / head.steps) : 0}%`;
  const bpb = (run.heldout || {}).bpb || Object.values(run.heldout || {})[0];
  const lost = head.steps_lost;
  const tiles = [
    ["Step", grouped.format(head.step), head.steps ? `of ${grouped.format(head.steps)}` : "", ""],
    ["Loss", short(head.loss), "nats a token, last step", ""],
    ["Tokens a second", short(head.rate), `median of late; ${short(head.tokens)} in all`, ""],
    ["Held-out", bpb ? short(bpb[bpb.length - 1][1]) : "–", bpb ? `${title("held:" + (run.heldout.bpb ? "bpb" : Object.keys(run.heldout)[0]))}, first ${short(bpb[0][1])}` : "no evaluation yet", ""],
    ["Workers", grouped.format(head.training), `in ${plural(head.cells, "cell")}, ${plural(head.spares, "spare")}`, ""],
    ["Died", grouped.format(head.deaths), head.nodes_lost ? plural(head.nodes_lost, "node") + " lost" : "no node lost", ""],
    ["Recoveries", grouped.format(head.recoveries), head.next_commit === null ? "none needed" : `next step after ${head.next_commit.toFixed(2)} s (median)`, ""],
    ["Steps lost", grouped.format(lost), lost ? "taken back and done again" : "nothing was done twice", lost ? "bad" : "good"],
  ];
  const place = $("tiles");
  if (place.children.length !== tiles.length) {
    place.replaceChildren(...tiles.map(([name]) => make("div", {}, make("dt", {}, name), make("dd"), make("dd", {class: "more"}))));
  }
  tiles.forEach(([, value, more, mood], index) => {
    const tile = place.children[index];
    tile.className = mood;
    say(tile.children[1], value);
    say(tile.children[2], more);
  });
}

function sentenceOf(run, silent) {
  const head = run.head;
  if (silent) return head.age === null ? "The controller has not written yet." : `The controller has written nothing for ${duration(head.age)}: what stands here is old.`;
  if (run.over) return head.reason ? `Ended: ${head.reason}.` : "It has ended.";
  const left = head.steps && head.step_seconds ? (head.steps - head.step) * head.step_seconds : null;
  const parts = [`generation ${head.generation ?? "–"}`];
  if (left !== null && head.step) parts.push(`about ${duration(left)} left`);
  if (head.asked) parts.push(`${plural(head.asked, "slot")} asked of the autoscaler`);
  if (head.behind) parts.push(`its store ${head.behind.toFixed(1)} s behind`);
  return parts.join(", ");
}
