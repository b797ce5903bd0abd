// What is on this machine: assets by how much of them is resident, and what of it is pinned.
import { assetLink, attribute, card, either, h, reconcile, say, table, width } from "./dom.js";
import { age, bytes, clock, count, counted, percent } from "./format.js";
import { Pager, ROWS } from "./pager.js";
import { squarify } from "./treemap.js";

const TILES = 60; // more could not be told apart
const COLUMNS = [["key", "Asset", ""], ["resident", "Here", "num"], ["share", "Of the files read", ""], ["pinned", "Pinned", "num"], ["files", "Files", "num"], ["last_used", "Last read", "num"]];

export class CacheView {
  constructor(page) {
    this.page = page;
    this.rows = [];
    this.at = 1;
    this.sort = "resident";
    this.total = h("div", { class: "meter tall", role: "img" }, h("span", { class: "pinned" }), h("span"));
    this.totalText = h("p", { class: "dim" }, "\u00a0");
    this.trouble = h("p", { class: "bad", hidden: true });
    this.tiles = h("div", { class: "tiles", role: "group", "aria-label": "Resident bytes by asset, as areas; the table below has the same" });
    this.list = table("Cache by asset", COLUMNS.map(([, title, classes]) => [title, classes]));
    this.none = h("p", { class: "empty", hidden: true }, "Nothing is here yet. What is read stays here; ", h("code", {}, "refgenfs pull KEY"), " fetches an asset before it is read, and with ",
      h("code", {}, "--pin"), " it stays.");
    this.pager = new Pager((step) => { this.at += step; this.note(); this.render(); });
    [...this.list.head.children].forEach((cell, at) => {
      const [name, title] = COLUMNS[at];
      if (name === "share") return;
      cell.replaceChildren(h("button", { type: "button", onclick: () => { this.sort = name; this.at = 1; this.note(); this.render(); } }, title));
    });
    const above = card("Cache", "", this.total, this.totalText, this.trouble);
    const map = card("By asset", "", this.tiles, this.none);
    map.top.append(h("span", { class: "dim" }, h("span", { class: "swatch", "aria-hidden": "true" }), "resident ", h("span", { class: "swatch pinned", "aria-hidden": "true" }), "some of it pinned"));
    const below = card("Assets here", "", this.list.scroll, this.pager.element);
    this.below = below.element;
    this.element = h("div", { class: "grid" }, h("h1", { class: "sr" }, "Cache"), above.element, map.element, below.element);
    new ResizeObserver(() => this.draw()).observe(this.tiles);
  }

  show(parameters) {
    this.at = Number(parameters.get("page")) || 1;
    const wanted = parameters.get("sort");
    this.sort = COLUMNS.some(([name]) => name === wanted) ? wanted : "resident";
    this.render();
  }

  note() {
    const wanted = new URLSearchParams();
    if (this.sort !== "resident") wanted.set("sort", this.sort);
    if (this.at > 1) wanted.set("page", this.at);
    history.replaceState(null, "", `#cache${wanted.size ? `?${wanted}` : ""}`);
  }

  update(now) {
    const { used, size, pinned, contents, evictions, dir, free, min_free: kept, error, opening } = now.cache;
    width(this.total.children[0], size ? pinned / size : 0);
    width(this.total.children[1], size ? Math.max(0, used - pinned) / size : 0);
    const text = `${bytes(used)} of ${bytes(size)} used (${percent(used, size)}), ${bytes(pinned)} of it pinned; ${counted(contents, "file")}, ${counted(evictions, "eviction")}; ${bytes(free)} free on the disk, of which ${bytes(kept)} stay free${dir ? `; in ${dir}` : ""}`;
    say(this.totalText, text);
    attribute(this.total, "aria-label", text);
    this.trouble.hidden = !error && !opening;
    say(this.trouble, opening ? "What the cache holds is still being looked through." : error ? `The disk refuses: ${error}` : "");
    this.now = now.now;
    if (!this.looking && Date.now() - (this.looked ?? 0) > 3000) this.look();
  }

  async look() {
    this.looking = true;
    try {
      const cache = await this.page.lists.cacheWithin(3000);
      this.rows = cache.rows.map(([key, source, resident, pinned, size, files, used]) => ({ key, source, resident, pinned, size, files, last_used: used }));
      this.loaded = true;
      this.render();
      this.draw();
    } catch { /* the next time */ } finally {
      this.looked = Date.now();
      this.looking = false;
    }
  }

  render() {
    if (!this.loaded) return;
    either(this.rows.length > 0, this.tiles, this.none);
    this.below.hidden = !this.rows.length;
    const rows = [...this.rows];
    if (this.sort === "key") rows.sort((one, other) => (one.key < other.key ? -1 : 1));
    else rows.sort((one, other) => other[this.sort] - one[this.sort]);
    this.at = this.pager.show(this.at, rows.length);
    COLUMNS.forEach(([name], at) => {
      const cell = this.list.head.children[at];
      if (name === this.sort) attribute(cell, "aria-sort", name === "key" ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
    reconcile(this.list.body, rows.slice((this.at - 1) * ROWS, this.at * ROWS), (row) => row.key, (row) => h("tr", {},
      h("th", { scope: "row", class: "name" }, row.source ? assetLink(row.key) : h("span", { title: `${row.key}: in no catalog any more` }, row.key)),
      h("td", { class: "num" }), h("td", { class: "meter-cell" }, h("div", { class: "meter", role: "img" }, h("span"))), h("td", { class: "num" }), h("td", { class: "num" }), h("td", { class: "num" })),
    (line, row) => {
      say(line.children[1], bytes(row.resident));
      const bar = line.children[2].firstChild;
      width(bar.firstChild, row.size ? row.resident / row.size : 0);
      attribute(bar, "aria-label", `${percent(row.resident, row.size)} of ${bytes(row.size)}`);
      attribute(bar, "title", `${percent(row.resident, row.size)} of ${bytes(row.size)}`);
      bar.firstChild.className = row.pinned ? "pinned" : "";
      say(line.children[3], row.pinned ? bytes(row.pinned) : "–");
      say(line.children[4], count(row.files));
      say(line.children[5], row.last_used ? age((this.now ?? Date.now() / 1000) - row.last_used) : "–");
      if (row.last_used) attribute(line.children[5], "title", clock(row.last_used));
    });
  }

  draw() {
    if (!this.rows.length || !this.tiles.clientWidth) return;
    const shown = this.rows.slice(0, TILES);
    const rest = this.rows.slice(TILES).reduce((sum, row) => sum + row.resident, 0);
    if (rest) shown.push({ key: `${count(this.rows.length - TILES)} more`, resident: rest, pinned: 0, rest: true });
    shown.sort((one, other) => other.resident - one.resident);
    const boxes = squarify(shown.map((row) => row.resident), this.tiles.clientWidth, this.tiles.clientHeight);
    reconcile(this.tiles, shown.map((row, at) => ({ row, box: boxes[at] })), ({ row }) => row.key, ({ row }) => {
      const tile = row.rest || !row.source ? h("div", { class: "tile" }) : assetLink(row.key, "");
      tile.className = `tile${row.rest ? " rest" : ""}`;
      tile.replaceChildren(h("span", { class: "t1" }, row.key), h("span", { class: "t2 dim" }));
      return tile;
    }, (tile, { row, box }) => {
      for (const side of ["left", "top", "width", "height"]) tile.style[side] = `${box[side].toFixed(1)}px`;
      tile.classList.toggle("pinned", row.pinned > 0);
      const pinned = row.pinned >= row.resident ? "all" : bytes(row.pinned);
      const text = `${bytes(row.resident)}${row.pinned ? `, ${pinned} pinned` : ""}`;
      say(tile.children[1], text);
      attribute(tile, "title", `${row.key}: ${text}`);
      tile.children[0].hidden = box.width < 34 || box.height < 20;
      tile.children[1].hidden = box.width < 50 || box.height < 38;
      if (tile.tagName === "A") attribute(tile, "aria-label", `${row.key}: ${text}`);
    });
  }
}
