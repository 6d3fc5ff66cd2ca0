// One small script: theme, relative times, live pages, keyboard. Every page works without it.
"use strict";

const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

// -- theme: auto, light, dark ------------------------------------------------------------------------------------------
const dark = matchMedia("(prefers-color-scheme: dark)");
const themes = ["auto", "light", "dark"];
// what the browser remembers; private windows may refuse, and then it holds as long as the page
const memory = {};
const kept = (name) => { try { return localStorage.getItem(name) ?? memory[name]; } catch { return memory[name]; } };
function keep(name, value) {
  memory[name] = value;
  try { localStorage.setItem(name, value); } catch { /* see above */ }
}

function applyTheme() {
  const wanted = kept("habitat-theme") || "auto";
  root.dataset.theme = wanted === "auto" ? (dark.matches ? "dark" : "light") : wanted;
  const button = one("#theme");
  if (button) {
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[wanted];
    button.setAttribute("aria-label", `Theme: ${wanted}. Change it`);
  }
}
function nextTheme() {
  keep("habitat-theme", themes[(themes.indexOf(kept("habitat-theme") || "auto") + 1) % themes.length]);
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
  const inUtc = root.dataset.times === "utc";
  for (const each of all("time[datetime]")) {
    const text = inUtc ? each.title : ago((now - Date.parse(each.dateTime)) / 1000);
    if (each.textContent !== text) each.textContent = text;
  }
}

function applyTimes() {
  root.dataset.times = kept("habitat-times") || "ago";
  one("#times")?.setAttribute("aria-pressed", root.dataset.times === "utc");
  tellTimes();
}
function nextTimes() {
  keep("habitat-times", root.dataset.times === "utc" ? "ago" : "utc");
  applyTimes();
}

// -- live: the server sends what `main` looks like, when that changes ------------------------------------------------
const main = one("main");
const light = one("#live");
let stream = null;
let waiting = null;
let fresh = true; // as it came, it was made from the database a moment ago

const words = { live: "Live", lost: "No database", stale: "Outdated" };
const show = (state, text = words[state]) => {
  if (light && light.textContent !== text) { light.dataset.state = state; light.textContent = text; }
};
const busy = () => {
  const focus = document.activeElement;
  const selected = getSelection();
  return (focus && main.contains(focus) && focus.matches("input, textarea, select")) || one("dialog[open]", main)
    || (!selected.isCollapsed && main.contains(selected.anchorNode));
};

// What changed is changed in place: whatever stays is the same element as before, with its focus, its scroll position, what is
// typed into it and what is folded out. Rows, parts and options are known by their key, everything else by where it stands.
const keyOf = (node) => (node.nodeType !== Node.ELEMENT_NODE ? null
  : node.dataset.key ?? (node.localName === "option" ? node.value : null));
function morph(old, wanted) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const name of old.getAttributeNames()) if (name !== "open" && !wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const name of wanted.getAttributeNames()) {
    if (old.getAttribute(name) !== wanted.getAttribute(name)) old.setAttribute(name, wanted.getAttribute(name));
  }
  if (!wanted.matches("time[datetime]")) morphWithin(old, wanted); // whose text is told below
}
function morphWithin(old, wanted) {
  const keys = new Set([...wanted.childNodes].map(keyOf));
  const keyed = new Map([...old.childNodes].filter((each) => keyOf(each) !== null).map((each) => [keyOf(each), each]));
  const idle = (node) => keyOf(node) === null || !keys.has(keyOf(node));
  let next = old.firstChild;
  const drop = () => { const after = next.nextSibling; next.remove(); next = after; };
  for (const child of [...wanted.childNodes]) {
    const key = keyOf(child);
    while (next && keyOf(next) !== null && idle(next)) drop();
    // the spaces between elements are not worth an element
    while (next && next.nodeType !== Node.ELEMENT_NODE && child.nodeType === Node.ELEMENT_NODE) drop();
    const match = key === null ? (next && keyOf(next) === null ? next : null) : keyed.get(key);
    keyed.delete(key);
    if (match?.nodeName !== child.nodeName) { old.insertBefore(child, next); continue; }
    if (key !== null) while (next && next !== match && idle(next)) drop(); // so that it need not be moved
    if (match === next) next = next.nextSibling; else old.insertBefore(match, next);
    morph(match, child);
  }
  while (next) drop();
}
function replace(html) {
  if (busy()) { waiting = html; return; }
  waiting = null;
  const focus = document.activeElement;
  const row = focus?.closest("main tr[data-key]");
  const at = rows().indexOf(row);
  const wanted = document.createElement("main");
  wanted.innerHTML = html;
  const said = one(":scope > [data-said]", main);
  if (said) wanted.prepend(said.cloneNode(true));
  morphWithin(main, wanted);
  for (const field of all("input[name=form_token]", main)) field.value = one("meta[name=form-token]").content;
  if (focus !== document.activeElement) {
    if (focus.isConnected) focus.focus({ preventScroll: true }); // it was moved
    else if (row?.isConnected) choose(row, false);
    else left = at;
  }
  tellTimes();
}
function listen() {
  const address = main?.dataset.live;
  if (!address || stream || document.hidden) return;
  stream = new EventSource(`${address}${address.includes("?") ? "&" : "?"}seen=${main.dataset.seen}`);
  // an open stream says nothing of the database: after a pause, that is waited for
  stream.onopen = () => { if (fresh) show("live"); fresh = false; };
  stream.onmessage = (message) => {
    main.dataset.seen = message.lastEventId;
    replace(JSON.parse(message.data));
  };
  stream.addEventListener("state", (message) => show(message.data));
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
addEventListener("pageshow", (event) => event.persisted && listen());
const later = () => setTimeout(() => waiting && replace(waiting), 50);
document.addEventListener("focusout", later);
document.addEventListener("selectionchange", later);
document.addEventListener("close", later, true);

// -- keyboard: / j k Enter Escape ? and g with a letter ----------------------------------------------------------------
const rows = () => all("tr[data-key]", main);
const keysOn = () => kept("habitat-keys") !== "off";
let leading = false;
let left = -1; // where in the list the choice was whose row has gone since

function applyKeys() {
  const box = one("#keys-on");
  if (box) box.checked = keysOn();
  const state = one("#keys-state");
  if (state) state.textContent = keysOn() ? "" : "They are off: of these keys, only Enter and Esc do anything.";
}
applyKeys();
addEventListener("storage", () => { applyTheme(); applyKeys(); applyTimes(); }); // changed in another window

// The focus itself moves: what is chosen is read aloud, and Enter and Tab do what they always do.
function choose(row, scroll = true) {
  if (!row) return;
  const link = all("a[href]", row).find((each) => each.getAttribute("href") === row.dataset.href);
  (link || one("summary, a[href]", row) || row).focus({ preventScroll: true, focusVisible: true });
  left = -1;
  if (scroll) row.scrollIntoView({ block: "nearest" });
}
function openUp(dialog) {
  dialog?.showModal();
  one("[data-first]", dialog || document)?.focus({ focusVisible: true });
}
const showKeys = () => openUp(one("#keys"));
function move(step) {
  const list = rows();
  const at = list.indexOf(document.activeElement?.closest("tr[data-key]"));
  const to = at >= 0 ? at + step : left >= 0 ? left + Math.min(step, 0) : 0;
  choose(list[Math.min(Math.max(to, 0), list.length - 1)]);
}
const press = {
  "/": () => one("[data-search]")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  "?": showKeys,
  t: nextTheme,
  u: nextTimes,
  e: () => one("#emit-name:invalid, #emit-payload")?.focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || one("dialog[open]")) return;
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Escape" && (typing || event.target.closest("tr[data-key]"))) { event.target.blur(); left = -1; }
  if (typing || !keysOn()) return;
  if (leading) {
    leading = false;
    const link = one(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); link.click(); }
    return;
  }
  if (event.key === "g") { leading = true; setTimeout(() => { leading = false; }, 1500); return; }
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
  if (event.target.closest("#help")) return showKeys();
  const opens = event.target.closest("[data-opens]");
  if (opens) return openUp(document.getElementById(opens.dataset.opens));
  if (event.target.closest("#times")) return nextTimes();
  if (event.target.closest("#back")) return history.back();
  if (event.target.closest("[data-closes]")) return event.target.closest("dialog")?.close();
  const row = event.target.closest("tr[data-href]");
  if (row && !event.target.closest("a, button, input, summary, pre") && !String(getSelection())) location.href = row.dataset.href;
});
let byKey = false; // arrow keys pass by what they do not mean: only who points has chosen
document.addEventListener("keydown", () => { byKey = true; }, true);
document.addEventListener("pointerdown", () => { byKey = false; }, true);
document.addEventListener("change", (event) => {
  if (event.target.id === "keys-on") { keep("habitat-keys", event.target.checked ? "on" : "off"); applyKeys(); }
  if (!byKey && event.target.matches("select[data-submit]")) event.target.form.requestSubmit();
});
// an address holds only what was asked for
document.addEventListener("formdata", (event) => {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});

// said once: neither a reload nor a bookmark says it again
const said = one("[data-said]");
if (said) {
  const here = new URL(location);
  here.searchParams.delete("said");
  history.replaceState(history.state, "", here);
  said.focus({ preventScroll: true });
}

applyTimes();
setInterval(tellTimes, 1000);
listen();
