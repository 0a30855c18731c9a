// The list of entries: filters, search, links. The state is {c: collection, q: search, e: linked entry, …facets}.
// It is stored in the URL after #, so that a link shows the same view.

const PAGE_SIZE = 25;
const FACET_TITLES = { suite: "Suite", kind: "Kind", attack: "Attack", group: "Group", principle: "Principle", verdict: "Verdict" };
const GROUPED = new Set(["verdict", "group"]); // "aligned: refused" is listed under "aligned"
const explorer = document.getElementById("explorer");
const collections = new Map(data.collections.map((collection) => [collection.id, collection]));
const entries = new Map(data.collections.flatMap((collection) => collection.entries.map((entry) => [entry.id, [collection, entry]])));
const ui = {};
let state = {};
let found = [];
let numShown = 0;

// --- State and address ---------------------------------------------------------------------------------------------

function readAddress() {
  const hash = location.hash.slice(1);
  if (!hash.includes("=")) return null; // an anchor of the page, or nothing
  const read = Object.fromEntries(new URLSearchParams(hash));
  if (read.e && entries.has(read.e)) read.c = entries.get(read.e)[0].id;
  return read;
}

function writeAddress() {
  const set = Object.entries(state).filter(([key, value]) => value && !(key === "c" && value === data.collections[0].id));
  const hash = new URLSearchParams(set).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

const collection = () => collections.get(state.c) ?? data.collections[0];
const terms = () => (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);

// --- Finding -------------------------------------------------------------------------------------------------------

const searched = new Map(); // entry → its texts, gathered at the first search

function textsOf(entry, kind) {
  if (!searched.has(entry)) {
    const all = [text(entry.request), ...entry.turns.map(([, content]) => text(content)), ...KINDS[kind].texts(entry),
      ...entry.facets.flat().map(text), ...entry.lineage.map(([, value]) => text(value))];
    searched.set(entry, [all, all.join("\n").toLowerCase()]);
  }
  return searched.get(entry);
}

function matches(entry, { id, facets }, wanted, words) {
  return facets.every((facet, i) => !wanted[facet] || entry.facets[i].some((value) => text(value) === wanted[facet]))
    && (!words.length || words.every((word) => textsOf(entry, id)[1].includes(word)));
}

/** A few words around the first hit; null if the request has all words of the search. */
function excerpt(entry, kind, words) {
  if (!words.length || words.every((word) => text(entry.request).toLowerCase().includes(word))) return null;
  const hit = textsOf(entry, kind)[0].slice(1).find((part) => words.some((word) => part.toLowerCase().includes(word)));
  if (!hit) return null;
  const at = Math.min(...words.map((word) => hit.toLowerCase().indexOf(word)).filter((place) => place >= 0));
  const start = hit.lastIndexOf(" ", Math.max(0, at - 40)) + 1;
  return el("span", { class: "excerpt", dir: "auto" }, start ? "… " : "", marked(hit.slice(start, at + 90), words), " …");
}

// --- One entry -----------------------------------------------------------------------------------------------------

function article(entry, linked = false) {
  const [{ id: kind, facets }] = entries.get(entry.id);
  const words = terms();
  const tags = facets.flatMap((facet, i) => (["suite", "kind", "attack", "group"].includes(facet)
    ? entry.facets[i].map((value) => plain(text(value))) : []));
  const chips = KINDS[kind].chips(entry).map(([who, what, quality]) => el("span", { class: quality }, who, el("b", {}, what)));
  const details = el("details", { open: linked },
    el("summary", {},
      el("h3", { dir: "auto" }, text(entry.request) ? marked(text(entry.request), words) : "(empty request)"),
      excerpt(entry, kind, words),
      el("span", { class: "tags" }, tags.join(" · ")),
      el("span", { class: "chips" }, chips)),
    el("div", { class: "body" }, KINDS[kind].body(entry, words), lineage(entry),
      el("p", { class: "soft" }, el("a", { href: `#${new URLSearchParams({ e: entry.id })}` }, "Link to this entry"), ` · ${entry.id}`)));
  return el("article", { class: linked ? "entry linked" : "entry", "data-id": entry.id },
    linked ? el("p", { class: "soft" }, "The linked entry (filters do not apply to it):") : null, details);
}

function showMore() {
  const next = found.slice(numShown, numShown + PAGE_SIZE).map((entry) => article(entry));
  ui.list.append(...next);
  numShown += next.length;
  ui.more.hidden = numShown >= found.length;
  ui.more.textContent = `Show ${Math.min(PAGE_SIZE, found.length - numShown)} more`;
  return next;
}

function update() {
  const { entries: all, title } = collection();
  const words = terms();
  found = all.filter((entry) => entry.id !== state.e && matches(entry, collection(), state, words));
  ui.list.replaceChildren();
  numShown = 0;
  const linked = state.e && entries.has(state.e) ? entries.get(state.e)[1] : null;
  if (linked) ui.list.append(article(linked, true));
  showMore();
  const count = found.length + (linked && matches(linked, collection(), state, words) ? 1 : 0);
  ui.count.textContent = `${count.toLocaleString("en")} of ${all.length.toLocaleString("en")} under “${title}”`;
  if (state.e && !linked) ui.count.textContent += `; there is no entry ${state.e} in this report`;
  ui.none.hidden = count > 0 || Boolean(linked);
}

// --- Controls ------------------------------------------------------------------------------------------------------

function options(facet, i) {
  const counts = new Map();
  for (const entry of collection().entries) for (const value of entry.facets[i]) counts.set(text(value), (counts.get(text(value)) ?? 0) + 1);
  const groups = new Map();
  for (const [value, count] of counts) {
    const cut = GROUPED.has(facet) ? value.indexOf(": ") : -1;
    const name = cut < 0 ? value : value.slice(cut + 2);
    const shown = facet === "principle" ? data.principles[value] ?? value : plain(name);
    const group = cut < 0 ? "" : plain(value.slice(0, cut));
    groups.set(group, [...(groups.get(group) ?? []), el("option", { value, selected: state[facet] === value }, `${shown} (${count})`)]);
  }
  const sorted = (list) => list.sort((a, b) => a.textContent.localeCompare(b.textContent));
  const nodes = [...groups].map(([name, list]) => (name ? [el("optgroup", { label: name }, sorted(list))] : sorted(list)));
  return counts.size > 1 || state[facet] ? [el("option", { value: "" }, "all"), ...nodes.flat()] : [];
}

function fillControls() {
  for (const radio of ui.collections.querySelectorAll("input")) radio.checked = radio.value === collection().id;
  ui.search.value = state.q ?? "";
  ui.facets.replaceChildren(...collection().facets.flatMap((facet, i) => {
    const choices = options(facet, i);
    if (!choices.length) return [];
    const select = el("select", { name: facet }, choices);
    select.addEventListener("change", () => change({ [facet]: select.value }));
    return [el("label", {}, FACET_TITLES[facet], select)];
  }));
}

function change(what) {
  state = { ...state, e: "", ...what };
  writeAddress();
  update();
}

function reset(kept) {
  state = kept;
  writeAddress();
  fillControls();
  update();
}

function build() {
  const radios = data.collections.map(({ id, title, entries: { length } }) =>
    el("label", {}, el("input", { type: "radio", name: "collection", value: id }), el("span", {}, `${title} (${length.toLocaleString("en")})`)));
  ui.collections = el("fieldset", {}, el("legend", {}, "Show"), radios);
  ui.search = el("input", { type: "search", autocomplete: "off", spellcheck: "false", placeholder: "Words in a request, a reply, an id …" });
  ui.facets = el("div", { class: "facets" });
  ui.count = el("p", { class: "count", role: "status", "aria-live": "polite" });
  ui.none = el("p", { class: "none", hidden: true }, "No transcript matches. Remove a filter or a word.");
  ui.list = el("div", { class: "list" });
  ui.more = el("button", { type: "button", class: "more", hidden: true });
  const clear = el("button", { type: "button" }, "Clear filters");
  const open = el("button", { type: "button" }, "Open or close all");
  const keys = el("p", { class: "keys soft" }, el("kbd", {}, "/"), " search, ", el("kbd", {}, "j"), " ", el("kbd", {}, "k"), " next and previous entry, ", el("kbd", {}, "Enter"), " open it");
  explorer.append(
    el("form", { role: "search", "aria-label": "Transcripts", class: "controls" },
      ui.collections, el("label", { class: "search" }, "Search", ui.search), ui.facets),
    el("div", { class: "found" }, ui.count, el("div", {}, open, " ", clear)), keys, ui.none, ui.list, ui.more);

  explorer.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  ui.collections.addEventListener("change", (event) => reset({ c: event.target.value, q: state.q }));
  clear.addEventListener("click", () => reset({ c: state.c }));
  ui.more.addEventListener("click", () => showMore()[0]?.querySelector("summary").focus());
  open.addEventListener("click", () => {
    const all = [...ui.list.querySelectorAll(".entry > details")];
    const opening = all.some((details) => !details.open);
    for (const details of all) details.open = opening;
  });
  let waiting;
  ui.search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => change({ q: ui.search.value.trim() }), 120);
  });
}

function step(by) {
  const all = [...ui.list.querySelectorAll(".entry > details > summary")];
  const here = all.indexOf(document.activeElement?.closest?.(".entry")?.querySelector("summary"));
  const next = all[here < 0 ? 0 : here + by];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select, textarea")) return;
  if (event.key === "/" && ui.search) {
    event.preventDefault();
    ui.search.focus();
  } else if (explorer.contains(document.activeElement) && ["j", "k"].includes(event.key)) {
    step(event.key === "j" ? 1 : -1);
  }
});

function followAddress() {
  const read = readAddress();
  if (!read) return;
  state = read;
  fillControls();
  update();
  const linked = ui.list.querySelector(".entry.linked summary");
  (linked ?? document.getElementById("transcripts")).scrollIntoView({ block: "start" });
  linked?.focus({ preventScroll: true });
}

if (data.collections.length) {
  build();
  fillControls();
  update();
  addEventListener("hashchange", followAddress);
  followAddress();
} else {
  explorer.append(el("p", {}, "There are no transcripts."));
}
explorer.hidden = false;
