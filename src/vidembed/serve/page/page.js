// Searches the index and plays hits. Text from the server is only ever set as textContent.
"use strict";

const RERANKED = 10; // hits that the reranker is asked about
const FILTERS = ["path", "after", "before"];
const EARLY_S = 0.05; // browsers report the time some four times a second; the fragment's end is not always kept
const byId = (id) => document.getElementById(id);
const video = byId("video");
let asked = 0; // the number of the last search, so that a late answer to an earlier one is dropped
let playing = null; // the hit on show
let origin = 0; // what the browser shows as the start of the file, seconds

function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function say(text) {
  byId("status").textContent = text;
}

function add(parent, tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

function key() {
  return byId("key").value.trim();
}

// What of the filters is filled in, as the server takes it.
function filters() {
  const given = FILTERS.filter((name) => byId(name).value !== "");
  return Object.fromEntries(given.map((name) => [name, name === "path" ? byId(name).value : byId(name).valueAsNumber]));
}

async function ask(path, body) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(value.error ? value.error.message : `the server answered ${answer.status}`);
  return value;
}

function show(hits) {
  const list = byId("hits");
  list.replaceChildren();
  for (const hit of hits) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    add(button, "span", hit.name, "name");
    add(button, "span", `${clock(hit.start_s)} to ${clock(hit.end_s)}`, "time");
    const judged = hit.probability === undefined ? "" : `match ${(100 * hit.probability).toFixed(1)}%, `;
    add(button, "span", `${judged}similarity ${hit.score.toFixed(3)}`, "score");
    if (hit.caption) add(button, "span", hit.caption, "said");
    button.addEventListener("click", () => play(hit, button));
    item.append(button);
    list.append(item);
  }
}

function play(hit, button) {
  for (const other of document.querySelectorAll("#hits [aria-current]")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  if (!hit.media) return say("This video is not on the server, and cannot be played here.");
  playing = hit;
  byId("player").hidden = false;
  byId("caption").textContent = `${hit.name}, ${clock(hit.start_s)} to ${clock(hit.end_s)}`;
  say("");
  video.src = hit.media;
  video.load();
  byId("player").scrollIntoView({ block: "nearest" });
  video.play().catch((error) => {
    if (error.name === "NotAllowedError") say("Press play: this browser does not start a video by itself.");
  });
}

// The end of the hit pauses once; pressing play again goes on past it.
video.addEventListener("timeupdate", () => {
  if (playing && !video.paused && video.currentTime >= origin + playing.end_s - EARLY_S) {
    playing = null;
    video.pause();
  }
});
video.addEventListener("loadedmetadata", () => {
  // Where all streams of a file begin late, some browsers show the earliest as 0 and others as its own time.
  origin = video.currentTime;
  if (playing) video.currentTime = origin + playing.start_s;
});
video.addEventListener("error", () => {
  if (video.error) say("This video cannot be played: it is gone, was changed, or this browser has no decoder for it.");
});

async function search() {
  const number = ++asked;
  say("Searching...");
  byId("hits").replaceChildren();
  const body = { q: byId("query").value, k: Number(byId("k").value), ...filters() };
  if (byId("rerank").checked) body.rerank = RERANKED;
  try {
    const { hits, approximate } = await ask("search", body);
    if (number !== asked) return;
    show(hits);
    say(`${hits.length} ${hits.length === 1 ? "hit" : "hits"}${approximate ? ", by an approximate search" : ""}`);
  } catch (error) {
    if (number === asked) say(`Not searched: ${error.message}`);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", key());
  history.replaceState(null, "", `?${new URLSearchParams({ q: byId("query").value, ...filters() })}`);
  search();
});

byId("key").value = sessionStorage.getItem("key") || "";
const given = new URLSearchParams(location.search);
for (const name of FILTERS) byId(name).value = given.get(name) || "";
byId("filters").open = Object.keys(filters()).length > 0;
const words = given.get("q");
if (words) {
  byId("query").value = words;
  search();
}
ask("health/ready")
  .then((health) => {
    byId("rerank-option").hidden = health.reranker === null;
    if (!health.index) say("This server has no index to search.");
  })
  .catch((error) => say(error.message));
