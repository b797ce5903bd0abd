// Elements out of data. What comes from an origin is only ever text here: there is no way from a string to markup.

export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  set(element, properties ?? {});
  element.append(...children.flat().filter((one) => one !== null && one !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
}

// Only what is another is written: a page that writes all of it each second keeps a screen reader and a selection busy.
export function say(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function attribute(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function width(element, share) {
  const wanted = `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;
  if (element.style.width !== wanted) element.style.width = wanted;
}

// Have the children of `parent` be one for each row, in their order; those of rows that stay are kept, and updated.
export function reconcile(parent, rows, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const row of rows) {
    const key = String(keyOf(row));
    let child = known.get(key);
    if (child) known.delete(key);
    else {
      child = make(row);
      child.dataset.key = key;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update?.(child, row);
  }
  for (const child of known.values()) child.remove();
}

export function card(title, classes, ...children) {
  const id = `h-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  const heading = h("h2", { id }, title);
  const top = h("div", { class: "card-top" }, heading);
  return { top, heading, element: h("section", { class: `card ${classes}`, "aria-labelledby": id }, top, ...children) };
}

// A table with a body to fill; `columns` are [title, class].
export function table(caption, columns) {
  const body = h("tbody");
  const head = h("tr", {}, columns.map(([title, classes]) => h("th", { scope: "col", class: classes ?? "" }, title)));
  const element = h("table", {}, h("caption", { class: "sr" }, caption), h("thead", {}, head), body);
  const scroll = h("div", { class: "scroll", role: "group", "aria-label": caption, tabIndex: 0 }, element);
  return { body, scroll, element, head };
}

export function meter(label) {
  const fill = h("span");
  const bar = h("div", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  return {
    bar,
    show(done, whole) {
      bar.classList.toggle("unknown", !whole);
      if (!whole) {
        fill.style.removeProperty("width");
        bar.removeAttribute("aria-valuenow");
        return;
      }
      width(fill, done / whole);
      attribute(bar, "aria-valuenow", Math.floor((100 * Math.min(done, whole)) / whole));
    },
  };
}

// Show one of two: what there is, or a word on why there is nothing.
export function either(filled, full, empty) {
  full.hidden = !filled;
  empty.hidden = filled;
}

// A link to an asset's own view; its full key shows when it is pointed at.
export function assetLink(key, ...children) {
  return h("a", { href: `#asset?key=${encodeURIComponent(key)}`, title: key }, ...(children.length ? children : [key]));
}
