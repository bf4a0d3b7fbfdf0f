"use strict";
// Of evaluation/page.html. Text reaches the page as textContent alone, never as HTML.

const { page, classes, scans } = JSON.parse(document.getElementById("data").textContent);
const [NAME, EXPECTED, PREDICTED, VERDICT] = [0, 1, 2, 3]; // columns of scans
const TICKS = { wrong: "label is wrong", right: "label is correct", unclear: "can't tell" };
const KEYS = { w: "wrong", r: "right", c: "unclear" };
const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll("article")];
const searched = cards.map((card) => {
  const facts = card.querySelector(".facts").lastElementChild.textContent;
  return `${card.querySelector("h2").textContent} ${facts}`.toLowerCase();
});
const parts = cards.map(() => null); // of each card that has come into view: its elements
let current = -1;
let show = "all";

// ---- ticks ---------------------------------------------------------------------------------------

const STORED = `perceiver ticks ${page}`;
let kept = true; // whether this browser keeps ticks: a file that was opened from a mail may not
let saved = true; // whether all ticks are in a CSV
let ticks = {}; // place of a scan -> { tick, label }: what it is, "" where that is not said
try {
  ticks = JSON.parse(localStorage.getItem(STORED)) || {};
} catch {
  kept = false;
}

function keep() {
  saved = false;
  try {
    localStorage.setItem(STORED, JSON.stringify(ticks));
  } catch {
    kept = false;
  }
}

const others = (place) => classes.filter((name) => name !== scans[place][EXPECTED]);
// Of two classes "wrong" means the other one; of more it must be said which.
const only = (place) => (others(place).length === 1 ? others(place)[0] : "");

function tick(place, name) {
  if (name === "right" && !scans[place][EXPECTED]) {
    say("Nothing tells the label of this scan: choose what it is.");
    return;
  }
  if (ticks[place]?.tick === name) {
    delete ticks[place];
  } else {
    const right = name === "right" ? scans[place][EXPECTED] : "";
    ticks[place] = { tick: name, label: name === "wrong" ? only(place) : right };
  }
  keep();
  drawTicks(place);
  if (ticks[place]?.tick === "wrong" && !ticks[place].label) parts[place].choice.focus();
}

function choose(place, label) {
  ticks[place] = { tick: "wrong", label };
  keep();
  drawTicks(place);
}

function drawTicks(place) {
  byId("ticked").textContent = Object.keys(ticks).length;
  const { buttons, choice, problem } = build(place);
  const own = ticks[place] || { tick: "", label: "" };
  for (const [name, button] of Object.entries(buttons)) {
    button.setAttribute("aria-pressed", own.tick === name);
  }
  if (choice) choice.value = own.tick === "wrong" ? own.label : "";
  const lacks = own.tick === "wrong" && !own.label;
  problem.textContent = lacks ? "Choose what it is; until then it has no label in the CSV." : "";
}

// ---- CSV -----------------------------------------------------------------------------------------

// What a spreadsheet would compute stands behind an apostrophe, as in common/tables.py.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;

function cell(text) {
  const guarded = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]|^\s|\s$/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
}

function correctedLabel(place) {
  const own = ticks[place];
  return own ? own.label : scans[place][EXPECTED];
}

function table() {
  const rows = scans.map((scan, place) => {
    const own = ticks[place]?.tick;
    const word = own === "wrong" && !scan[EXPECTED] ? "label is told" : TICKS[own] || "";
    return [scan[NAME], correctedLabel(place), scan[EXPECTED], scan[PREDICTED], scan[VERDICT], word];
  });
  const header = ["scan", "label", "expected", "predicted", "verdict", "tick"];
  return [header, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

// UTF-8; bytes of names that are no text, which Python hands over as lone surrogates, as they were.
function encoded(text) {
  const encoder = new TextEncoder();
  return text.split(/([\udc80-\udcff])(?<![\ud800-\udbff].)/).map((part, i) =>
    i % 2 ? new Uint8Array([part.charCodeAt(0) - 0xdc00]) : encoder.encode(part)
  );
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(encoded(table()), { type: "text/csv" }));
  link.download = "corrected.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  const count = Object.keys(ticks).length;
  say(`Saved as corrected.csv, ${count} ticked; --labels corrected.csv takes it.`);
}

// ---- cards ---------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The rest of a card, when it comes into view: pictures, slices, buttons.
function build(place) {
  if (parts[place]) return parts[place];
  const card = cards[place];
  const data = JSON.parse(card.querySelector("script").textContent);
  const image = make("img", { alt: `Slices ${data.alt}`, src: jpeg(data.strip) });
  const built = { data, image, buttons: {} };
  if (data.strip) card.append(make("div", { class: "strip" }, image));
  if (data.shares.length) card.append(drawSlices(place, data));
  card.append(makeTicks(place, built));
  parts[place] = built;
  drawTicks(place);
  return built;
}

const jpeg = (base64) => `data:image/jpeg;base64,${base64}`;

function makeTicks(place, built) {
  const expected = scans[place][EXPECTED];
  const group = make("div", { class: "ticks", role: "group", "aria-label": "Your judgement" });
  for (const [key, name] of Object.entries(KEYS)) {
    if (name === "right" && !expected) continue;
    if (name === "wrong" && !(expected && only(place))) {
      group.append(makeChoice(place, built, expected ? "label is wrong, it is" : "it is"));
      continue;
    }
    const text = name === "wrong" ? `${TICKS.wrong}: it is ${only(place)}` : TICKS[name];
    const button = make("button", { type: "button", "aria-keyshortcuts": key }, `${text} `);
    button.append(make("kbd", { "aria-hidden": "true" }, key));
    button.addEventListener("click", () => tick(place, name));
    built.buttons[name] = button;
    group.append(button);
  }
  if (built.data.attention) {
    const attributes = { type: "button", "aria-pressed": "false", "aria-keyshortcuts": "a" };
    built.attention = make("button", attributes, "attention ");
    built.attention.append(make("kbd", { "aria-hidden": "true" }, "a"));
    built.attention.addEventListener("click", () => toggleAttention(place));
    group.append(make("span", { class: "gap" }), built.attention);
  }
  built.problem = make("span", { class: "problem" });
  group.append(built.problem);
  return group;
}

function makeChoice(place, built, text) {
  const options = others(place).map((name) => make("option", { value: name }, name));
  built.choice = make("select", { "aria-keyshortcuts": "w" }, make("option", { value: "" }, "…"));
  built.choice.append(...options);
  built.choice.addEventListener("change", () => {
    if (built.choice.value) choose(place, built.choice.value);
    else if (ticks[place]) tick(place, "wrong");
  });
  const key = make("kbd", { "aria-hidden": "true" }, "w");
  return make("label", {}, `${text} `, built.choice, " ", key);
}

function toggleAttention(place) {
  const { data, image, attention } = build(place);
  if (!attention) {
    say("Attention is drawn for the worst scans alone; predict.py --attention draws others.");
    return;
  }
  const on = attention.getAttribute("aria-pressed") !== "true";
  attention.setAttribute("aria-pressed", on);
  image.src = jpeg(on ? data.attention : data.strip);
  image.alt = `${on ? "Attention over slices" : "Slices"} ${data.alt}`;
}

// ---- probabilities of slices ---------------------------------------------------------------------

// A bar a slice. Of two classes up is the second and down the first; of more, up is the predicted.
function drawSlices(place, { shares, shown, drawn }) {
  const expected = scans[place][EXPECTED];
  const two = classes.length === 2;
  const bars = { with: "", against: "", neutral: "" };
  shares.forEach((share, i) => {
    const says = two ? classes[Number(share >= 0.5)] : scans[place][PREDICTED];
    const kind = !expected ? "neutral" : says === expected ? "with" : "against";
    const from = two ? 50 : 100;
    const to = 100 - 100 * share;
    const height = Math.max(2, Math.abs(to - from));
    bars[kind] += `M${i + 0.1} ${Math.min(from, to)}h.8v${height}h-.8z`;
  });
  const n = shares.length;
  const marks = drawn.map((i) => `M${i + 0.5 - n / 250} 128l${n / 250} -16l${n / 250} 16z`).join("");
  const low = Math.min(...shares).toFixed(3);
  const high = Math.max(...shares).toFixed(3);
  const svg = draw("svg", { viewBox: `0 0 ${n} 128`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `p_${shown} of each slice, from ${low} to ${high}`);
  for (const [kind, d] of Object.entries(bars)) if (d) svg.append(draw("path", { class: kind, d }));
  svg.append(draw("path", { class: "line", d: `M0 ${two ? 50 : 100}h${n}` }));
  svg.append(draw("path", { class: "dots", d: marks }));
  const ends = two ? [classes[1], classes[0]] : [shown, ""];
  const spans = ends.map((text) => make("span", {}, text));
  const labels = make("div", { class: "ends", "aria-hidden": "true" }, ...spans);
  return make("div", { class: "slices" }, labels, svg);
}

function draw(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// ---- what is shown -------------------------------------------------------------------------------

function isShown(place) {
  const words = byId("search").value.trim().toLowerCase();
  const wanted = show === "all" || scans[place][VERDICT] === show || (show === "ticked" && ticks[place]);
  return Boolean(wanted) && searched[place].includes(words);
}

function filter() {
  let count = 0;
  cards.forEach((card, place) => {
    const shown = isShown(place);
    card.hidden = !shown;
    count += shown;
  });
  byId("none").hidden = count > 0;
  if (current >= 0 && cards[current].hidden) mark(-1);
  say(`${count.toLocaleString("en")} of ${scans.length.toLocaleString("en")} scans shown.`);
}

function setFilter(name) {
  show = name;
  for (const button of document.querySelectorAll("[data-show]")) {
    button.setAttribute("aria-pressed", button.dataset.show === name);
  }
  filter();
}

function nextFilter() {
  const names = [...document.querySelectorAll("[data-show]")].map((button) => button.dataset.show);
  setFilter(names[(names.indexOf(show) + 1) % names.length]);
}

function say(text) {
  const lost = kept ? "" : " This browser keeps no ticks of this file: save them before you close it.";
  byId("status").textContent = text + lost;
}

// The card that keys are for: where the focus is, or was last.
function mark(place) {
  if (current >= 0) cards[current].classList.remove("current");
  current = place;
  if (place >= 0) cards[place].classList.add("current");
}

function go(place) {
  build(place);
  mark(place);
  cards[place].focus({ preventScroll: true });
  cards[place].scrollIntoView({ block: "start" });
}

function step(by) {
  let place = current < 0 && by < 0 ? cards.length : current;
  do place += by;
  while (place >= 0 && place < cards.length && cards[place].hidden);
  if (place >= 0 && place < cards.length) go(place);
}

function toggleHelp() {
  byId("keys").hidden = !byId("keys").hidden;
  byId("help").setAttribute("aria-expanded", !byId("keys").hidden);
  if (!byId("keys").hidden) byId("keys").scrollIntoView({ block: "nearest" }); // of a low window
}

// ---- keys ----------------------------------------------------------------------------------------

const ACTIONS = {
  j: () => step(1),
  ArrowDown: () => step(1),
  k: () => step(-1),
  ArrowUp: () => step(-1),
  a: () => current >= 0 && toggleAttention(current),
  f: nextFilter,
  s: save,
  "/": () => byId("search").focus(),
  "?": toggleHelp,
  Escape: () => byId("keys").hidden || toggleHelp(),
};

const MOVES = ["j", "k", "ArrowDown", "ArrowUp"];

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const typing = event.target.matches("input, select");
  if (typing && (event.key === "Escape" || event.key === "Enter")) {
    event.preventDefault();
    event.target.blur();
    if (current >= 0) cards[current].focus({ preventScroll: true });
  }
  if (typing) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // caps lock
  const action = KEYS[key] ? () => current >= 0 && tick(current, KEYS[key]) : ACTIONS[key];
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || MOVES.includes(key)) action(); // a key that is held ticks once
}

document.addEventListener("keydown", press);
byId("search").addEventListener("input", filter);
byId("save").addEventListener("click", save);
byId("help").addEventListener("click", toggleHelp);
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => setFilter(button.dataset.show));
}
addEventListener("beforeunload", (event) => {
  if (!kept && !saved) event.preventDefault();
});
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      build(cards.indexOf(entry.target));
    }
  },
  { rootMargin: "800px" }
);
for (const card of cards) {
  card.addEventListener("focusin", () => mark(cards.indexOf(card)));
  near.observe(card);
}
byId("ticked").textContent = Object.keys(ticks).length;
say(`${scans.length.toLocaleString("en")} scans, worst first; j goes to the next, ? tells all keys.`);
