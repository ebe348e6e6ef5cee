// Plays hits: in the dialog with its sound, and muted on a card under the pointer or the focus.
import { below, byId, clock, range } from "./server.js";

const EARLY_S = 0.05; // browsers report the time some four times a second
const HOVER_MS = 150; // so that a pointer on its way elsewhere starts nothing
const dialog = byId("player");
const video = byId("video");
let shown = null; // the hit in the dialog
let stopsAtEnd = false; // the end of the hit pauses once; pressing play again goes on past it
let origin = 0; // what the browser shows as the start of the file, seconds

function tell(text) {
  byId("player-status").textContent = text;
}

export const playing = () => (dialog.open ? shown : null);

export function play(hit) {
  endPreview();
  shown = hit;
  byId("player-name").textContent = hit.name;
  byId("player-time").textContent = `${range(hit)}${hit.duration ? ` of ${clock(hit.duration)}` : ""}`;
  byId("player-caption").textContent = hit.caption ?? "";
  tell("");
  video.hidden = !hit.media;
  if (!dialog.open) dialog.showModal();
  if (!hit.media) {
    video.removeAttribute("src");
    video.load();
    return tell("This video is not on the server, and cannot be played here.");
  }
  stopsAtEnd = true;
  video.poster = below(hit.thumbnail);
  video.src = below(hit.media);
  video.load();
  start();
}

function start() {
  video.play().catch((error) => {
    if (error.name === "NotAllowedError") tell("Press play: this browser does not start a video by itself.");
  });
}

export function replay() {
  if (!shown?.media) return;
  stopsAtEnd = true;
  video.currentTime = origin + shown.start_s;
  start();
}

export function close() {
  if (dialog.open) dialog.close();
}

video.addEventListener("timeupdate", () => {
  if (stopsAtEnd && !video.paused && video.currentTime >= origin + shown.end_s - EARLY_S) {
    stopsAtEnd = false;
    video.pause();
  }
});
video.addEventListener("loadedmetadata", () => {
  // Where all streams of a file begin late, some browsers show the earliest as 0 and others as its own time.
  origin = video.currentTime;
  video.currentTime = origin + shown.start_s;
});
video.addEventListener("error", () => {
  if (video.error) tell("This video cannot be played: it is gone, was changed, or this browser has no decoder for it.");
});
dialog.addEventListener("close", () => video.pause());
// A click beside the dialog closes it; one on its own edge does not.
dialog.addEventListener("click", (event) => {
  if (event.target !== dialog) return;
  const box = dialog.getBoundingClientRect();
  const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
  if (!inside) dialog.close();
});

// The one preview there is at a time.
const still = matchMedia("(prefers-reduced-motion: reduce)");
let preview = null;
let waiting = 0;

export function endPreview() {
  clearTimeout(waiting);
  if (!preview) return;
  preview.removeAttribute("src");
  preview.load(); // drops the connection
  preview.remove();
  preview = null;
}

// Plays a hit muted and over and over in `frame`, an element of its card.
export function startPreview(hit, frame) {
  endPreview();
  if (!hit.media || still.matches || dialog.open) return;
  waiting = setTimeout(() => {
    const moving = document.createElement("video");
    moving.className = "preview";
    moving.muted = true;
    moving.playsInline = true;
    moving.preload = "none";
    moving.tabIndex = -1;
    moving.setAttribute("aria-hidden", "true");
    let from = 0;
    moving.addEventListener("loadedmetadata", () => {
      from = moving.currentTime + hit.start_s;
      moving.currentTime = from;
    });
    moving.addEventListener("timeupdate", () => {
      if (moving.currentTime >= from + (hit.end_s - hit.start_s) - EARLY_S) moving.currentTime = from;
    });
    moving.addEventListener("ended", () => {
      moving.currentTime = from;
      moving.play().catch(() => {});
    });
    moving.addEventListener("seeked", () => moving.classList.add("ready"), { once: true });
    preview = moving;
    frame.append(moving);
    moving.src = below(hit.media);
    moving.play().catch(() => {}); // the picture stays where a browser does not play
  }, HOVER_MS);
}
