// One asset: how to use it, what it is, its files.
import { assetLink, attribute, card, h, meter, reconcile, say, table } from "./dom.js";
import { bytes, counted, percent } from "./format.js";

const AGAIN = 5000; // milliseconds until what is resident is looked at again

export class AssetView {
  constructor(page) {
    this.page = page;
    this.element = h("div", { class: "grid" });
    this.key = null;
  }

  show(parameters) {
    const key = parameters.get("key") ?? "";
    if (key === this.key) return;
    this.key = key;
    this.built = false;
    const [genome] = key.split("/");
    this.crumbs = h("p", { class: "crumbs" }, h("a", { href: "#catalog" }, "Catalog"), " / ", h("a", { href: `#catalog?q=${encodeURIComponent(genome)}` }, genome));
    this.state = h("p", { class: "dim", role: "status" }, "Asking …");
    this.head = h("section", { class: "card" }, this.crumbs, h("h1", {}, key), this.state);
    this.element.replaceChildren(this.head);
    this.load();
  }

  update() {
    if (this.built && !this.loading && Date.now() - this.loaded > AGAIN) this.load();
  }

  async load() {
    const key = this.key;
    this.loading = true;
    try {
      const asset = await this.page.ask(`api/asset?key=${encodeURIComponent(key)}`, 45000);
      if (key === this.key) this.render(asset);
    } catch (error) {
      if (key === this.key && !this.built) this.state.replaceChildren(error.status === 404 ? `${error.message}. ` : `It could not be had: ${error.message}. `, h("a", { href: "#catalog" }, "Search the catalog"), ".");
    } finally {
      this.loading = false;
      this.loaded = Date.now();
    }
  }

  render(asset) {
    if (!this.built) this.build(asset);
    say(this.state, asset.description || asset.genome_description || "\u00a0");
    say(this.here, asset.size === null ? `${bytes(asset.resident)}; not all sizes are known yet` : `${bytes(asset.resident)} of ${bytes(asset.size)} (${percent(asset.resident, asset.size)})`);
    say(this.pinned, asset.pinned_by.length ? `yes, by ${asset.pinned_by.map((one) => one || "an earlier version").join(", ")}` : `no; refgenfs pin ${asset.key} keeps it`);
    say(this.fileCount, asset.files.length ? counted(asset.files.length + asset.more, "file") + (asset.more ? `, the first ${asset.files.length} shown` : "") : "");
    this.noFiles.hidden = asset.files.length > 0;
    say(this.noFiles, asset.error || "It has no files.");
    this.list.scroll.hidden = !asset.files.length;
    reconcile(this.list.body, asset.files, (row) => row.name, (row) => {
      const bar = meter(`Resident of ${row.name}`);
      const line = h("tr", {}, h("th", { scope: "row", class: "name mono", title: row.name }, row.name), h("td", { class: "num" }), h("td", { class: "meter-cell" }, bar.bar), h("td", { class: "num" }), h("td", {}), h("td", { class: "narrow-hide" }));
      line.refgenfs = bar;
      return line;
    }, (line, row) => {
      say(line.children[1], row.size === null ? "not known yet" : bytes(row.size));
      if (row.size !== null) attribute(line.children[1], "title", `${row.size.toLocaleString("en")} bytes`);
      line.refgenfs.show(row.resident, Math.max(1, row.size ?? 1));
      say(line.children[3], bytes(row.resident));
      say(line.children[4], row.pinned_by.length ? "pinned" : "");
      say(line.children[5], row.route ?? "");
    });
  }

  build(asset) {
    this.built = true;
    this.here = h("dd");
    this.pinned = h("dd");
    const fact = (title, value) => (value ? [h("dt", {}, title), value instanceof Node ? value : h("dd", {}, value)] : []);
    const tags = h("dd", {}, asset.tags.flatMap((tag, at) => [at ? ", " : "", tag === asset.tag ? h("strong", {}, tag) : assetLink(`${asset.genome}/${asset.asset}:${tag}`, tag)]), asset.default ? " (the default)" : "");
    const mono = (text) => h("dd", { class: "mono" }, text);
    const facts = h("dl", { class: "facts" }, fact("Folder", mono(asset.path)), fact("Here", this.here), fact("Pinned", this.pinned), fact("Source", asset.source),
      fact("Genome", asset.genome_description), fact("Also called", asset.names.filter((one) => one !== asset.genome && one !== asset.genome_digest).join(", ")), fact("Tag", tags),
      fact("Unpacked", asset.asset_size), fact("Archive", asset.archive_size), fact("Digest", asset.digest && mono(asset.digest)), fact("Genome's digest", asset.genome_digest && mono(asset.genome_digest)));
    const use = card("Use it", "", ...asset.lines.map((line) => this.command(line.text)), this.command(`refgenfs pull ${asset.key}`));
    const about = card("What it is", "", facts);
    this.list = table("Files", [["File", ""], ["Size", "num"], ["Here", ""], ["", "num"], ["", ""], ["Comes by", "narrow-hide"]]);
    [...this.list.head.children].forEach((cell, at) => { if (!cell.textContent) cell.append(h("span", { class: "sr" }, at === 3 ? "Bytes here" : "Pinned")); });
    this.noFiles = h("p", { class: "empty" });
    const files = card("Files", "", this.list.scroll, this.noFiles);
    this.fileCount = h("span", { class: "dim" });
    files.top.append(this.fileCount);
    this.element.append(use.element, about.element, files.element);
  }

  command(text) {
    const line = h("pre", { tabIndex: 0, "aria-label": "Command" }, text);
    const button = h("button", { type: "button", "aria-label": `Copy: ${text}` }, "Copy");
    button.addEventListener("click", async () => {
      const done = await copy(text, line);
      say(button, done ? "Copied" : "Selected");
      setTimeout(() => say(button, "Copy"), 2000);
    });
    return h("div", { class: "command" }, line, button);
  }
}

// A page that did not come by https or from this machine may not write to the clipboard: then the line is selected.
async function copy(text, line) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(line);
    return document.execCommand("copy");
  }
}
