// How the daemon is: what it waits for, what goes through it, what is on its way, who reads, what failed.
import { Chart } from "./chart.js";
import { assetLink, attribute, card, either, h, meter, reconcile, say, svg, table, width } from "./dom.js";
import { age, bytes, clock, count, counted, duration, percent, rate } from "./format.js";

const SIGNS = { good: "✓", note: "·", warn: "!", bad: "✕" };
const WORDS = { good: "All is well", note: "Note", warn: "Warning", bad: "Failure" };
const HOLD = 4000; // milliseconds
const SMOOTH = 3; // seconds over which the rate of a transfer is taken

export class Overview {
  constructor(page) {
    this.page = page;
    this.rates = new Map(); // of what is on its way: [when, bytes] of the last seconds, by its id
    this.known = new Map(); // what was said lately
    this.findings = h("div", { class: "card findings", role: "list", "aria-label": "What is waited for" });
    this.figures = Object.fromEntries([
      ["served", "Served"], ["fetched", "Fetched"], ["saved", "Saved"], ["hits", "Reads from the cache"], ["open", "Files open"], ["cache", "Cache"],
    ].map(([name, title]) => [name, { big: h("dd", {}, "–"), small: h("dd", {}, "\u00a0"), title }]));
    const figures = h("dl", { class: "card figures", "aria-label": "Since it was mounted" },
      Object.values(this.figures).map((one) => h("div", {}, h("dt", {}, one.title), one.big, one.small)));
    this.element = h("div", { class: "grid" }, h("h1", { class: "sr" }, "Overview"),
      this.findings, figures, this.throughput(), this.queues(), this.transfers(), this.waits(), this.sources(), this.users(), this.errors());
  }

  show(parameters) {
    this.range = parameters.get("range") === "day" ? "day" : "minutes";
    for (const button of this.ranges.children) attribute(button, "aria-pressed", button.dataset.range === this.range);
  }

  update(now, history) {
    this.showFindings(now);
    this.showFigures(now);
    if (this.range === "day") this.chart.show(history.coarse, 86400);
    else this.chart.show(history.fine, 600);
    this.showQueues(now);
    this.showTransfers(now);
    this.showWaits(now);
    this.showSources(now);
    this.showUsers(now);
    this.showErrors(now);
  }

  // -- findings and figures --------------------------------------------------------------------------------------

  showFindings(now) {
    reconcile(this.findings, this.settled(now.findings), (row) => `${row.level} ${row.about}`, (row) => h("div", { class: "finding", role: "listitem", data: { level: row.level } },
      h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[row.level]), h("p", { class: "text" }, h("span", { class: "sr" }, `${WORDS[row.level]}: `), h("span")), h("p", { class: "hint" })),
    (item, row) => {
      const since = row.since ? `Since ${clock(row.since)}, for ${duration(Math.max(0, now.now - row.since))}. ` : "";
      say(item.children[1].lastChild, row.text);
      say(item.children[2], `${since}${row.hint}`);
    });
  }

  // What comes and goes within a second is not worth a line that comes and goes: all but failures have to be told of
  // twice, and are shown for some seconds after they were, with a word that they are over.
  settled(findings) {
    const when = Date.now();
    for (const row of findings) {
      const known = this.known.get(row.about);
      this.known.set(row.about, { row, last: when, times: (known?.times ?? 0) + 1 });
    }
    for (const [key, one] of this.known) if (when - one.last > HOLD) this.known.delete(key);
    const bad = [...this.known.values()].filter(({ row, times, last }) => row.level !== "good" && (row.level === "bad" ? last === when : times > 1));
    const order = { bad: 0, warn: 1, note: 2 };
    const said = ({ row, last }) => (last === when ? row : { ...row, text: `Until just now: ${row.text}` });
    const shown = bad.map(said).sort((one, other) => order[one.level] - order[other.level]);
    return shown.length ? shown : [{ level: "good", about: "all", text: "Nothing waits for long. All sources answer.", hint: "What is read is resident, or comes quickly.", since: null }];
  }

  showFigures(now) {
    const put = (name, big, small) => { say(this.figures[name].big, big); say(this.figures[name].small, small); };
    const fine = now.history;
    const [first, last] = [fine.at(-Math.min(fine.length, SMOOTH + 1)), fine.at(-1)];
    const per = (column) => (first && last && last[0] > first[0] ? rate((last[column] - first[column]) / (last[0] - first[0])) : "–");
    put("served", bytes(now.served), `${per(1)} now`);
    put("fetched", bytes(now.fetched), `${per(2)} now`);
    attribute(this.figures.fetched.big, "title", counted(now.requests, "request"));
    put("saved", bytes(now.saved), now.served ? `${percent(now.saved, now.served)} of what was served` : "nothing served yet");
    put("hits", now.hit_ratio === null ? "–" : percent(now.hit_ratio, 1), now.hit_ratio === null ? "no reads yet" : "the others waited");
    put("open", count(now.open_files), now.waiting ? `${counted(now.waiting, "request")} waiting` : "nobody waits");
    put("cache", percent(now.cache.used, now.cache.size), `${bytes(now.cache.used)} of ${bytes(now.cache.size)}`);
  }

  throughput() {
    this.chart = new Chart();
    this.ranges = h("span", { class: "segments", role: "group", "aria-label": "Time shown" },
      [["minutes", "10 min"], ["day", "24 h"]].map(([range, text]) => h("button", {
        type: "button", data: { range }, onclick: () => { location.hash = range === "day" ? "#overview?range=day" : "#overview"; },
      }, text)));
    const stroke = (name) => svg("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" }, svg("line", { class: name, x1: 0, x2: 20, y1: 4, y2: 4 }));
    const made = card("Throughput", "w8", this.chart.box, this.chart.readout, this.chart.table);
    made.top.append(h("span", { class: "legend dim" }, h("span", {}, stroke("served"), "served to readers"), h("span", {}, stroke("fetched"), "fetched from origins")),
      h("span", { class: "end" }, this.ranges));
    return made.element;
  }

  // -- queues ----------------------------------------------------------------------------------------------------

  queues() {
    const line = (title) => ({ title, text: h("dd", { class: "nowrap" }, "–"), bar: meter(title) });
    this.room = {
      cache: line("Cache"), pinned: line("Pinned"), memory: line("Memory in use"),
    };
    this.facts = h("dl", { class: "facts spread" });
    this.factLines = Object.fromEntries(["Waiting for memory", "Waiting for a connection", "On their way", "Evictions", "Free on the disk", "Of that stays free"].map((title) => {
      const text = h("dd", {}, "–");
      this.facts.append(h("dt", {}, title), text);
      return [title, text];
    }));
    const bars = Object.values(this.room).map((one) => h("div", {}, h("dl", { class: "facts spread" }, h("dt", {}, one.title), one.text), one.bar.bar));
    const made = card("Room and queues", "w4", ...bars.map((bar) => { bar.style.marginBottom = "9px"; return bar; }), this.facts);
    return made.element;
  }

  showQueues(now) {
    const put = (one, part, whole) => { one.bar.show(part, whole); say(one.text, `${bytes(part)} of ${bytes(whole)}`); };
    put(this.room.cache, now.cache.used, now.cache.size);
    put(this.room.pinned, now.cache.pinned, now.cache.size);
    put(this.room.memory, now.queues.memory.held, now.queues.memory.size);
    const lines = this.factLines;
    say(lines["Waiting for memory"], count(now.queues.memory.waiting));
    say(lines["Waiting for a connection"], `${count(now.queues.connections.waiting)} (${now.queues.connections.size} to a host)`);
    say(lines["On their way"], `${counted(now.blocks, "block")} of 64 KiB`);
    say(lines.Evictions, count(now.cache.evictions));
    say(lines["Free on the disk"], bytes(now.cache.free));
    say(lines["Of that stays free"], bytes(now.cache.min_free));
  }

  // -- what is on its way ----------------------------------------------------------------------------------------

  transfers() {
    this.flights = table("Transfers", [["What", ""], ["Progress", ""], ["Here", "num"], ["Rate", "num"], ["Left", "num"]]);
    this.noFlights = h("p", { class: "empty" }, "Nothing is on its way. Bytes are fetched when somebody reads what is not here, or by ",
      h("code", {}, "refgenfs pull"), ".");
    const made = card("On its way", "w7", h("div", { class: "steady-box" }, this.flights.scroll, this.noFlights));
    this.flights.scroll.classList.add("steady");
    this.flightCount = h("span", { class: "dim" });
    made.top.append(this.flightCount);
    return made.element;
  }

  showTransfers(now) {
    const rows = [
      ...now.pulls.map((one) => ({ id: `pull ${one.key} ${one.began}`, key: one.key, what: "pull", name: one.file, done: one.done, size: one.total })),
      ...now.making.map((one) => ({ id: `make ${one.key} ${one.files}`, key: one.key, what: "made", name: one.files.join(" and "), done: one.done, size: one.total })),
      ...now.flights.map((one) => ({ ...one, what: "" })),
    ];
    this.note(rows, now.now);
    either(rows.length > 0, this.flights.scroll, this.noFlights);
    say(this.flightCount, rows.length ? counted(now.flying + now.pulls.length, "transfer") : "");
    reconcile(this.flights.body, rows, (row) => row.id, (row) => {
      const bar = meter(`Progress of ${row.key} ${row.name}`);
      const name = h("span");
      const cell = h("th", { class: "name", scope: "row" }, row.what ? h("span", { class: "badge" }, row.what) : null, row.what ? " " : null,
        row.key ? assetLink(row.key) : null, " ", name);
      const line = h("tr", {}, cell, h("td", { class: "meter-cell" }, bar.bar), h("td", { class: "num" }), h("td", { class: "num" }), h("td", { class: "num" }));
      line.refgenfs = { bar, name };
      return line;
    }, (line, row) => {
      const { bar, name } = line.refgenfs;
      bar.show(row.done, row.size);
      say(name, row.name);
      attribute(line.children[0], "title", `${row.key} ${row.name}${row.how ? `: ${row.how}` : ""}`);
      const speed = this.speed(row.id);
      say(line.children[2], row.size ? `${bytes(row.done)} of ${bytes(row.size)}` : bytes(row.done));
      say(line.children[3], speed === null ? "–" : rate(speed));
      say(line.children[4], speed && row.size ? duration(Math.max(0, row.size - row.done) / speed) : "–");
    });
  }

  note(rows, when) {
    const known = this.rates;
    this.rates = new Map(rows.map((row) => {
      const seen = (known.get(row.id) ?? []).filter(([then]) => when - then <= SMOOTH);
      return [row.id, [...seen, [when, row.done]]];
    }));
  }

  speed(id) {
    const seen = this.rates.get(id);
    const [first, last] = [seen[0], seen.at(-1)];
    return last[0] > first[0] ? Math.max(0, (last[1] - first[1]) / (last[0] - first[0])) : null;
  }

  waits() {
    this.waiting = table("Requests that wait", [["For", "num"], ["Process", ""], ["File, and what it waits for", ""]]);
    this.noWaits = h("p", { class: "empty" }, "No read waits. ", h("code", {}, "refgenfs trace --waits"), " tells of each that does, as it happens.");
    this.waiting.scroll.classList.add("steady");
    return card("Who waits, and for what", "w5", h("div", { class: "steady-box" }, this.waiting.scroll, this.noWaits)).element;
  }

  showWaits(now) {
    either(now.waits.length > 0, this.waiting.scroll, this.noWaits);
    if (!now.whole) say(this.noWaits, "None of your reads waits.");
    reconcile(this.waiting.body, now.waits, (row) => `${row.pid} ${row.path} ${row.offset}`, () => h("tr", {},
      h("td", { class: "num" }), h("td", { class: "nowrap" }), h("td", { class: "wrap" }, h("span", { class: "mono" }), h("br"), h("span", { class: "dim" }))),
    (line, row) => {
      say(line.children[0], duration(row.seconds));
      say(line.children[1], `${row.command} ${row.pid}`);
      say(line.children[2].firstChild, row.path || "no file yet");
      say(line.children[2].lastChild, row.waits_for);
    });
  }

  // -- sources, users, errors ------------------------------------------------------------------------------------

  sources() {
    this.sourceTable = table("Sources", [["Source", ""], ["Health", ""], ["Catalog", ""], ["Assets", "num narrow-hide"], ["Here", "num"], ["Served", "num"], ["Fetched", "num"], ["Saved", "num narrow-hide"]]);
    const made = card("Sources", "", this.sourceTable.scroll);
    this.held = {};
    this.looked = 0;
    return made.element;
  }

  showSources(now) {
    if (Date.now() - this.looked > 10000) { // what is resident of each: once in a while is enough
      this.looked = Date.now();
      this.page.lists.cacheWithin(10000).then((cache) => { this.held = cache.by_source; }, () => {});
    }
    reconcile(this.sourceTable.body, now.sources, (row) => row.name, () => h("tr", {},
      h("th", { scope: "row", class: "source" }, h("span"), h("span", { class: "dim wrap mono url narrow-hide" })), h("td", { class: "wrap" }, h("span", { class: "badge" }), h("span", { class: "bad" })),
      h("td", { class: "nowrap" }), h("td", { class: "num narrow-hide" }), h("td", { class: "num" }), h("td", { class: "num" }), h("td", { class: "num" }), h("td", { class: "num narrow-hide" })),
    (line, row) => {
      const [name, health, catalog, assets, here, served, fetched, saved] = line.children;
      say(name.children[0], `${row.name} `);
      say(name.children[1], row.url);
      const since = row.failing_since ? ` since ${clock(row.failing_since)}` : "";
      say(health.children[0], row.healthy ? "answers" : `fails${since}`);
      health.children[0].className = `badge ${row.healthy ? "good" : "bad"}`;
      say(health.children[1], row.error ? ` ${row.error}` : "");
      say(catalog, row.age === null ? "never told" : `told ${age(row.age)}`);
      say(assets, count(row.assets));
      say(here, bytes(this.held[row.name] ?? 0));
      say(served, bytes(row.served));
      say(fetched, bytes(row.fetched));
      say(saved, bytes(row.saved));
    });
  }

  users() {
    this.userTable = table("Users", [["User", ""], ["Share of what was served", ""], ["Reads", "num"], ["Served", "num"], ["Fetched for", "num"]]);
    this.noUsers = h("p", { class: "empty" }, "Nobody has read yet. Try: ", h("code", {}, "ls /genomes"));
    this.userTable.scroll.classList.add("steady", "tall");
    return card("Users", "w6", h("div", { class: "steady-box tall" }, this.userTable.scroll, this.noUsers)).element;
  }

  showUsers(now) {
    either(now.users.length > 0, this.userTable.scroll, this.noUsers);
    if (!now.users.length) say(this.noUsers, `${now.whole ? "Nobody has" : "You have not"} read yet. Try: ls ${now.mountpoint}`);
    const whole = now.users.reduce((sum, user) => sum + user.served, 0);
    reconcile(this.userTable.body, now.users, (row) => row.name, (row) => h("tr", {}, h("th", { scope: "row" }, row.name),
      h("td", { class: "meter-cell" }, h("div", { class: "meter", "aria-hidden": "true" }, h("span"))), h("td", { class: "num" }), h("td", { class: "num" }), h("td", { class: "num" })),
    (line, row) => {
      width(line.children[1].firstChild.firstChild, whole ? row.served / whole : 0);
      say(line.children[2], count(row.reads));
      say(line.children[3], `${bytes(row.served)} (${percent(row.served, whole)})`);
      say(line.children[4], bytes(row.fetched));
    });
  }

  errors() {
    this.errorList = h("ol", { class: "errors" });
    const scroll = h("div", { class: "scroll steady tall", role: "group", "aria-label": "Recent errors", tabIndex: 0 }, this.errorList);
    this.errorScroll = scroll;
    this.noErrors = h("p", { class: "empty" }, "No errors since it was mounted.");
    return card("Recent errors", "w6", h("div", { class: "steady-box tall" }, scroll, this.noErrors)).element;
  }

  showErrors(now) {
    either(now.errors.length > 0, this.errorScroll, this.noErrors);
    reconcile(this.errorList, now.errors.slice(0, 20), (row) => `${row.source} ${row.what}`, () => h("li", {},
      h("p", { class: "wrap" }), h("p", { class: "dim" })),
    (item, row) => {
      say(item.children[0], row.what);
      const times = row.count > 1 ? `, ${count(row.count)} times since ${clock(row.first)}` : "";
      const attempt = row.attempt > 1 ? `, attempt ${row.attempt}` : "";
      say(item.children[1], `${clock(row.when)} (${age(now.now - row.when)})${row.source ? `, ${row.source}` : ""}${attempt}${times}`);
    });
  }
}
