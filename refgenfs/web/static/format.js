// Figures with their units, as the command line has them: powers of 1000, three digits.

const UNITS = ["kB", "MB", "GB", "TB", "PB"];

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  if (size < 999.5) return `${Math.round(size)} B`;
  let amount = size;
  let unit = -1;
  while (unit < 0 || (amount >= 999.5 && unit < UNITS.length - 1)) {
    amount /= 1000;
    unit += 1;
  }
  return `${amount.toFixed(amount < 9.995 ? 2 : amount < 99.95 ? 1 : 0)} ${UNITS[unit]}`;
}

export const rate = (perSecond) => `${bytes(perSecond)}/s`;

export const count = (number) => number.toLocaleString("en");

export const counted = (number, what, several = `${what}s`) => `${count(number)} ${number === 1 ? what : several}`;

export function percent(part, whole) {
  if (!whole) return "–";
  const share = (100 * part) / whole;
  if (share > 0 && share < 1) return "<1 %";
  if (share > 99 && share < 100) return `${(Math.floor(share * 10) / 10).toFixed(1)} %`;
  return `${Math.round(share)} %`;
}

export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function age(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return `${Math.max(0, Math.round(seconds))} s ago`;
}

// The time of today, or a date with it.
export function clock(when, now = Date.now() / 1000) {
  const moment = new Date(when * 1000);
  const time = moment.toLocaleTimeString("en-GB");
  if (moment.toDateString() === new Date(now * 1000).toDateString()) return time;
  return `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time.slice(0, 5)}`;
}
