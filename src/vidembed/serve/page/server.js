// What the page asks the server, and words that both the list and the player need.

export const byId = (id) => document.getElementById(id);

// An address that the server gave, from where the page lies: behind a proxy that may be deeper than the server knows.
export const below = (address) => address?.replace(/^\//, "") ?? "";

// Seconds as 0:02.0, and as 1:05:02.0 from an hour on.
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const range = (hit) => `${clock(hit.start_s)} to ${clock(hit.end_s)}`;

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// An element with a class and a text, which is only ever set as text.
export function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

// Storage can be turned off, and then even naming it throws.
export function stored(kind, name) {
  try {
    return window[kind].getItem(name);
  } catch {
    return null;
  }
}

export function store(kind, name, value) {
  try {
    window[kind].setItem(name, value);
  } catch {
    // Then it is forgotten with the page.
  }
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Asks the server and returns what it answers: `json` and `file` are sent as a body. Throws an error in words.
export async function ask(path, { json, file } = {}) {
  const headers = {};
  const key = byId("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  let body;
  if (json) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(json);
  } else if (file) {
    body = new FormData();
    body.append("file", file);
  }
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  } catch {
    throw new Refused("the server cannot be reached; is it still running?", 0);
  }
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(value.error ? value.error.message : `the server answered ${answer.status}`, answer.status);
  return value;
}
