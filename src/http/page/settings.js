// The settings of requests: a panel made from the server's OpenAPI document, presets, and the fields that a request gets.

import { get } from "./api.js";
import { $, askInDialog, element, show } from "./dom.js";
import { values } from "./store.js";

/** The fields of the panel by group; names, meanings, ranges and defaults are the document's. */
const GROUPS = [
  ["Length", ["max_completion_tokens", "stop", "ignore_eos"]],
  ["Sampling", ["temperature", "top_p", "top_k", "min_p", "typical_p", "seed"]],
  ["Repetition", ["repetition_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length"]],
  ["Form of the answer", ["json_schema", "regex", "grammar"]],
  ["Thinking", ["reasoning_effort", "enable_thinking", "thinking_budget"]],
  ["Queue", ["priority"]],
];
const LABELS = {
  max_completion_tokens: "Maximum tokens", stop: "Stop strings", ignore_eos: "Ignore end tokens", top_p: "Top p", top_k: "Top k", min_p: "Min p",
  typical_p: "Typical p", dry_multiplier: "DRY multiplier", dry_base: "DRY base", dry_allowed_length: "DRY allowed length", json_schema: "JSON schema",
  regex: "Regular expression",
};
/** What the completions route calls a field of the chat route. */
const TEXT_NAMES = { max_completion_tokens: "max_tokens" };

const label = (name) => LABELS[name] ?? `${name.charAt(0).toUpperCase()}${name.slice(1).replaceAll("_", " ")}`;

let current = { system: "", probabilities: false, fields: {} };
let presets = {};
let schema = null;

/** Why fields are not used, by name. */
const problems = new Map();

/** The first field whose value is not valid, in words; null when all are. */
export function invalidSetting() {
  const [first] = problems;
  return first ? `${label(first[0])}: ${first[1]}` : null;
}

/** What is set: `system`, `probabilities` and `fields`. */
export const settings = () => current;

/** The fields of a request, under the names of its route. */
export function requestFields(isChat) {
  return Object.fromEntries(Object.entries(current.fields).map(([name, value]) => [isChat ? name : (TEXT_NAMES[name] ?? name), value]));
}

/** Whether the server takes a field of the chat route with values that change something. */
export function takes(name) {
  const field = schema && schema[name];
  return Boolean(field && !(field.enum && field.enum.every((value) => value === null || value === false || value === 0 || value === "none")));
}

export async function startSettings() {
  current = { ...current, ...(await values.get("settings")) };
  presets = (await values.get("presets")) ?? {};
  $("system").value = current.system;
  $("system").addEventListener("input", () => change({ system: $("system").value }));
  $("probabilities").checked = current.probabilities;
  $("probabilities").addEventListener("change", () => change({ probabilities: $("probabilities").checked }));
  $("reset").addEventListener("click", () => use({ system: "", probabilities: false, fields: {} }));
  $("save-preset").addEventListener("click", savePreset);
  $("delete-preset").addEventListener("click", deletePreset);
  $("preset").addEventListener("change", () => $("preset").value && use(presets[$("preset").value]));
  listPresets();
  countChanges();
}

/** Reads the document and makes the controls. */
export async function loadFields() {
  if (schema) return;
  const document = await get("openapi.json");
  schema = propertiesOf(document, document.components.schemas.ChatRequest);
  showFields();
}

function propertiesOf(document, part) {
  const own = part.$ref ? propertiesOf(document, document.components.schemas[part.$ref.split("/").at(-1)]) : part.properties;
  return Object.assign({}, own, ...(part.allOf ?? []).map((each) => propertiesOf(document, each)));
}

function change(what) {
  current = { ...current, ...what };
  values.put("settings", current);
  countChanges();
}

function use(chosen) {
  change(structuredClone(chosen));
  $("system").value = current.system;
  $("probabilities").checked = current.probabilities;
  if (schema) showFields();
}

function countChanges() {
  const count = Object.keys(current.fields).length + (current.system ? 1 : 0) + (current.probabilities ? 1 : 0);
  $("settings-count").textContent = count || "";
  show($("settings-count"), count > 0);
}

function showFields() {
  problems.clear();
  const groups = GROUPS.map(([title, names]) => [title, names.filter(takes)]).filter(([, names]) => names.length);
  $("fields").replaceChildren(...groups.map(([title, names]) => element("fieldset", {}, element("legend", {}, title), ...names.map(control))));
}

/** The schema of a value, of which the others of a `oneOf` are other servers' ways to say "off". */
function valueSchema(name) {
  const field = schema[name];
  return { ...field, ...(field.oneOf ? field.oneOf[0] : {}) };
}

function control(name) {
  const field = valueSchema(name);
  const id = `field-${name}`;
  const types = [field.type].flat();
  const input = name === "stop" ? linesInput(name)
    : name === "json_schema" || name === "grammar" ? textInput(name, 4)
    : field.enum ? choiceInput(name, field.enum.filter((value) => value !== null))
    : types.includes("boolean") ? flagInput(name)
    : types.includes("integer") || types.includes("number") ? numberInput(name, field, types.includes("integer"))
    : textInput(name, 1);
  input.id = id;
  input.setAttribute("aria-describedby", `${id}-about`);
  const error = element("p", { class: "field-error", id: `${id}-error`, role: "alert", hidden: true });
  const about = element("p", { class: "about", id: `${id}-about` }, field.description.replaceAll("`", ""));
  const reset = element("button", { type: "button", class: "reset-field", "aria-label": `${label(name)}: use the default`, click: () => clear(name) }, "Use the default");
  const box = element("div", { class: input.type === "checkbox" ? "field check" : "field", "data-field": name }, element("label", { for: id }, label(name)), input, error, about, reset);
  show(reset, name in current.fields || problems.has(name));
  return box;
}

/** Takes a field back to its default. */
function clear(name) {
  complain(document.getElementById(`field-${name}`), "");
  set(name, undefined);
  const made = control(name);
  document.querySelector(`[data-field="${name}"]`).replaceWith(made);
  made.querySelector("input, select, textarea").focus();
}

function set(name, value) {
  const fields = { ...current.fields };
  if (value === undefined) delete fields[name];
  else fields[name] = value;
  change({ fields });
  const reset = document.querySelector(`[data-field="${name}"] .reset-field`);
  if (reset) show(reset, value !== undefined || problems.has(name));
}

/** Shows why a value is not used; requests are not sent until it is corrected. */
function complain(input, message) {
  const name = input.id.replace(/^field-/, "");
  if (message) problems.set(name, message);
  else problems.delete(name);
  input.setCustomValidity(message);
  input.setAttribute("aria-invalid", String(Boolean(message)));
  const error = document.getElementById(`${input.id}-error`);
  error.textContent = message;
  show(error, Boolean(message));
}

function numberInput(name, field, isInteger) {
  const step = isInteger ? 1 : field.maximum <= 1 ? 0.01 : 0.1;
  const limits = { min: field.minimum, max: field.maximum < 1e9 ? field.maximum : null };
  const input = element("input", { type: "number", step, inputmode: isInteger ? "numeric" : "decimal", placeholder: String(field.default ?? "model's default"), ...limits });
  input.value = current.fields[name] ?? "";
  input.addEventListener("input", () => {
    const value = input.valueAsNumber;
    const isWrong = input.validity.badInput || value < (field.minimum ?? -Infinity) || value > (field.maximum ?? Infinity) || (isInteger && !Number.isInteger(value) && !Number.isNaN(value));
    const range = limits.max === null || limits.max === undefined ? `${field.minimum ?? "any"} or more` : `${field.minimum} to ${field.maximum}`;
    complain(input, isWrong ? `Enter ${isInteger ? "a whole number" : "a number"}, ${range}.` : "");
    set(name, isWrong || Number.isNaN(value) ? undefined : value);
  });
  return input;
}

function choiceInput(name, choices) {
  const options = ["", ...choices].map((choice) => element("option", { value: choice }, choice === "" ? "default" : String(choice)));
  const input = element("select", { change: () => set(name, input.value || undefined) }, ...options);
  input.value = current.fields[name] ?? "";
  return input;
}

function flagInput(name) {
  const input = element("input", { type: "checkbox", change: () => set(name, input.checked || undefined) });
  input.checked = Boolean(current.fields[name]);
  return input;
}

/** Strings, one in each line. */
function linesInput(name) {
  const input = element("textarea", { rows: 2, dir: "auto", placeholder: "one in each line", spellcheck: "false" });
  input.value = (current.fields[name] ?? []).join("\n");
  input.addEventListener("input", () => {
    const lines = input.value.split("\n").filter(Boolean);
    complain(input, lines.length > 16 ? "At most 16 stop strings." : "");
    set(name, lines.length && lines.length <= 16 ? lines : undefined);
  });
  return input;
}

function textInput(name, rows) {
  const input = element("textarea", { rows, dir: "auto", spellcheck: "false", class: "code-input" });
  const value = current.fields[name];
  input.value = typeof value === "string" ? value : value ? JSON.stringify(value, null, 2) : "";
  input.addEventListener("input", () => {
    const text = input.value.trim();
    try {
      const parsed = name === "json_schema" && text ? JSON.parse(text) : text;
      if (name === "json_schema" && text && (typeof parsed !== "object" || parsed === null || Array.isArray(parsed))) throw new Error("a schema is a JSON object, such as {\"type\": \"object\"}");
      if (name === "regex") new RegExp(text, "u");
      complain(input, "");
      set(name, text ? parsed : undefined);
    } catch (error) {
      complain(input, `Not valid yet: ${error.message}`);
      set(name, undefined);
    }
  });
  return input;
}

function listPresets(chosen = "") {
  const names = Object.keys(presets).sort((a, b) => a.localeCompare(b));
  $("preset").replaceChildren(element("option", { value: "" }, names.length ? "Choose a preset" : "No presets yet"), ...names.map((name) => element("option", { value: name }, name)));
  $("preset").value = chosen;
}

async function savePreset() {
  const name = await askInDialog({ title: "Name of the preset", value: $("preset").value, confirm: "Save" });
  if (!name) return;
  if (presets[name] && !(await askInDialog({ title: "Replace the preset?", text: `A preset named ${name} exists.`, confirm: "Replace" }))) return;
  presets = { ...presets, [name]: structuredClone(current) };
  await values.put("presets", presets);
  listPresets(name);
}

async function deletePreset() {
  const name = $("preset").value;
  if (!name || !(await askInDialog({ title: "Delete the preset?", text: name, confirm: "Delete", isDanger: true }))) return;
  presets = Object.fromEntries(Object.entries(presets).filter(([each]) => each !== name));
  await values.put("presets", presets);
  listPresets();
}

