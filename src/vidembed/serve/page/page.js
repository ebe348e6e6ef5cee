// Searches the index by words, by a file or by one of its segments. The address of the page keeps the search.
import { ask, byId, make, plural, range, store, stored } from "./server.js";
import * as player from "./player.js";
import { focusOn, mark, move, show } from "./hits.js";

const RERANKED = 12; // hits that the reranker is asked about
const USUAL_K = "12"; // whole rows of two, three and four cards
const RECENT = 8; // queries that are remembered
const FILTERS = ["path", "after", "before"];
let asked = 0; // the number of the last search, so that a late answer to an earlier one is dropped
let hits = []; // on show, in their order
let like = null; // the id of a segment that hits are to be like
let file = null; // or a file
let hasReranker = false;
let hasCaptions = false;
let hasIndex = false;

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

// -- the search as the form, the address and the server have it -------------------------------------------------------

function filters() {
  const given = Object.fromEntries(FILTERS.map((name) => [name, byId(name).value.trim()]).filter(([, value]) => value !== ""));
  if (byId("merge").checked) given.merge = "videos";
  return given;
}

const words = () => byId("query").value.trim();
const by = () => (hasCaptions && byId("by").value) || "video"; // a value that is no option is empty

function address(hit = player.playing()) {
  const state = new URLSearchParams();
  if (like) state.set("like", like);
  else if (words() && !file) state.set("q", words());
  if (byId("k").value !== USUAL_K) state.set("k", byId("k").value);
  for (const [name, value] of Object.entries(filters())) state.set(name, value);
  if (by() !== "video") state.set("by", by());
  if (hasReranker && !byId("rerank").checked) state.set("rerank", "0");
  if (hit?.id) state.set("hit", hit.id);
  const query = state.toString();
  return query ? `?${query}` : location.pathname;
}

// Fills the form with the search that the address has.
function fill() {
  const state = new URLSearchParams(location.search);
  file = null;
  like = state.get("like");
  byId("query").value = state.get("q") ?? "";
  byId("k").value = state.get("k") ?? USUAL_K;
  for (const name of FILTERS) byId(name).value = state.get(name) ?? "";
  byId("merge").checked = state.get("merge") === "videos";
  byId("by").value = state.get("by") ?? "video";
  byId("rerank").checked = state.get("rerank") !== "0";
  byId("filters").open = Object.keys(filters()).length > 0;
}

// Searches, if the address or the form has something to search for that was asked, else shows what the index holds.
function resume() {
  const state = new URLSearchParams(location.search);
  return like || file || state.get("q") ? search({ hit: state.get("hit") }) : begin();
}

function restore() {
  fill();
  player.close();
  return resume();
}

function request() {
  const k = byId("k").value;
  if (like || file) {
    const state = new URLSearchParams({ k, ...filters() });
    if (like) state.set("segment", like);
    return ask(`search/${like ? "like" : "video"}?${state}`, { file });
  }
  const { after, before, ...rest } = filters();
  const json = { q: words(), k: Number(k), ...rest };
  if (after !== undefined) json.after = Number(after);
  if (before !== undefined) json.before = Number(before);
  if (by() !== "video") json.by = by();
  if (hasReranker && byId("rerank").checked) json.rerank = RERANKED;
  return ask("search", { json });
}

// -- searching --------------------------------------------------------------------------------------------------------

async function search({ hit = null } = {}) {
  const number = ++asked;
  say("Searching…");
  document.body.dataset.state = "hits";
  byId("hits").setAttribute("aria-busy", "true");
  tellLike(file?.name);
  try {
    const answer = await request();
    if (number !== asked) return;
    hits = answer.hits;
    show(hits, actions);
    if (answer.like) tellLike(`${answer.like.name}, ${range(answer.like)}`);
    if (!like && !file) remember(words());
    const judged = hits.filter((each) => each.probability !== undefined).length;
    const order = !judged ? (like || file || by() === "video" ? "most alike first" : "best first") : judged === hits.length ? "best match first" : `the best match of ${judged} first`;
    const how = answer.approximate ? ", by an approximate search" : "";
    say(hits.length ? `${plural(hits.length, "hit")}, ${order}${how}` : "No segment fits the filters. Change or clear them.");
    byId("legend").hidden = hits.length === 0;
    const chosen = hits.find((each) => each.id === hit);
    if (chosen) {
      focusOn(chosen);
      play(chosen);
    }
  } catch (error) {
    if (number === asked) refused(error, "Not searched");
  } finally {
    if (number === asked) byId("hits").removeAttribute("aria-busy");
  }
}

function refused(error, what) {
  hits = [];
  show(hits, actions);
  byId("legend").hidden = true;
  say(`${what}: ${error.message}`, true);
  if (error.status !== 401) return;
  byId("key-option").hidden = false;
  byId("key-option").open = true;
  byId("key").focus();
}

// Says what hits are like, where that is not words.
function tellLike(name) {
  byId("like").hidden = !like && !file;
  byId("like-name").textContent = name ? `Like ${name}` : "Like a segment";
}

function keep() {
  const next = address(null);
  if (next !== (location.search || location.pathname)) history.pushState(null, "", next);
}

function go() {
  keep();
  return search();
}

// Back to what the index holds.
function leave() {
  like = file = null;
  keep();
  return begin();
}

function searchFile(given) {
  if (!given) return;
  file = given;
  like = null;
  byId("query").value = "";
  go();
}

function play(hit) {
  player.play(hit);
  byId("player-before").disabled = hits.indexOf(hit) <= 0;
  byId("player-next").disabled = hits.at(-1) === hit;
  byId("player-like").disabled = !hit.id;
  mark(hit);
  history.replaceState(null, "", address(hit));
}

const actions = {
  play,
  like(hit) {
    player.close();
    like = hit.id;
    file = null;
    byId("query").value = "";
    scrollTo(0, 0);
    go();
  },
};

// -- before a search --------------------------------------------------------------------------------------------------

function length(seconds) {
  if (seconds < 60) return plural(Math.round(seconds), "second");
  return seconds < 5400 ? plural(Math.round(seconds / 60), "minute") : `${(seconds / 3600).toLocaleString("en", { maximumFractionDigits: 1 })} hours`;
}

function chips(list, queries) {
  byId(list).replaceChildren(
    ...queries.map((query) => {
      const item = document.createElement("li");
      const button = make("button", "chip", query);
      button.type = "button";
      button.addEventListener("click", () => {
        like = file = null;
        byId("query").value = query;
        go();
      });
      item.append(button);
      return item;
    }),
  );
  byId(list).parentElement.hidden = queries.length === 0;
}

async function begin() {
  const number = ++asked;
  document.body.dataset.state = "start";
  hits = [];
  show(hits, actions);
  byId("legend").hidden = true;
  tellLike();
  if (!hasIndex) return say("This server has no index to search.", true);
  say("");
  try {
    const held = await ask("index");
    if (number !== asked) return;
    byId("held-title").textContent = held.videos ? `Search ${plural(held.videos, "video")} by what happens in ${held.videos === 1 ? "it" : "them"}` : "The index is empty";
    byId("held").textContent = held.videos ? `${plural(held.segments, "segment")}, ${length(held.seconds)}, model ${held.model}` : "Add videos with: vidembed index FOLDER --to INDEX";
    chips("examples", held.examples);
    chips("recent", recent());
    hits = held.samples;
    show(hits, actions, byId("samples"));
    byId("samples").parentElement.hidden = hits.length === 0;
  } catch (error) {
    if (number === asked) refused(error, "The index was not read");
  }
}

// -- recent queries, kept by the browser ------------------------------------------------------------------------------

function recent() {
  try {
    const kept = JSON.parse(stored("localStorage", "queries") ?? "[]");
    return Array.isArray(kept) ? kept.filter((each) => typeof each === "string").slice(0, RECENT) : [];
  } catch {
    return [];
  }
}

function remember(query) {
  store("localStorage", "queries", JSON.stringify([query, ...recent().filter((each) => each !== query)].slice(0, RECENT)));
}

byId("forget").addEventListener("click", () => {
  store("localStorage", "queries", "[]");
  chips("recent", []);
  byId("query").focus();
});

// -- what people do ---------------------------------------------------------------------------------------------------

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  store("sessionStorage", "key", byId("key").value.trim());
  if (words()) like = file = null;
  return words() || like || file ? go() : leave();
});
for (const id of ["by", "rerank", "merge"]) byId(id).addEventListener("change", () => (words() || like || file) && go());
byId("like-clear").addEventListener("click", () => {
  leave();
  byId("query").focus();
});
byId("file").addEventListener("change", () => {
  searchFile(byId("file").files[0]);
  byId("file").value = ""; // so that the same file can be chosen again
});
const bringsFile = (event) => event.dataTransfer.types.includes("Files");
addEventListener("dragover", (event) => bringsFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!bringsFile(event)) return;
  event.preventDefault();
  searchFile(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => event.clipboardData.files.length && searchFile(event.clipboardData.files[0]));
addEventListener("popstate", restore);

const dialog = byId("player");
function step(by) {
  const next = hits[hits.indexOf(player.playing()) + by];
  if (next) play(next);
}
byId("player-close").addEventListener("click", player.close);
byId("player-replay").addEventListener("click", player.replay);
byId("player-before").addEventListener("click", () => step(-1));
byId("player-next").addEventListener("click", () => step(1));
byId("player-like").addEventListener("click", () => player.playing() && actions.like(player.playing()));
byId("player-link").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    byId("player-status").textContent = "Copied. The link keeps the search and this hit.";
  } catch {
    byId("player-status").textContent = "Copy the address of this page: it keeps the search and this hit.";
  }
});
dialog.addEventListener("close", () => history.replaceState(null, "", address(null)));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest("input, select, textarea, video");
  if (dialog.open) {
    if (!field && (event.key === "ArrowLeft" || event.key === "ArrowRight")) step(event.key === "ArrowLeft" ? -1 : 1);
  } else if (event.key === "/" && !field) {
    event.preventDefault();
    byId("query").select();
  } else if (event.key.startsWith("Arrow") && (!field || (field.id === "query" && event.key === "ArrowDown"))) {
    if (move(event.key)) event.preventDefault();
  }
});

byId("key").value = stored("sessionStorage", "key") ?? "";
byId("key-option").hidden = byId("key").value === "";
fill(); // at once: what is typed before the server answers stays
ask("health/ready")
  .then((health) => {
    hasReranker = health.reranker !== null;
    hasIndex = health.index;
    hasCaptions = health.captions;
    byId("by-option").hidden = !hasCaptions;
    byId("rerank-option").hidden = !hasReranker;
    return resume();
  })
  .catch((error) => say(`Not ready: ${error.message}`, true));
