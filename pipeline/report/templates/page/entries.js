// Renders one entry of the explorer. Texts become text nodes only, because a reply may contain markup.

const data = JSON.parse(document.getElementById("data").textContent);
const text = (number) => data.texts[number];
const plain = (name) => ({ direct: "no attack", sft: "SFT" })[name] ?? name.replaceAll("_", " ");

function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** The text, with each occurrence of a search term in a mark element. */
function marked(content, terms) {
  const pieces = [];
  const lower = content.toLowerCase();
  let from = 0;
  while (terms.length && lower.length === content.length) {
    const hits = terms.map((term) => [lower.indexOf(term, from), term]).filter(([at]) => at >= 0);
    if (!hits.length) break;
    const [at, term] = hits.reduce((a, b) => (b[0] < a[0] ? b : a));
    pieces.push(content.slice(from, at), el("mark", {}, content.slice(at, at + term.length)));
    from = at + term.length;
  }
  return [...pieces, content.slice(from)];
}

const prose = (content, terms, kind = "text") =>
  el("p", { class: kind, dir: "auto" }, content ? marked(content, terms) : el("i", {}, "(empty)"));

function principleLink(id) {
  return id in data.principles ? el("a", { href: `#principle-${id}` }, data.principles[id]) : el("code", {}, id);
}

// --- Parts of every collection's entries -------------------------------------------------------------------------------

function conversation(entry, terms) {
  if (!entry.turns.length) return null;
  const turns = entry.turns.map(([role, content], i) => {
    const begun = role === "assistant" && i === entry.turns.length - 1;
    return el("div", { class: "turn" }, el("span", { class: "who" }, begun ? "beginning of the reply, given" : role),
      prose(text(content), terms));
  });
  const long = turns.length > 3;
  return el("details", { class: "shown", open: !long },
    el("summary", {}, `The conversation as shown (${turns.length} ${turns.length === 1 ? "turn" : "turns"})`), turns);
}

function lineage(entry) {
  const items = entry.lineage.map(([name, value]) =>
    el("div", {}, el("dt", {}, text(name)), el("dd", {}, el("code", {}, text(value)))));
  return el("details", { class: "lineage" }, el("summary", {}, "Lineage"), el("dl", {}, items));
}

function block(title, ...children) {
  return el("div", { class: "block" }, el("h4", {}, title), children);
}

// --- One renderer per collection -------------------------------------------------------------------------------------

const SIGNS = { "1": "✓ ", "-1": "✗ ", "0": "" };
const QUALITY = { "1": "good", "-1": "bad", "0": "" };

const signed = (number) => `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(2)}`;

function replyBody(entry, terms) {
  const replies = entry.replies.map(([model, reply, outcome, quality, evidence, judge, tokens, reward]) =>
    el("div", { class: `reply ${QUALITY[quality]}` },
      el("h4", {}, plain(text(model)), " ", el("span", { class: "outcome" }, SIGNS[quality] + text(outcome)),
        reward === null ? null : el("span", { class: "reward" }, ` reward ${signed(reward)}`)),
      prose(text(reply), terms),
      el("p", { class: "soft" }, text(evidence) ? `“${text(evidence)}” · ` : "", `${text(judge)} · ${tokens} tokens`)));
  return [
    conversation(entry, terms),
    el("div", { class: "columns" }, replies),
    entry.reference === null ? null : block("Reference answer", prose(text(entry.reference), terms)),
  ];
}

const before = (diff) => diff.filter(([sign]) => sign !== "+").map(([, piece]) => text(piece)).join("");
const after = (diff) => diff.filter(([sign]) => sign !== "-").map(([, piece]) => text(piece)).join("");

function diffText(diff) {
  const tag = { "=": "span", "-": "del", "+": "ins" };
  return el("p", { class: "text diff", dir: "auto" }, diff.map(([sign, piece]) => el(tag[sign], {}, text(piece))));
}

function exchangeBody(entry, terms) {
  const rounds = entry.rounds.map(([number, principle, critique, diff]) => el("div", { class: "round" },
    el("div", { class: "block" },
      el("h4", {}, `Critique ${number}, under `, principleLink(text(principle))), prose(text(critique), terms)),
    el("div", { class: "columns" },
      block(`Revision ${number}`, prose(after(diff), terms)),
      block("What it changed", diffText(diff)))));
  return [conversation(entry, terms), block("First reply", prose(text(entry.reply), terms)), rounds];
}

function labelBar(probability) {
  if (probability === null) return el("p", { class: "soft" }, "No label: the labeller's answers could not be read.");
  const share = Math.round(100 * probability);
  const bar = el("div", { class: "soft-label", role: "img", "aria-label": `A is better with probability ${probability}` },
    el("span", {}), el("span", {}));
  bar.firstChild.style.width = `${100 * probability}%`;
  return el("div", { class: "label-row" }, el("span", {}, `A ${share} %`), bar, el("span", {}, `${100 - share} % B`));
}

function labelBody(entry, terms) {
  const orders = new Map([[true, "depends on the order"], [false, "the same in both orders"], [null, "–"]]);
  const rows = entry.judgements.map(([principle, logit, flipped, reasoning]) => el("tr", {},
    el("th", { scope: "row" }, principleLink(text(principle)),
      reasoning.map((thought) => el("details", {}, el("summary", {}, "Reasoning"), prose(text(thought), terms)))),
    el("td", {}, logit === null ? "not readable" : `${logit > 0 ? "A" : logit < 0 ? "B" : "even"}, logit ${logit}`),
    el("td", {}, orders.get(flipped))));
  const head = ["Principle", "Prefers", "Order"].map((name) => el("th", { scope: "col" }, name));
  return [
    conversation(entry, terms),
    labelBar(entry.probability),
    el("div", { class: "columns" }, block("Reply A", prose(text(entry.a), terms)), block("Reply B", prose(text(entry.b), terms))),
    rows.length ? el("table", { class: "judgements" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)) : null,
  ];
}

/** For each collection: the body of an open entry, the chips of a closed one, and the texts that search reads. */
const KINDS = {
  replies: {
    body: replyBody,
    chips: (entry) => entry.replies.map(([model, , outcome, quality]) =>
      [`${plain(text(model))} `, SIGNS[quality] + text(outcome), QUALITY[quality]]),
    texts: (entry) => [...entry.replies.flatMap(([, reply, , , evidence]) => [text(reply), text(evidence)]),
      entry.reference === null ? "" : text(entry.reference)],
  },
  critique: {
    body: exchangeBody,
    chips: (entry) => entry.rounds.map(([number, principle]) => [`${number} `, data.principles[text(principle)] ?? text(principle), ""]),
    texts: (entry) => [text(entry.reply), ...entry.rounds.flatMap(([, , critique, diff]) => [text(critique), after(diff)])],
  },
  labels: {
    body: labelBody,
    chips: (entry) => [["A ", entry.probability === null ? "no label" : `${Math.round(100 * entry.probability)} %`, ""]],
    texts: (entry) => [text(entry.a), text(entry.b), ...entry.judgements.flatMap((judgement) => judgement[3].map(text))],
  },
};
