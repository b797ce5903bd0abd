// Squarified treemaps (Bruls, Huizing, van Wijk 2000): rectangles of given areas, as square as can be.

export function squarify(sizes, width, height) {
  const whole = sizes.reduce((sum, size) => sum + size, 0);
  if (!whole || width <= 0 || height <= 0) return [];
  const areas = sizes.map((size) => (size / whole) * width * height);
  const boxes = [];
  let [left, top, wide, high, from] = [0, 0, width, height, 0];
  while (from < areas.length) {
    const side = Math.min(wide, high);
    let to = from + 1;
    while (to < areas.length && worst(areas, from, to + 1, side) <= worst(areas, from, to, side)) to += 1;
    const sum = total(areas, from, to);
    const depth = side > 0 ? sum / side : 0;
    let along = 0;
    for (let at = from; at < to; at += 1) {
      const length = depth > 0 ? areas[at] / depth : 0;
      boxes.push(wide >= high ? { left, top: top + along, width: depth, height: length } : { left: left + along, top, width: length, height: depth });
      along += length;
    }
    if (wide >= high) [left, wide] = [left + depth, wide - depth];
    else [top, high] = [top + depth, high - depth];
    from = to;
  }
  return boxes;
}

function total(areas, from, to) {
  let sum = 0;
  for (let at = from; at < to; at += 1) sum += areas[at];
  return sum;
}

// The worst ratio of sides in a row of areas along a side. Areas come the largest first.
function worst(areas, from, to, side) {
  const sum = total(areas, from, to);
  const square = side * side;
  return Math.max((square * areas[from]) / (sum * sum), (sum * sum) / (square * areas[to - 1]));
}
