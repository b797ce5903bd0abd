// Long lists, a hundred rows at a time.
import { attribute, h, say } from "./dom.js";
import { count } from "./format.js";

export const ROWS = 100;

export class Pager {
  constructor(turn) {
    this.back = h("button", { type: "button", onclick: () => turn(-1) }, "Previous");
    this.next = h("button", { type: "button", onclick: () => turn(1) }, "Next");
    this.text = h("span", { class: "dim" });
    this.element = h("div", { class: "pager" }, this.back, this.next, this.text);
  }

  // Say which rows of how many are shown, and return the page that there is.
  show(page, rows) {
    const pages = Math.max(1, Math.ceil(rows / ROWS));
    const at = Math.min(Math.max(1, page), pages);
    this.back.disabled = at === 1;
    this.next.disabled = at === pages;
    say(this.text, rows ? `${count((at - 1) * ROWS + 1)} to ${count(Math.min(rows, at * ROWS))} of ${count(rows)}` : "");
    attribute(this.element, "data-pages", pages);
    this.element.hidden = pages === 1;
    return at;
  }
}
