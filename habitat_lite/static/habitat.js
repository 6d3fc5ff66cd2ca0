// One small script: theme, relative times, live pages, keyboard. Every page works without it.
"use strict";

const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

// -- theme: auto, light, dark ------------------------------------------------------------------------------------------
const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["auto", "light", "dark"];
const stored = () => { try { return localStorage.getItem("habitat-theme") || "auto"; } catch { return "auto"; } };

function applyTheme() {
  const wanted = stored();
  root.dataset.theme = wanted === "auto" ? (dark.matches ? "dark" : "light") : wanted;
  const button = one("#theme");
  if (button) {
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[wanted];
    button.setAttribute("aria-label", `Theme: ${wanted}. Change it`);
  }
}
function nextTheme() {
  const next = themes[(themes.indexOf(stored()) + 1) % themes.length];
  try { localStorage.setItem("habitat-theme", next); } catch { /* private windows may refuse */ }
  applyTheme();
}
applyTheme();
dark.addEventListener("change", applyTheme);

// -- times -------------------------------------------------------------------------------------------------------------
const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
function ago(seconds) {
  const length = Math.abs(seconds);
  if (length < 1) return "now";
  const first = units.findIndex(([, size]) => length >= size);
  let left = Math.floor(length);
  const parts = [];
  for (const [unit, size] of units.slice(first, first + (first < 2 ? 2 : 1))) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) parts.push(`${count}${unit}`);
  }
  return seconds > 0 ? `${parts.join(" ")} ago` : `in ${parts.join(" ")}`;
}
function tellTimes() {
  const now = Date.now();
  for (const each of all("time[datetime]")) {
    const text = ago((now - Date.parse(each.dateTime)) / 1000);
    if (each.textContent !== text) each.textContent = text;
  }
}

// -- live: the server sends what `main` looks like, when that changes ------------------------------------------------
const main = one("main");
const light = one("#live");
let stream = null;
let waiting = null;

const show = (state, text) => { if (light) { light.dataset.state = state; light.textContent = text; } };
const busy = () => {
  const focus = document.activeElement;
  const selected = getSelection();
  return (focus && main.contains(focus) && focus.matches("input, textarea, select")) || one("dialog[open]", main)
    || (!selected.isCollapsed && main.contains(selected.anchorNode));
};
// where something stands, so that it is found again in what replaces it: in which row or part, and as its how manieth
const usable = "a[href], button, summary, input, textarea, select, [tabindex]";
function placed(element) {
  if (!element || !main.contains(element) || element === main) return () => null;
  if (element.id && element.localName !== "details") return () => document.getElementById(element.id);
  const kind = element.matches(usable) ? usable : element.localName;
  const row = element.closest("tr[data-key]");
  const part = element.closest("main [id]");
  const at = all(kind, row || part || main).indexOf(element);
  return () => {
    const within = row ? all("tr[data-key]", main).find((each) => each.dataset.key === row.dataset.key)
      : part ? document.getElementById(part.id) : main;
    return within && all(kind, within)[at];
  };
}
function replace(html) {
  if (busy()) { waiting = html; return; }
  waiting = null;
  const open = all("details[open]", main).map(placed);
  const typed = all("input[id], textarea[id], select[id]", main).map((each) => [each.id, each.value, each.defaultValue]);
  const focused = placed(document.activeElement);
  const chosen = one("tr[aria-selected=true]", main)?.dataset.key;
  main.innerHTML = html;
  for (const field of all("input[name=form_token]", main)) field.value = one("meta[name=form-token]").content;
  for (const find of open) find()?.setAttribute("open", "");
  for (const [id, value, before] of typed) {
    const field = document.getElementById(id);
    if (field && value !== before) field.value = value;
  }
  focused()?.focus({ preventScroll: true });
  if (chosen) choose(all("tr[data-key]", main).find((each) => each.dataset.key === chosen), false);
  tellTimes();
}
function listen() {
  const address = main?.dataset.live;
  if (!address || stream || document.hidden) return;
  stream = new EventSource(`${address}${address.includes("?") ? "&" : "?"}seen=${main.dataset.seen}`);
  stream.onopen = () => show("live", "Live");
  stream.onmessage = (message) => {
    main.dataset.seen = message.lastEventId;
    replace(JSON.parse(message.data));
  };
  stream.onerror = () => {
    show("lost", "Lost");
    // refused, as by a proxy whose server is away: the browser does not try again by itself
    if (stream?.readyState === EventSource.CLOSED) { stream = null; setTimeout(listen, 5000); }
  };
}
function stop(text) {
  stream?.close();
  stream = null;
  show("paused", text);
}
document.addEventListener("visibilitychange", () => (document.hidden ? stop("Paused") : listen()));
addEventListener("pagehide", () => stop("Paused"));
const later = () => setTimeout(() => waiting && replace(waiting), 50);
document.addEventListener("focusout", later);
document.addEventListener("selectionchange", later);
document.addEventListener("close", later, true);

// -- keyboard: / j k Enter ? and g with a letter -----------------------------------------------------------------------
let rows = () => all("tr[data-href]", main);
let leading = false;

function choose(row, scroll = true) {
  if (!row) return;
  for (const each of rows()) each.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
  if (scroll) row.scrollIntoView({ block: "nearest" });
}
function move(step) {
  const list = rows();
  if (!list.length) return;
  const at = list.findIndex((each) => each.getAttribute("aria-selected") === "true");
  choose(list[Math.min(Math.max(at + step, 0), list.length - 1)]);
}
const press = {
  "/": () => one("[data-search]")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  Enter: () => { const row = rows().find((each) => each.getAttribute("aria-selected") === "true"); if (row) location.href = row.dataset.href; },
  "?": () => one("#keys")?.showModal(),
  t: nextTheme,
  e: () => one("#emit-payload")?.focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, textarea, select");
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (one("dialog[open]")) return;
  if (leading) {
    leading = false;
    const link = one(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); link.click(); }
    return;
  }
  if (event.key === "g") { leading = true; setTimeout(() => { leading = false; }, 1500); return; }
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const action = press[event.key];
  if (action) { event.preventDefault(); action(); }
});

// -- clicks ------------------------------------------------------------------------------------------------------------
document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const before = copy.textContent;
    try { await navigator.clipboard.writeText(copy.dataset.copy); copy.textContent = "Copied"; }
    catch { copy.textContent = "Cannot copy"; }
    setTimeout(() => { copy.textContent = before; }, 1200);
    return;
  }
  if (event.target.closest("#theme")) return nextTheme();
  if (event.target.closest("#help")) return one("#keys")?.showModal();
  const opens = event.target.closest("[data-opens]");
  if (opens) return document.getElementById(opens.dataset.opens)?.showModal();
  if (event.target.closest("[data-closes]")) return event.target.closest("dialog")?.close();
  const row = event.target.closest("tr[data-href]");
  if (row && !event.target.closest("a, button, input, summary, pre") && !String(getSelection())) location.href = row.dataset.href;
});
document.addEventListener("change", (event) => { if (event.target.matches("select[data-submit]")) event.target.form.requestSubmit(); });
// an address holds only what was asked for
document.addEventListener("formdata", (event) => {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

tellTimes();
setInterval(tellTimes, 1000);
listen();
