// The cards of hits, and of what the index holds.
import { below, byId, clock, make, range } from "./server.js";
import { endPreview, startPreview } from "./player.js";

const SIMILARITY = "Cosine similarity of the query and this segment, up to 1. It orders hits; it is not a probability.";
const MATCH = "The probability that this segment shows what you asked for, by the reranker.";

// A bar of a share from 0 to 1, with its name, its value in words and what it means.
function bar(kind, name, share, value, meaning) {
  const row = make("div", `score ${kind}`);
  row.title = meaning;
  row.append(make("span", "score-name", name));
  const track = make("span", "track");
  const fill = make("span", "fill");
  const percent = 100 * Math.min(1, Math.max(0, share));
  fill.style.width = `${percent}%`;
  track.append(fill);
  const about = { role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(percent), "aria-valuetext": value };
  for (const [attribute, text] of Object.entries(about)) track.setAttribute(attribute, text);
  row.append(track, make("span", "score-value", value));
  return row;
}

// A line with the part of the video that the hit is. It is told in words by the time beside it.
function place(hit) {
  const line = make("span", "place");
  const part = make("span", "part");
  part.style.left = `${Math.min(100, (100 * hit.start_s) / hit.duration)}%`;
  part.style.width = `${Math.min(100, (100 * (hit.end_s - hit.start_s)) / hit.duration)}%`;
  line.append(part);
  return line;
}

function frame(hit) {
  const box = make("span", "frame");
  if (!hit.thumbnail) box.append(make("span", "no-picture", "Not on this server"));
  else {
    // The one behind fills the frame where the video has another shape.
    for (const className of ["behind", "picture"]) {
      const picture = make("img", className);
      picture.alt = "";
      picture.loading = "lazy";
      picture.decoding = "async";
      picture.src = below(hit.thumbnail);
      box.append(picture);
    }
    box.lastChild.addEventListener("error", () => {
      for (const picture of box.querySelectorAll("img")) picture.remove();
      box.prepend(make("span", "no-picture", "No picture of this video"));
    });
  }
  if (hit.duration > 0) box.append(place(hit));
  return box;
}

function card(hit, { play, like }) {
  const item = make("li", "card");
  const button = make("button", "hit");
  button.type = "button";
  button.dataset.id = hit.id ?? "";
  const picture = frame(hit);
  const label = make("span", "label");
  const time = make("span", "time", range(hit));
  if (hit.duration > 0) {
    time.append(make("span", "unseen", ` of ${clock(hit.duration)}`));
    button.title = `${range(hit)} of ${clock(hit.duration)}`;
  }
  label.append(make("span", "name", hit.name), time);
  button.append(picture, label);
  item.append(button);
  if (hit.caption) {
    const caption = make("p", "caption", hit.caption);
    caption.title = hit.caption;
    item.append(caption);
  }
  const foot = make("div", "foot");
  const scores = make("div", "scores");
  if (hit.probability !== undefined) scores.append(bar("match", "P(match)", hit.probability, `${Math.round(100 * hit.probability)}%`, MATCH));
  if (hit.score !== undefined) scores.append(bar("similarity", "cosine", hit.score, hit.score.toFixed(2), SIMILARITY));
  foot.append(scores);
  if (hit.id) {
    const more = make("button", "like", "More like this");
    more.type = "button";
    more.setAttribute("aria-label", `More like this: ${hit.name}, ${range(hit)}`);
    more.addEventListener("click", () => like(hit));
    foot.append(more);
  }
  item.append(foot);
  button.addEventListener("click", () => play(hit));
  for (const type of ["pointerenter", "focus"]) {
    button.addEventListener(type, (event) => event.pointerType !== "touch" && startPreview(hit, picture));
  }
  for (const type of ["pointerleave", "blur"]) button.addEventListener(type, endPreview);
  return item;
}

// Fills a list with cards; `actions` has what a card calls with its hit: `play` and `like`.
export function show(hits, actions, list = byId("hits")) {
  endPreview();
  list.replaceChildren(...hits.map((hit) => card(hit, actions)));
}

const buttons = () => [...document.querySelectorAll(".hit")].filter((button) => button.offsetParent);

export function mark(hit) {
  for (const button of document.querySelectorAll(".hit")) {
    if (hit && button.dataset.id === hit.id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

export function focusOn(hit) {
  buttons().find((button) => button.dataset.id === hit.id)?.focus();
}

// Moves the focus among the cards by an arrow key; returns whether there was somewhere to go.
export function move(key) {
  const all = buttons();
  const at = all.indexOf(document.activeElement);
  if (at < 0) {
    if (key !== "ArrowDown" || !all.length) return false;
    all[0].focus();
    return true;
  }
  const top = (button) => button.getBoundingClientRect().top;
  const columns = all.filter((button) => Math.abs(top(button) - top(all[0])) < 1).length;
  const next = at + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (next < 0 && key === "ArrowUp") {
    byId("query").focus();
    return true;
  }
  if (!all[next]) return false;
  all[next].focus();
  return true;
}
