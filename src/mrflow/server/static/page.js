// The page's script: what the form says, sent to our own API, and what comes back, shown.
// Texts of users and models reach the document through textContent and value alone.
"use strict";

const $ = (id) => document.getElementById(id);
const form = $("ask");
const fields = form.elements;
const VERBS = { picture: "Make the picture", drafts: "Make drafts", enhance: "Enhance it" };
const STAGES = { draft: "Draft", upscaled: "Enlarged", final: "Final" };
const DOING = {
  text: "Reading the prompt", draft: "Drafting", decode_draft: "Drafting", upscale: "Enlarging",
  encode: "Refining", refine: "Refining", decode: "Refining",
};
const HEADERS = { "X-Mrflow-Page": "1" }; // which scripts of other sites can't send, see guard.py
const MOST = 60; // pictures of the visit that are held

let running = null; // the AbortController of what is being made
let shown = null; // the picture on show
let drafts = []; // {id, seed, url, box}
let visit = []; // pictures of this visit, newest first
let given = null; // the file to enhance
const nativeSeconds = {}; // by size and steps, once measured

// ---- the API ----

async function post(path, body, signal) {
  const isForm = body instanceof FormData;
  const headers = isForm ? HEADERS : { ...HEADERS, "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, signal, body: isForm ? body : JSON.stringify(body) });
  $("over").hidden = answer.status !== 401; // reloading would lose the visit's pictures
  if (answer.status === 401) throw new Error("You are not signed in.");
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status}.`; // a proxy, in its own words
  }
}

/** Yield the events of a stream; throw what an error event says. */
async function* stream(path, body, signal) {
  const answer = await post(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((each) => each.startsWith("data: "));
      if (!line) continue;
      const event = JSON.parse(line.slice(6));
      if (event.type === "error") throw new Error(event.error.message);
      yield event;
    }
  }
}

function blobOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type: `image/${event.output_format}` });
}

// ---- what the form says ----

const mode = () => fields.mode.value;

/** Return what the form asks for, by the names of requests; what is empty is left to the model. */
function wishes() {
  const body = { prompt: fields.prompt.value.trim() };
  const size = fields.size.value.trim() || fields.shape.value;
  if (size) body.size = size;
  if (mode() !== "enhance" && fields.quality.value !== "auto") body.quality = fields.quality.value;
  if (mode() === "enhance" && fields.strength.value) body.refine_sigma = Number(fields.strength.value);
  const loras = [...form.querySelectorAll("[data-lora]")];
  if (loras.some((each) => Number(each.value) !== Number(each.defaultValue))) {
    body.loras = loras.map((each) => ({ name: each.dataset.lora, weight: Number(each.value) })).filter((each) => each.weight);
  }
  for (const field of $("advanced").querySelectorAll("input[name], select")) {
    const value = field.value.trim();
    if (!value || field.name === "size" || (field.name === "n" && mode() !== "drafts")) continue;
    const isNumber = field.type === "number" || (field.dataset.number && !Number.isNaN(Number(value)));
    body[field.name] = isNumber ? Number(value) : value;
  }
  return body;
}

/** Fill the form as it would have asked for a picture with this recipe. */
function fill(recipe) {
  if (!Number.isSafeInteger(recipe.seed)) throw new Error(`Seed ${recipe.seed} is too long for a browser; take mrflow replay.`);
  const plan = recipe.plan, size = `${recipe.width}x${recipe.height}`;
  fields.prompt.value = recipe.prompt;
  fields.negative_prompt.value = recipe.negative_prompt ?? "";
  fields.seed.value = recipe.seed;
  const shape = [...fields.shape].find((each) => each.value === size);
  if (shape) shape.checked = true;
  fields.size.value = shape ? "" : size;
  const steps = plan.steps ?? 12, levels = (plan.scales ?? [plan.scale]).length;
  const given = plan.refine_steps ?? 1, more = Array.isArray(given) ? given : Array(levels).fill(given);
  const label = plan.refine_sigma === "switch" ? `${steps}/${steps + more[0]}` : [steps, ...more].join("+");
  fields.plan.value = label === form.dataset.plan ? "" : label;
  for (const field of $("advanced").querySelectorAll("[data-number]")) {
    if (field.dataset.number !== "steps") field.value = [plan[field.dataset.number] ?? field.dataset.absent ?? ""].flat().join("+");
  }
  for (const field of form.querySelectorAll("[data-lora]")) {
    field.value = recipe.loras?.find((each) => each.name === field.dataset.lora)?.weight ?? 0;
  }
  fields.quality.value = "auto";
  $("advanced").open = true;
  look();
}

/** Return the recipe inside a PNG, WebP or JPEG file that mrflow saved, or null. It is ASCII in each of them. */
async function recipeIn(file) {
  const text = new TextDecoder("latin1").decode(await file.arrayBuffer());
  const start = text.search(/mrflow[\0:]+\{"format"/);
  if (start < 0) return null;
  const from = text.indexOf("{", start);
  let depth = 0;
  for (let at = from, quoted = false; at < text.length; at++) {
    const sign = text[at];
    if (sign === "\\") at++;
    else if (sign === '"') quoted = !quoted;
    else if (!quoted && sign === "{") depth++;
    else if (!quoted && sign === "}" && --depth === 0) return JSON.parse(text.slice(from, at + 1));
  }
  return null;
}

async function readRecipe(file) {
  await attempt(async () => {
    const recipe = await recipeIn(file);
    if (!recipe) throw new Error(`${file.name} holds no recipe. Only pictures saved by mrflow carry one.`);
    fill(recipe);
    say(`The settings of seed ${recipe.seed}, made by ${recipe.model}.`);
  });
}

// ---- what is said beside the prompt, before anything is made ----

let waiting = 0, lookup = null;

function look() {
  clearTimeout(waiting);
  waiting = setTimeout(check, 350);
}

async function check() {
  lookup?.abort();
  lookup = new AbortController();
  const body = wishes();
  delete body.n;
  if (mode() === "enhance") delete body.size; // which the picture has to say
  let notes = [];
  if (body.prompt) {
    try {
      notes = (await (await post("v1/images/generations", { ...body, dry_run: true }, lookup.signal)).json()).warnings;
    } catch (error) {
      if (error.name === "AbortError") return;
      notes = [error.message];
    }
  }
  $("notes").replaceChildren(...notes.map((text) => make("li", { textContent: text })));
}

// ---- making ----

async function attempt(work) {
  $("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else {
      say("");
      $("problem").textContent = error.message;
    }
  }
}

/** Run what takes long, one at a time, with Stop enabled. */
async function run(work) {
  if (running) return;
  running = new AbortController();
  busy(true);
  say("Waiting for a turn");
  toResults();
  await attempt(() => work(running.signal));
  running = null;
  busy(false);
}

function busy(yes) {
  $("stop").disabled = !yes;
  for (const id of ["make", "better"]) $(id).disabled = yes;
  choose();
}

function say(text) {
  $("status").textContent = text;
}

function sayProgress(event, what = DOING) {
  const step = event.steps > 1 ? `, step ${event.step} of ${event.steps}` : "";
  say(`${typeof what === "string" ? what : what[event.stage]}${step}`);
}

/** Make the pictures of one request, shown as they come. begun: what is there of each, such as its draft. */
async function picture(path, body, signal, begun = [{}]) {
  const entries = begun.map((stages) => ({ stages: { ...stages } })), count = entries.length;
  let done = 0;
  for await (const event of stream(path, body, signal)) {
    const entry = entries[event.image_index ?? 0];
    if (event.type.endsWith(".progress")) sayProgress(event);
    else if (event.type.endsWith(".partial_image")) show(entry, add(entry, event.stage, event));
    else {
      Object.assign(entry, { recipe: event.recipe, seed: event.seed, seconds: event.seconds });
      add(entry, "final", event);
      remember(entry);
      show(entry, "final");
      say(count === 1 ? "Done." : `${++done} of ${count} done.`);
    }
  }
  return entries[0];
}

function add(entry, stage, event) {
  entry.blob = blobOf(event);
  entry.stages[stage] = URL.createObjectURL(entry.blob);
  return stage;
}

const seconds = (times) => Object.entries(times).reduce((sum, [name, value]) => sum + (name === "queue" ? 0 : value), 0);

async function makePicture(signal) {
  const body = wishes();
  const entry = await picture("v1/images/generations", { ...body, stream: true, progress: true, partial_images: 2 }, signal);
  if ($("compare").checked) await compare(entry, body, signal);
}

/** Make the plain pipeline's picture of the same seed, and show both under a slider. */
async function compare(entry, body, signal) {
  const { plan, quality, num_inference_steps, ...rest } = body;
  const asked = { ...rest, seed: entry.seed, size: sizeOf(entry), native: true, stream: true, progress: true };
  for await (const event of stream("v1/images/generations", asked, signal)) {
    if (event.type.endsWith(".progress")) sayProgress(event, "Native sampling");
    else {
      entry.stages.native = URL.createObjectURL(blobOf(event));
      entry.native = nativeSeconds[sizeOf(entry)] = seconds(event.seconds);
      if (shown === entry) show(entry, "final");
      say("Done.");
    }
  }
}

async function makeDrafts(signal) {
  const body = { n: 8, ...wishes(), stream: true, progress: true };
  for (const each of drafts) if (!each.used) URL.revokeObjectURL(each.url);
  drafts = [];
  $("drafts").replaceChildren();
  $("shelf").hidden = false;
  for await (const event of stream("v1/images/drafts", body, signal)) {
    if (event.type.endsWith(".progress")) sayProgress(event);
    else addDraft(event);
  }
  say(`${drafts.length} drafts. Choose those to finish.`);
}

function addDraft(event) {
  const box = make("input", { type: "checkbox", onchange: choose });
  const draft = { id: event.id, seed: event.seed, url: URL.createObjectURL(blobOf(event)), box };
  const image = make("img", { src: draft.url, alt: `Draft of seed ${draft.seed}` });
  drafts.push(draft);
  const label = make("label", { className: "card" }, image, make("span", {}, box, ` seed ${draft.seed}`));
  const after = drafts.filter((each) => each.seed < draft.seed).length;
  $("drafts").insertBefore(label, $("drafts").children[after] ?? null);
  $("welcome").hidden = true;
}

function choose() {
  const count = drafts.filter((each) => each.box.checked).length;
  $("finish").disabled = !count || Boolean(running);
  $("finish").textContent = count > 1 ? `Finish these ${count}` : count ? "Finish this one" : "Finish the chosen";
  $("all").textContent = count && count === drafts.length ? "Choose none" : "Choose all";
}

async function finish(signal) {
  const chosen = drafts.filter((each) => each.box.checked).sort((a, b) => a.seed - b.seed);
  const body = { drafts: chosen.map((each) => each.id), stream: true, progress: true, partial_images: 1 };
  chosen.forEach((each) => { each.used = true; });
  await picture("v1/images/finish", body, signal, chosen.map((each) => ({ draft: each.url })));
}

async function enhance(signal) {
  if (!given) throw new Error("Choose a picture to enhance.");
  const body = new FormData();
  for (const [name, value] of Object.entries({ ...wishes(), stream: true, progress: true, partial_images: 1 })) {
    body.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  body.set("image", given);
  await picture("v1/images/edits", body, signal);
}

// ---- showing ----

function make(kind, properties, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

const sizeOf = (entry) => `${entry.recipe.width}x${entry.recipe.height}`;

/** Bring the results into view, which are below the form on a phone and beside it elsewhere. */
function toResults() {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const below = $("results").offsetTop > form.offsetTop;
  $("results").scrollIntoView({ block: below ? "start" : "nearest", behavior: still ? "auto" : "smooth" });
}

function show(entry, stage) {
  shown = entry;
  $("welcome").hidden = true;
  $("result").hidden = false;
  $("picture").src = entry.stages[stage];
  $("picture").alt = entry.recipe ? `${STAGES[stage]}: ${entry.recipe.prompt}` : STAGES[stage];
  const both = stage === "final" && Boolean(entry.stages.native);
  $("native").hidden = $("slide").hidden = $("scene").hidden = !both;
  if (both) {
    $("native").src = entry.stages.native;
    $("native").alt = "The same by native sampling";
    slide();
  }
  $("stages").replaceChildren(...Object.keys(STAGES).filter((name) => entry.stages[name]).map((name) =>
    make("button", { type: "button", className: "card", onclick: () => show(entry, name), ariaPressed: String(name === stage) },
      make("img", { src: entry.stages[name], alt: "" }), STAGES[name])));
  $("uses").hidden = !entry.recipe;
  $("facts").textContent = entry.recipe ? facts(entry) : "";
  if (entry.recipe) {
    $("download").href = entry.stages.final;
    $("download").download = `mrflow-${entry.seed}.png`;
  }
  if (both) {
    $("scene").textContent = entry.recipe.plan.noise === "native"
      ? "Both begin with the same noise, so the scenes are alike, though not the same. Compare detail and time."
      : "This draft began with noise of its own size, so the two may show different scenes. Compare detail and time.";
  }
}

/** Return what is told of a picture: how long it took, against native sampling where that was measured. */
function facts(entry) {
  const took = seconds(entry.seconds), native = entry.native ?? nativeSeconds[sizeOf(entry)];
  const enhanced = entry.recipe.mode === "enhance";
  const compared = native && !enhanced ? `, ${(native / took).toFixed(1)} times faster than native (${native.toFixed(1)} s)` : "";
  const queue = entry.seconds.queue > 1 ? `, after ${entry.seconds.queue.toFixed(0)} s in line` : "";
  return `Seed ${entry.seed}, ${entry.recipe.width}×${entry.recipe.height}, made in ${took.toFixed(1)} s${compared}${queue}.`;
}

function slide() {
  const value = $("slide").querySelector("input").value;
  $("native").style.clipPath = `inset(0 ${100 - value}% 0 0)`;
  $("frame").style.setProperty("--cut", `${value}%`);
}

function remember(entry) {
  visit.unshift(entry);
  for (const old of visit.splice(MOST)) Object.values(old.stages).forEach((each) => URL.revokeObjectURL(each));
  $("visit").hidden = false;
  $("history").replaceChildren(...visit.map((each) => make("button",
    { type: "button", className: "card", title: each.recipe.prompt, onclick: () => { show(each, "final"); toResults(); } },
    make("img", { src: each.stages.final, alt: each.recipe.prompt }), `seed ${each.seed}`)));
}

// ---- the form ----

function changeMode() {
  for (const each of document.querySelectorAll("[class*='for-']")) each.hidden = !each.classList.contains(`for-${mode()}`);
  const own = form.querySelector("input[name=shape][value='']");
  if (mode() === "enhance") own.checked = true;
  else if (own.checked) fields.shape[1].checked = true;
  $("make").textContent = VERBS[mode()];
  look();
}

async function take(file) {
  given = file;
  $("given").src = URL.createObjectURL(file);
  $("given").hidden = false;
  const recipe = await recipeIn(file).catch(() => null);
  if (recipe && !fields.prompt.value.trim()) fields.prompt.value = recipe.prompt;
  look();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const work = { picture: makePicture, drafts: makeDrafts, enhance }[mode()];
  run(work);
});
form.addEventListener("input", (event) => (event.target.name === "mode" ? changeMode() : look()));
form.addEventListener("keydown", (event) => {
  if (event.target === fields.prompt && event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    form.requestSubmit();
  }
});
form.addEventListener("click", (event) => {
  const { example, word } = event.target.dataset;
  if (example === undefined && word === undefined) return;
  const text = event.target.textContent, before = fields.prompt.value.trimEnd();
  fields.prompt.value = example !== undefined ? text : before ? `${before} ${text}` : text;
  look();
});
$("image").addEventListener("change", (event) => event.target.files[0] && take(event.target.files[0]));
$("recipe").addEventListener("change", (event) => event.target.files[0] && readRecipe(event.target.files[0]));
$("stop").addEventListener("click", () => running?.abort());
$("finish").addEventListener("click", () => run(finish));
$("all").addEventListener("click", () => {
  const yes = drafts.some((each) => !each.box.checked);
  drafts.forEach((each) => { each.box.checked = yes; });
  choose();
});
$("again").addEventListener("click", () => attempt(async () => {
  fill(shown.recipe);
  fields.prompt.focus();
}));
$("better").addEventListener("click", async () => {
  fields.prompt.value = shown.recipe.prompt;
  fields.mode.value = "enhance";
  changeMode();
  await take(new File([shown.blob], `mrflow-${shown.seed}.png`, { type: shown.blob.type }));
  fields.prompt.focus();
});
$("reset").addEventListener("click", () => {
  for (const field of $("advanced").querySelectorAll("input, select")) field.value = field.defaultValue ?? "";
  look();
});
$("slide").addEventListener("input", slide);
$("picture").addEventListener("load", () => { // twice the final pixels at most: drawn out further it would look worse
  const width = shown.recipe?.width ?? 2 * $("picture").naturalWidth;
  $("frame").style.maxWidth = $("slide").style.maxWidth = `${Math.max(2 * width, 256)}px`;
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { // anywhere: to be enhanced, or for its recipe
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file) (mode() === "enhance" ? take : readRecipe)(file);
});
changeMode();
