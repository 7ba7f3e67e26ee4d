// The report's interaction: a slider that chooses the model, lines to copy, a table of all trials.
// It reads what the page holds; it computes no numbers, and whatever it shows goes in as text, never as HTML.
(() => {
  "use strict";
  const PAGE_ROWS = 25;
  const data = JSON.parse(document.getElementById("trials-data").textContent);
  const find = (id) => document.getElementById(id);
  const pareto = find("figure-pareto");

  // ---- which model to ship

  const form = find("choose");
  const limit = find("limit");
  const picks = [...document.querySelectorAll(".pick")];

  function choose() {
    const by = form.elements.by.value;
    const { asks, id, isSure, certainty } = data.stops[by][limit.value];
    find("asked").textContent = id === null ? "No model with" : by === "loss" ? "Fastest model with" : "Least perplexity lost,";
    find("asks").textContent = asks;
    find("certainty").textContent = certainty;
    find("certainty").className = isSure ? "sure" : "unsure";
    limit.setAttribute("aria-valuetext", asks);
    for (const pick of picks) pick.hidden = pick.dataset.id !== id;
    const shown = picks.find((pick) => !pick.hidden);
    const [x, y] = shown ? JSON.parse(shown.dataset.at) : [null, null];
    const star = pareto?.data.findIndex((trace) => trace.name === "to ship") ?? -1;
    if (star >= 0) Plotly.restyle(pareto, { x: [[x]], y: [[y]] }, [star]);
  }

  function turnTo(by) {
    const before = picks.find((pick) => !pick.hidden)?.dataset.id;
    const stops = data.stops[by];
    const same = stops.findLastIndex((stop) => stop.id === before);
    limit.max = stops.length - 1;
    limit.value = same < 0 ? Math.min(limit.value, limit.max) : same;
    choose();
  }

  if (form) {
    form.hidden = false;
    limit.addEventListener("input", choose);
    for (const radio of form.elements.by) radio.addEventListener("change", () => turnTo(radio.value));
    choose();
  }
  document.addEventListener("click", async (event) => {
    if (!event.target.matches(".copy")) return;
    const code = event.target.nextElementSibling;
    getSelection().selectAllChildren(code);
    try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
    event.target.textContent = "copied";
    setTimeout(() => { event.target.textContent = "copy"; }, 1500);
  });
  // A figure that was folded away had no width.
  for (const folded of document.querySelectorAll("details")) folded.addEventListener("toggle", () => dispatchEvent(new Event("resize")));

  // ---- all trials: sorted, filtered, a page at a time

  const body = find("trials-body");
  if (!body) return;
  const words = find("trials-find");
  const depth = find("trials-depth");
  const state = find("trials-state");
  const LAYERS = 0; // the column of dropped layers, which comes first
  const STATE = data.columns.indexOf("state");
  const DROPPED = data.columns.indexOf("how many");
  let sorted = { at: data.columns.findIndex((title) => title.startsWith("PPL ratio")), down: false };
  let page = 0;
  let chosen = data.table;

  function show(value) {
    if (Array.isArray(value)) return value.join(", ") || "none";
    if (typeof value !== "number") return value ?? "–";
    return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3);
  }

  function filter() {
    const wanted = words.value.split(/[^0-9]+/).filter(Boolean).map(Number);
    chosen = data.table.filter((row) =>
      wanted.every((layer) => row[LAYERS].some((part) => parseInt(part, 10) === layer))
      && (!depth.value || row[DROPPED] === Number(depth.value))
      && (!state.value || row[STATE] === state.value));
    const { at, down } = sorted;
    chosen.sort((one, other) => {
      const [a, b] = [one[at], other[at]];
      if (a == null || b == null) return (a == null) - (b == null);
      const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    });
    page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE_ROWS));
    const shown = chosen.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS);
    body.replaceChildren(...shown.map((row) => {
      const line = document.createElement("tr");
      row.forEach((value, index) => {
        const cell = document.createElement(index ? "td" : "th");
        cell.append(show(value));
        if (typeof value === "string") cell.className = "words";
        line.append(cell);
      });
      return line;
    }));
    find("trials-count").textContent = `${chosen.length.toLocaleString("en")} of ${data.table.length.toLocaleString("en")} trials; page ${page + 1} of ${pages}`;
    find("trials-before").disabled = page === 0;
    find("trials-after").disabled = page + 1 >= pages;
    for (const button of document.querySelectorAll("[data-sort]")) {
      const isSorted = Number(button.dataset.sort) === sorted.at;
      button.closest("th").setAttribute("aria-sort", isSorted ? (sorted.down ? "descending" : "ascending") : "none");
    }
  }

  function download() {
    // a spreadsheet would run what begins like a formula; a number that is below zero is none
    const guard = (value) => (typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value));
    const quote = (value) => (value == null ? "" : /[",\r\n]/.test(value) ? `"${guard(value).replaceAll('"', '""')}"` : guard(value));
    const lines = [data.columns, ...chosen].map((row) => row.map((cell) => quote(Array.isArray(cell) ? cell.join(" ") : cell)).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = data.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  for (const control of [words, depth, state]) control.addEventListener("input", filter);
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const at = Number(button.dataset.sort);
      sorted = { at, down: sorted.at === at && !sorted.down };
      filter();
    });
  }
  const turn = (step) => { page += step; draw(); };
  find("trials-before").addEventListener("click", () => turn(-1));
  find("trials-after").addEventListener("click", () => turn(1));
  find("trials-download").addEventListener("click", download);
  filter();
})();
