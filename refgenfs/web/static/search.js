// The catalog as something to search: all words have to be there, in any order; what begins with them comes first.

export class Index {
  constructor(catalog) {
    this.rows = catalog.rows.map(([genome, asset, tag, isDefault, source, size, description]) => {
      const about = catalog.genomes[genome];
      const name = about.names[0];
      const end = `/${asset}:${tag}`;
      const paths = about.names.map((one) => `${one}${end}`).join(" ");
      return {
        key: isDefault ? `${name}/${asset}` : `${name}${end}`, genome: name, others: about.names.slice(1), asset, tag, isDefault: Boolean(isDefault),
        source: catalog.sources[source], size, description,
        text: `${paths} ${about.digest} ${catalog.sources[source]} ${description} ${about.description}`.toLowerCase(),
      };
    });
    this.rows.sort((one, other) => (one.key < other.key ? -1 : one.key > other.key ? 1 : 0));
  }

  // Return the rows that have all words of `query`.
  find(query, source = "", keep = null) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const first = [];
    const rest = [];
    for (const row of this.rows) {
      if ((source && row.source !== source) || (keep && !keep(row)) || !words.every((word) => row.text.includes(word))) continue;
      (words.length && row.text.startsWith(words[0]) ? first : rest).push(row);
    }
    return first.concat(rest);
  }
}

// Cut a text where words stand in it: [text, is one of the words].
export function pieces(text, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const lower = text.toLowerCase();
  const marked = new Uint8Array(text.length);
  if (lower.length === text.length) {
    for (const word of words) {
      for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + 1)) marked.fill(1, at, at + word.length);
    }
  }
  const found = [];
  for (let from = 0; from < text.length;) {
    let to = from + 1;
    while (to < text.length && marked[to] === marked[from]) to += 1;
    found.push([text.slice(from, to), Boolean(marked[from])]);
    from = to;
  }
  return found;
}
