// Throughput over time as lines, and as a table for who does not see them.
import { h, say, svg } from "./dom.js";
import { bytes, clock, duration, rate } from "./format.js";

const LEFT = 64;
const BOTTOM = 20;
const TOP = 8;
const ROWS = 12; // of the table
const SPANS = [60, 120, 300, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400]; // seconds

export class Chart {
  constructor() {
    this.plot = svg("svg", { role: "img", "aria-label": "Throughput" });
    this.box = h("div", { class: "chart" }, this.plot);
    this.readout = h("p", { class: "readout" }, "\u00a0");
    this.body = h("tbody");
    const head = h("tr", {}, ["Until", "Served", "Fetched"].map((one, at) => h("th", { scope: "col", class: at ? "num" : "" }, one)));
    this.table = h("details", {}, h("summary", {}, "As a table"),
      h("table", {}, h("caption", { class: "sr" }, "Throughput over time"), h("thead", {}, head), this.body));
    this.table.addEventListener("toggle", () => this.tabulate());
    this.points = [];
    this.cursor = null;
    this.box.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => { this.cursor = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  // `samples` are rows [when, served, fetched, …] of counters that grow; `longest` is how much of time is shown, or
  // less while there is not as much.
  show(samples, longest) {
    const have = samples.length ? samples.at(-1)[0] - samples[0][0] : 0;
    this.span = SPANS.find((one) => one >= have && one >= longest / 20) ?? longest;
    this.span = Math.min(this.span, longest);
    this.points = [];
    for (let at = 1; at < samples.length; at += 1) {
      const [before, row] = [samples[at - 1], samples[at]];
      const seconds = row[0] - before[0];
      if (seconds > 0) this.points.push({ when: row[0], seconds, served: (row[1] - before[1]) / seconds, fetched: (row[2] - before[2]) / seconds });
    }
    this.draw();
    this.tabulate();
  }

  scale() {
    const width = Math.max(160, this.box.clientWidth);
    const height = this.box.clientHeight;
    const end = this.points.at(-1)?.when ?? Date.now() / 1000;
    const most = Math.max(1000, ...this.points.map((one) => Math.max(one.served, one.fetched)));
    const unit = 10 ** Math.floor(Math.log10(most));
    const top = [1, 2, 3, 4, 5, 6, 8, 10].map((one) => one * unit).find((one) => one >= most);
    const x = (when) => LEFT + ((when - (end - this.span)) / this.span) * (width - LEFT - 4);
    const y = (value) => height - BOTTOM - (value / top) * (height - BOTTOM - TOP);
    return { width, height, end, top, x, y };
  }

  draw() {
    if (!this.box.clientWidth || !this.span) return;
    const { width, height, end, top, x, y } = this.scale();
    const seen = this.points.filter((one) => one.when >= end - this.span);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const at = y(share * top);
      parts.push(svg("line", { class: "gridline", x1: LEFT, x2: width, y1: at, y2: at }));
      parts.push(svg("text", { class: "tick", x: LEFT - 8, y: at + 4, "text-anchor": "end" }, share ? rate(share * top) : "0"));
    }
    const ticks = width < 480 ? 2 : 5;
    for (let at = 0; at <= ticks; at += 1) {
      const when = end - this.span + (this.span * at) / ticks;
      const anchor = at === 0 ? "start" : at === ticks ? "end" : "middle";
      parts.push(svg("text", { class: "tick", x: x(when), y: height - 4, "text-anchor": anchor }, new Date(when * 1000).toLocaleTimeString("en-GB").slice(0, this.span > 300 ? 5 : 8)));
    }
    if (seen.length) {
      const line = (name) => seen.map((one, at) => `${at ? "L" : "M"}${x(one.when).toFixed(1)} ${y(one[name]).toFixed(1)}`).join("");
      const base = y(0).toFixed(1);
      parts.push(svg("path", { class: "served-area", d: `${line("served")}L${x(seen.at(-1).when).toFixed(1)} ${base}L${x(seen[0].when).toFixed(1)} ${base}Z` }));
      parts.push(svg("path", { class: "served", d: line("served") }));
      parts.push(svg("path", { class: "fetched", d: line("fetched") }));
    }
    this.plot.replaceChildren(...parts);
    this.read(seen, x, height);
  }

  point(event) {
    this.cursor = event.clientX - this.box.getBoundingClientRect().left;
    this.draw();
  }

  read(seen, x, height) {
    let chosen = seen.at(-1);
    if (this.cursor !== null && seen.length) {
      chosen = seen.reduce((best, one) => (Math.abs(x(one.when) - this.cursor) < Math.abs(x(best.when) - this.cursor) ? one : best));
      this.plot.append(svg("line", { class: "cursor", x1: x(chosen.when), x2: x(chosen.when), y1: TOP, y2: height - BOTTOM }));
    }
    say(this.readout, chosen ? `${clock(chosen.when)}: served ${rate(chosen.served)}, fetched ${rate(chosen.fetched)}` : "No samples yet: the first comes within two seconds.");
    if (!chosen) return;
    const peak = Math.max(...seen.map((one) => one.served));
    const label = `Throughput of the last ${duration(this.span)}: served ${rate(seen.at(-1).served)} now, ${rate(peak)} at most. The same stands in a table below.`;
    if (!this.labelled || Date.now() - this.labelled > 10000) {
      this.plot.setAttribute("aria-label", label);
      this.labelled = Date.now();
    }
  }

  // The span in a dozen rows: what went in each of them, and how quickly on the average.
  tabulate() {
    if (!this.table.open || !this.points.length) return;
    const end = this.points.at(-1).when;
    const rows = [];
    for (let at = 0; at < ROWS; at += 1) {
      const until = end - (this.span * at) / ROWS;
      const some = this.points.filter((one) => one.when <= until && one.when > until - this.span / ROWS);
      if (!some.length) continue;
      const sum = (name) => some.reduce((all, one) => all + one[name] * one.seconds, 0);
      const seconds = some.reduce((all, one) => all + one.seconds, 0);
      const cell = (name) => h("td", { class: "num" }, `${bytes(sum(name))} (${rate(sum(name) / seconds)})`);
      rows.push(h("tr", {}, h("th", { scope: "row" }, clock(until)), cell("served"), cell("fetched")));
    }
    this.body.replaceChildren(...rows);
  }
}
