// What the daemon says, once a second; which view is shown, by what stands after the # of the address.
import { AssetView } from "./asset.js";
import { CacheView } from "./cache.js";
import { CatalogView } from "./catalog.js";
import { attribute, say } from "./dom.js";
import { clock, duration } from "./format.js";
import { Overview } from "./overview.js";

const EVERY = 1000; // milliseconds between questions
const AWAY = 3000; // between those to a daemon that does not answer
const PATIENCE = 8000; // for an answer
const FINE = 601; // samples of ten minutes
const COARSE = 2881; // of a day

const at = (id) => document.getElementById(id);

async function ask(path, patience = PATIENCE) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(patience), headers: { Accept: "application/json" } });
  if (answer.ok) {
    if (answer.headers.get("X-Refgenfs-Login") === "token") at("logout").hidden = false;
    return answer.json();
  }
  const error = new Error((await answer.json().catch(() => null))?.error ?? `HTTP ${answer.status}`);
  error.status = answer.status;
  throw error;
}

// Lists that are asked for again only when they are another, or old.
class Lists {
  constructor() {
    this.catalog = null;
    this.cache = null;
    this.asked = 0; // when, for the cache
  }

  // The catalog, of this revision or, where the daemon gives what it has kept for a moment, of the one before.
  async catalogFor(revision) {
    if (this.catalog?.revision !== revision) this.catalog = await ask("api/catalog", 30000);
    return this.catalog;
  }

  // What the cache holds, at most so many milliseconds old.
  async cacheWithin(age) {
    if (this.cache && Date.now() - this.asked < age) return this.cache;
    this.asked = Date.now();
    this.cache = await ask("api/cache", 30000);
    return this.cache;
  }
}

class Page {
  constructor() {
    this.now = null;
    this.history = null;
    this.lists = new Lists();
    this.since = null; // when the daemon was last reached, once it is not
    this.level = "";
    this.views = { overview: Overview, catalog: CatalogView, cache: CacheView, asset: AssetView };
    this.view = null;
    this.timer = 0;
    this.asking = false;
  }

  start() {
    addEventListener("hashchange", () => this.route(true));
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.soon(0); });
    document.addEventListener("keydown", (event) => this.key(event));
    at("skip").addEventListener("click", (event) => { event.preventDefault(); at("main").focus(); });
    this.theme();
    this.route(false);
    this.soon(0);
  }

  // -- asking ----------------------------------------------------------------------------------------------------

  soon(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.tick(), milliseconds);
  }

  async tick() {
    if (document.hidden || this.asking) return; // becoming visible asks at once
    this.asking = true;
    try {
      const now = await ask("api/now");
      await this.take(now);
      this.reached();
    } catch (error) {
      this.missed(error);
    } finally {
      this.asking = false;
      this.soon(this.since === null ? EVERY : AWAY);
    }
  }

  async take(now) {
    const last = this.history?.fine.at(-1)?.[0] ?? 0;
    if (!this.history || this.history.started !== now.started || (now.history.length && now.history[0][0] > last + 1.9)) {
      this.history = await ask("api/history");
    } else {
      for (const row of now.history) {
        if (row[0] > (this.history.fine.at(-1)?.[0] ?? 0)) this.history.fine.push(row);
        if (row[0] >= (this.history.coarse.at(-1)?.[0] ?? 0) + 29.75) this.history.coarse.push(row);
      }
      this.history.fine.splice(0, this.history.fine.length - FINE);
      this.history.coarse.splice(0, this.history.coarse.length - COARSE);
    }
    this.previous = this.now;
    this.now = now;
    say(at("mountpoint"), now.mountpoint);
    attribute(at("mountpoint"), "title", now.mountpoint);
    say(at("host"), `on ${now.host}`);
    say(at("about"), `refgenfs ${now.version}, up ${duration(now.uptime)}, since ${clock(now.started)}`
      + (now.memory ? `, ${(now.memory / 1e6).toFixed(0)} MB of memory` : "")
      + (now.whole ? "" : ". You see what you may read, and your own requests; root and the user who mounted see all."));
    this.announce(now.findings);
    this.view?.update(now, this.history);
  }

  reached() {
    const back = this.since !== null;
    this.since = null;
    at("gone").hidden = true;
    delete document.body.dataset.stale;
    at("link").dataset.state = "live";
    say(at("link-text"), "live");
    if (back) say(at("said"), "The daemon answers again.");
  }

  missed(error) {
    if (error.status === 401) {
      location.reload(); // the form for the token
      return;
    }
    if (this.since === null) {
      this.since = Date.now() / 1000;
      say(at("said"), "The daemon does not answer.");
    }
    const busy = error.status === 503 || error.status === 500;
    at("link").dataset.state = busy ? "busy" : "gone";
    const since = clock(this.since).slice(-8, -3) || clock(this.since);
    say(at("link-text"), busy ? "busy" : `not reached since ${since}`);
    say(at("gone-text"), busy ? `The daemon is busy: ${error.message}.` : error.status ? `${error.message}` : `The daemon is not reached since ${clock(this.since)}.`);
    say(at("gone-hint"), this.now ? "What stands here was so then. It is asked again every few seconds; its log says why it ended: journalctl -u 'refgenfs*', or the log file that refgenfs doctor names." : "It is asked again every few seconds.");
    at("gone").hidden = false;
    document.body.dataset.stale = "";
  }

  // A screen reader hears of it when things get better or worse, and of nothing else.
  announce(findings) {
    const grave = findings[0]?.level ?? "good";
    const level = grave === "note" ? "good" : grave;
    if (this.level && level !== this.level) say(at("said"), findings[0].text);
    this.level = level;
  }

  // -- views -----------------------------------------------------------------------------------------------------

  route(moved) {
    const [, name, query] = location.hash.match(/^#([a-z]*)(?:\?(.*))?$/) ?? [];
    const chosen = Object.hasOwn(this.views, name ?? "") ? name : "overview";
    const parameters = new URLSearchParams(query ?? "");
    for (const link of document.querySelectorAll("nav a")) {
      const here = link.dataset.view === chosen || (chosen === "asset" && link.dataset.view === "catalog");
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (this.shown !== chosen) {
      this.shown = chosen;
      this.view = new this.views[chosen](this);
      at("view").replaceChildren(this.view.element);
      scrollTo(0, 0);
      if (moved && !this.view.keepsFocus) at("main").focus({ preventScroll: true });
    }
    document.title = `${chosen === "overview" ? "" : `${chosen === "asset" ? parameters.get("key") ?? "asset" : chosen} – `}refgenfs`;
    this.view.show(parameters);
    if (this.now) this.view.update(this.now, this.history);
  }

  ask(path, patience) {
    return ask(path, patience);
  }

  key(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    if (this.shown !== "catalog") location.hash = "#catalog";
    setTimeout(() => document.getElementById("search")?.focus(), 0);
  }

  theme() {
    const button = at("theme");
    const root = document.documentElement;
    const label = () => say(button, `Theme: ${root.dataset.theme ?? "auto"}`);
    label();
    button.addEventListener("click", () => {
      const next = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme ?? "auto"];
      if (next === "auto") delete root.dataset.theme;
      else root.dataset.theme = next;
      try { localStorage.setItem("refgenfs-theme", next); } catch { /* it lasts as long as the page */ }
      label();
    });
  }
}

new Page().start();
