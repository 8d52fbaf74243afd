"use strict";

// One radiograph: its file, decoded by the server as in training, and its view. The view does not change the question.
class Radiograph {
  constructor(root, changed) {
    this.root = root;
    this.name = root.dataset.name;
    this.title = root.querySelector("h2").textContent;
    this.canvas = root.querySelector("canvas");
    this.changed = changed;
    this.url = null;
    this.taken = null;
    this.patient = "";
    this.x = this.y = 0;
    for (const part of ["zoom", "level", "window"]) {
      this[part] = root.querySelector(`.${part}`);
      this[part].addEventListener("input", () => this.draw());
    }
    root.querySelector(".reset").addEventListener("click", () => this.reset());
    this.input = root.querySelector("input[type=file]");
    this.input.addEventListener("change", () => this.take(this.input.files[0]));
    root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("over"); });
    root.addEventListener("dragleave", () => root.classList.remove("over"));
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      root.classList.remove("over");
      const { files } = event.dataTransfer;
      if (files.length !== 1) return fault(`drop one file on it, a JPG, PNG or DICOM: ${files.length} were dropped`);
      this.input.files = files;
      this.take(files[0]);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) this.move(event.movementX, event.movementY);
    });
    this.canvas.addEventListener("wheel", (event) => {
      if (!this.grey) return;
      event.preventDefault();
      this.scale(event.deltaY < 0 ? 0.25 : -0.25);
    }, { passive: false });
  }

  get experts() { return this.root.querySelector(".experts textarea").value; }

  async take(file) {
    if (!file) return;
    fault("");
    const turn = this.turn = (this.turn || 0) + 1;
    this.clear(); // else a question asked before this file is read, or after it is refused, would be about the last one
    let picture, image;
    try {
      picture = await decoded(file);
      image = await shown(picture);
    } catch (error) {
      if (turn !== this.turn) return; // another file was chosen meanwhile
      this.input.value = ""; // else the same file, chosen again, is no change
      return fault(`${file.name}: ${error.message}`);
    }
    if (turn !== this.turn) return;
    this.file = file.name;
    this.url = picture.url;
    this.taken = picture.taken;
    this.patient = picture.patient;
    this.root.querySelector(".experts textarea").value = picture.experts || "";
    const offscreen = document.createElement("canvas");
    const shrink = Math.min(1, 2048 / Math.max(image.width, image.height));
    [offscreen.width, offscreen.height] = [Math.round(image.width * shrink), Math.round(image.height * shrink)];
    const context = offscreen.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, offscreen.width, offscreen.height);
    this.offscreen = offscreen;
    this.grey = context.getImageData(0, 0, offscreen.width, offscreen.height);
    const day = picture.taken ? `, taken ${picture.taken}` : "";
    const warning = picture.warning ? `; ${picture.warning}` : "";
    this.root.querySelector(".about").textContent = `${file.name}: ${picture.width} × ${picture.height} px${day}${warning}`;
    this.canvas.setAttribute("aria-label", `${this.title}: ${file.name}${day}`);
    this.reset();
    this.changed();
  }

  clear() {
    this.url = this.taken = this.grey = null;
    this.patient = "";
    this.root.querySelector(".about").textContent = "";
    this.root.querySelector(".experts textarea").value = "";
    this.canvas.setAttribute("aria-label", `${this.title}: none yet`);
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  reset() {
    this.zoom.value = 1; this.level.value = 128; this.window.value = 256;
    this.x = this.y = 0;
    this.draw();
  }

  scale(step) { this.zoom.value = Number(this.zoom.value) + step; this.draw(); }

  move(dx, dy) { this.x += dx; this.y += dy; this.draw(); }

  key(event) {
    const moves = { ArrowLeft: [20, 0], ArrowRight: [-20, 0], ArrowUp: [0, 20], ArrowDown: [0, -20] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.scale(0.25);
    else if (event.key === "-") this.scale(-0.25);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  draw() {
    if (!this.grey) return;
    const low = Number(this.level.value) - Number(this.window.value) / 2;
    const table = new Uint8ClampedArray(256).map((_, value) => (value - low) / Number(this.window.value) * 255);
    const pixels = new ImageData(this.grey.width, this.grey.height);
    for (let offset = 0; offset < pixels.data.length; offset += 4) {
      for (let channel = 0; channel < 3; channel++) {
        pixels.data[offset + channel] = table[this.grey.data[offset + channel]];
      }
      pixels.data[offset + 3] = 255;
    }
    this.offscreen.getContext("2d").putImageData(pixels, 0, 0);
    const context = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    const fit = Math.min(width / this.offscreen.width, height / this.offscreen.height) * Number(this.zoom.value);
    const [w, h] = [this.offscreen.width * fit, this.offscreen.height * fit];
    context.clearRect(0, 0, width, height);
    context.drawImage(this.offscreen, (width - w) / 2 + this.x, (height - h) / 2 + this.y, w, h);
  }
}

// What the server makes of a file; an Error says what is wrong with it.
async function decoded(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Error("this browser cannot read it: choose a file, not a folder, and again if it has changed");
  }
  let reply, picture;
  try {
    reply = await fetch("picture", { method: "POST", body: file });
    picture = await reply.json();
  } catch {
    throw new Error(NO_REPLY);
  }
  if (!reply.ok) throw new Error(picture.error);
  return picture;
}

async function shown(picture) {
  const image = new Image();
  image.src = picture.url;
  try {
    await image.decode();
  } catch {
    throw new Error(`this browser cannot show an image of ${picture.width} × ${picture.height} px`);
  }
  return image;
}

const NO_REPLY = "the server does not answer any more", WAITING = "The model answers …";
const CUT_OFF = "Broken off before its end.";
const find = (id) => document.getElementById(id);
const fault = (text) => { find("fault").textContent = text; };
const radiographs = {};
for (const root of document.querySelectorAll(".radiograph")) radiographs[root.dataset.name] = new Radiograph(root, fillInterval);

let filledDays = ""; // days from the files' dates; typed days stay when a file has no date

function fillInterval() {
  const { reference, main } = radiographs;
  const bothDated = reference.taken && main.taken;
  const days = bothDated ? String(Math.round((Date.parse(main.taken) - Date.parse(reference.taken)) / 86400000)) : "";
  if (bothDated || find("interval").value === filledDays) find("interval").value = days;
  filledDays = days;
  checkPair();
}

// An answer about a pair in the wrong order, or of two patients, reads like any other.
function checkPair() {
  const { reference, main } = radiographs, days = -Number(find("interval").value);
  const order = days > 0 ? `The earlier radiograph is ${days} ${days === 1 ? "day" : "days"} later than the other. ` : "";
  const two = reference.patient && main.patient && reference.patient !== main.patient;
  find("order").textContent = order + (two ? "The two files are of different patients, by their PatientID." : "");
}
find("interval").addEventListener("input", checkPair);

let questions = {};
const kind = () => document.querySelector("input[name=kind]:checked").value;

function listQuestions() {
  const list = find("questions");
  list.replaceChildren(...questions[kind()].map((text) => new Option(text, text)));
  const dataset = Object.values(questions).flat();
  if (!find("question").value || dataset.includes(find("question").value)) find("question").value = list.value;
  for (const id of ["swapped", "same"]) find(id).disabled = kind() !== "difference";
}

async function start() {
  try {
    questions = await (await fetch("questions")).json();
  } catch {
    return fault(NO_REPLY);
  }
  listQuestions();
}
document.querySelectorAll("input[name=kind]").forEach((input) => input.addEventListener("change", listQuestions));
find("questions").addEventListener("change", () => { find("question").value = find("questions").value; });

// Each image keeps its own experts' words, as in the report's controls.
const ORDERS = {
  given: ["reference", "main", "As given"],
  swapped: ["main", "reference", "Images swapped"],
  same: ["reference", "reference", "Same image twice"],
};
let running = null;

async function ask(order) {
  if (running) return;
  fault("");
  const [before, after, title] = ORDERS[order];
  const pair = { reference: radiographs[before], main: radiographs[after] };
  const missing = Object.values(pair).find((radiograph) => !radiograph.url);
  if (missing && kind() === "difference") {
    return fault(`the ${missing.title.toLowerCase()} is missing: this kind of question is about it`);
  }
  const days = find("interval");
  if (!days.checkValidity()) return fault(`days between them: ${days.value || "this"} is no whole number within a century`);
  const body = {
    kind: kind(), question: find("question").value, interval: days.value === "" ? null : Number(days.value),
    images: Object.fromEntries(Object.entries(pair).map(([name, radiograph]) => [name, radiograph.url || ""])),
    experts: Object.fromEntries(Object.entries(pair).map(([name, radiograph]) => [name, radiograph.experts])),
  };
  const files = filesOf(pair);
  running = new AbortController();
  setBusy(true);
  let card = null;
  try {
    const reply = await fetch("ask", { method: "POST", body: JSON.stringify(body), signal: running.signal });
    if (!reply.ok) return fault((await reply.json()).error);
    card = newCard(title, files, fillIn(body.question, body.interval));
    for await (const event of events(reply.body)) {
      if (event.error) {
        fault(event.error);
        addNote(card, CUT_OFF);
      }
      if (event.text) card.querySelector(".text").textContent += event.text;
      if (event.facts) {
        card.querySelector(".text").textContent = event.answer || "(empty answer)"; // without the findings line, if there was one
        addNote(card, event.note);
        finish(card, event.facts);
      }
    }
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (stopped) find("status").textContent = "Stopped.";
    else fault(NO_REPLY);
    if (card) addNote(card, stopped ? "Stopped before its end." : CUT_OFF);
  } finally {
    running = null;
    setBusy(false);
  }
}

// As `prediction_questions.fill_in` does.
const fillIn = (question, days) => question.replaceAll("{days} days", days === 1 ? "1 day" : "{days} days").replaceAll("{days}", days);

// Which files an answer is about: those on the page may be others by then.
function filesOf({ reference, main }) {
  const names = { diagnostic: [main.file], difference: [reference.file, main.file], prediction: [reference.file] };
  return names[kind()].join(", then ");
}

function setBusy(on) {
  for (const id of ["ask", "swapped", "same"]) find(id).disabled = on || (id !== "ask" && kind() !== "difference");
  find("stop").hidden = !on;
  if (on) find("status").textContent = WAITING;
  else if (find("status").textContent === WAITING) find("status").textContent = "No answer.";
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function newCard(title, files, question) {
  const card = document.createElement("li");
  for (const [tag, name, text] of [["h3", "title", title], ["p", "files", files], ["p", "asked", question], ["p", "text", ""]]) {
    const part = document.createElement(tag);
    part.className = name;
    part.textContent = text;
    part.dir = "auto";
    card.append(part);
  }
  find("answers").prepend(card);
  return card;
}

// What a reader must know of an answer: half of "No change is seen but in the left lung" means something else.
function addNote(card, text) {
  if (!text) return;
  const part = document.createElement("p");
  part.className = "note";
  part.textContent = text;
  card.append(part);
}

function finish(card, facts) {
  const chips = document.createElement("ul");
  chips.className = "chips";
  chips.setAttribute("aria-label", "Facts read from the answer");
  for (const fact of facts.length ? facts : [{ finding: "", change: "no fact was read", level: "" }]) {
    const chip = document.createElement("li");
    chip.className = fact.change.replaceAll(" ", "-");
    const change = fact.change === "nothing" ? "nothing has changed" : fact.change;
    chip.textContent = [fact.finding, change, fact.level].filter(Boolean).join(" · ");
    chips.append(chip);
  }
  card.append(chips);
  find("status").textContent = `${card.querySelector(".title").textContent}: ${card.querySelector(".text").textContent}`;
}

for (const name of ["dragover", "drop"]) {
  document.addEventListener(name, (event) => event.preventDefault()); // a file dropped beside a radiograph would replace the page
}
find("form").addEventListener("submit", (event) => { event.preventDefault(); ask("given"); });
find("swapped").addEventListener("click", () => ask("swapped"));
find("same").addEventListener("click", () => ask("same"));
find("stop").addEventListener("click", () => running && running.abort());
start();
