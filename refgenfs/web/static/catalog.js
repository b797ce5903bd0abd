// What there is: all assets of all genomes, to be searched.
import { assetLink, card, either, h, reconcile, say, table, width } from "./dom.js";
import { bytes, counted, percent } from "./format.js";
import { Pager, ROWS } from "./pager.js";
import { Index, pieces } from "./search.js";

export class CatalogView {
  constructor(page) {
    this.page = page;
    this.index = null;
    this.query = "";
    this.at = 1;
    this.held = new Map();
    this.search = h("input", { id: "search", type: "search", autocomplete: "off", spellcheck: false, placeholder: "hg38 bwa", oninput: () => this.typed(),
      onkeydown: (event) => this.arrow(event) });
    this.source = h("select", { id: "source", onchange: () => this.typed() }, h("option", { value: "" }, "all"));
    this.only = h("input", { id: "only", type: "checkbox", onchange: () => this.typed() });
    this.sources = h("div", { hidden: true }, h("label", { for: "source" }, "Source"), this.source);
    this.found = h("p", { class: "dim", role: "status" }, "Loading the catalog …");
    this.list = table("Assets", [["Asset", ""], ["Description", "narrow-hide"], ["Size", "num"], ["Here", ""], ["Source", "narrow-hide"]]);
    this.list.body.addEventListener("keydown", (event) => this.arrow(event));
    this.none = h("div", { class: "empty", hidden: true });
    this.pager = new Pager((step) => this.turn(step));
    const made = card("Assets", "", h("div", { class: "tools" },
      h("div", { class: "grow" }, h("label", { for: "search" }, "Search genomes, assets, descriptions and digests (press / from anywhere)"), this.search), this.sources,
      h("div", { class: "check" }, this.only, " ", h("label", { for: "only", class: "inline" }, "only what is here"))), this.list.scroll, this.none, this.pager.element);
    made.top.append(this.found);
    this.element = h("div", { class: "grid" }, h("h1", { class: "sr" }, "Catalog"), made.element);
  }

  show(parameters) {
    this.query = parameters.get("q") ?? "";
    this.at = Number(parameters.get("page")) || 1;
    if (this.search.value !== this.query) this.search.value = this.query;
    this.wantedSource = parameters.get("source") ?? "";
    this.source.value = this.wantedSource;
    this.only.checked = parameters.has("here");
    this.render();
  }

  update(now) {
    if (this.revision !== now.catalog && !this.loading) this.load(now.catalog);
    if (!this.looking && Date.now() - (this.looked ?? 0) > 5000) this.look();
  }

  async load(revision) {
    this.loading = true;
    try {
      const catalog = await this.page.lists.catalogFor(revision);
      this.index = new Index(catalog);
      this.revision = catalog.revision; // not what was asked for: it may be a moment old, and is asked for again then
      this.source.replaceChildren(h("option", { value: "" }, "all"), ...catalog.sources.map((name) => h("option", { value: name }, name)));
      this.source.value = this.wantedSource;
      this.sources.hidden = catalog.sources.length < 2;
      this.render();
    } catch (error) {
      say(this.found, `The catalog could not be had: ${error.message}`);
    } finally {
      this.loading = false;
    }
  }

  async look() {
    this.looking = true;
    try {
      const cache = await this.page.lists.cacheWithin(5000);
      this.held = new Map(cache.rows.map(([key, , resident, pinned, size]) => [key, { resident, pinned, size }]));
      this.render();
    } catch { /* the next time */ } finally {
      this.looked = Date.now();
      this.looking = false;
    }
  }

  typed() {
    this.query = this.search.value;
    this.at = 1;
    this.wantedSource = this.source.value;
    this.note(false);
    this.render();
  }

  turn(step) {
    this.at += step;
    this.note(true);
    this.render();
    this.list.body.querySelector("a")?.focus();
  }

  // What is searched for stands in the address: it can be sent to somebody, and the back button leaves the search.
  note(push) {
    const wanted = new URLSearchParams();
    if (this.query.trim()) wanted.set("q", this.query.trim());
    if (this.source.value) wanted.set("source", this.source.value);
    if (this.only.checked) wanted.set("here", "");
    if (this.at > 1) wanted.set("page", this.at);
    const text = wanted.toString();
    history[push ? "pushState" : "replaceState"](null, "", `#catalog${text ? `?${text}` : ""}`);
  }

  arrow(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const links = [...this.list.body.querySelectorAll("th a")];
    const at = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    if (at < 0) this.search.focus();
    else links[Math.min(at, links.length - 1)]?.focus();
  }

  render() {
    if (!this.index) return;
    const began = performance.now();
    const keep = this.only.checked ? (row) => this.held.has(row.key) : null;
    const found = this.index.find(this.query, this.source.value, keep);
    this.searched = performance.now() - began;
    this.at = this.pager.show(this.at, found.length);
    const all = this.index.rows.length;
    say(this.found, found.length === all ? counted(all, "asset") : `${counted(found.length, "asset")} of ${all.toLocaleString("en")}`);
    either(found.length > 0, this.list.scroll, this.none);
    if (!found.length) this.explain(all);
    reconcile(this.list.body, found.slice((this.at - 1) * ROWS, this.at * ROWS), (row) => `${row.key} ${this.query}`, (row) => this.line(row), (line, row) => this.fill(line, row));
    this.element.dataset.searched = this.searched.toFixed(2);
    this.element.dataset.rendered = (performance.now() - began).toFixed(2);
  }

  line(row) {
    const marked = pieces(row.key, this.query).map(([text, is]) => (is ? h("mark", {}, text) : text));
    const name = h("th", { scope: "row", class: "name", title: [`${row.genome}/${row.asset}:${row.tag}`, ...row.others].join("\n") }, assetLink(row.key, ...marked));
    return h("tr", {}, name, h("td", { class: "name narrow-hide dim", title: row.description }, row.description), h("td", { class: "num" }, row.size || "–"),
      h("td", { class: "meter-cell" }, h("div", { class: "meter" }, h("span"))), h("td", { class: "narrow-hide" }, row.source));
  }

  fill(line, row) {
    const held = this.held.get(row.key);
    const bar = line.children[3].firstChild;
    width(bar.firstChild, held ? held.resident / Math.max(1, held.size) : 0);
    bar.title = held ? `${bytes(held.resident)} here, ${percent(held.resident, held.size)} of the files that were read${held.pinned ? ", pinned" : ""}` : "nothing here";
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", bar.title);
    bar.firstChild.className = held?.pinned ? "pinned" : "";
  }

  explain(all) {
    if (!all) say(this.none, "No source has told yet what it has. The overview says which of them answer.");
    else if (this.only.checked) say(this.none, "Nothing of that is here. What is read stays; refgenfs pull fetches before it is read.");
    else this.none.replaceChildren("Nothing matches. All words have to be there; try fewer of them, or ", h("a", { href: "#catalog" }, "show all assets"), ".");
  }
}
