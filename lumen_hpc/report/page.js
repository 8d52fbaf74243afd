"use strict";
// The theme button and the case browser. Everything else on the page works without this file.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  // Storage may be refused to pages opened from disk.
  const stored = () => { try { return localStorage.getItem("lumen-theme"); } catch { return null; } };
  const show = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.querySelector("span").textContent = theme;
  };
  let theme = themes.includes(stored()) ? stored() : "auto";
  button.hidden = false;
  show(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    show(theme);
    try { localStorage.setItem("lumen-theme", theme); } catch { /* the choice lasts as long as the page */ }
  });
})();

(() => {
  const PAGE = 50;
  const { rows, images, models, measures } = JSON.parse(document.getElementById("data").textContent);
  const labels = Object.fromEntries(models);
  const byId = (id) => document.getElementById(id);
  const form = byId("filter"), list = byId("list"), detail = byId("case");
  let found = rows, page = 0, chosen = null;

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const options = (select, values, text = (value) => value) =>
    select.append(...values.map((value) => element("option", { value }, text(value))));
  const distinct = (values) => [...new Set(values)].sort();
  const answerOf = (row, model) => row.answers.find((answer) => answer.model === model);

  options(form.elements.type, distinct(rows.map((row) => row.type)));
  options(form.elements.finding, distinct(rows.flatMap((row) => row.findings)));
  options(form.elements.model, models.map(([model]) => model), (model) => labels[model]);
  const principal = models.at(-1)[0];
  form.elements.model.value = principal;
  for (const [other] of models.slice(0, -1)) {
    for (const [better, worse] of [[principal, other], [other, principal]]) {
      form.elements.compare.append(element("option", { value: JSON.stringify([better, worse]) }, `${labels[better]} right, ${labels[worse]} wrong`));
    }
  }
  const compared = (row, pair) => {
    if (!pair) return true;
    const [better, worse] = JSON.parse(pair);
    return answerOf(row, better)?.outcome === "right" && answerOf(row, worse)?.outcome === "wrong";
  };
  for (const row of rows) {
    row.words = [row.id, row.question, row.short, row.reference, ...row.answers.map((answer) => answer.text)].join(" ").toLowerCase();
  }

  const filter = () => {
    const { type, finding, model, outcome, compare, words } = Object.fromEntries(new FormData(form));
    const terms = words.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter((row) =>
      (!type || row.type === type) && (!finding || row.findings.includes(finding)) &&
      (!outcome || answerOf(row, model)?.outcome === outcome) && compared(row, compare) && terms.every((word) => row.words.includes(word)));
    page = 0;
    byId("count").textContent = `${found.length} of ${rows.length} cases`;
    turn();
    choose(found[0] ?? null);
  };

  const turn = () => {
    const first = page * PAGE, model = form.elements.model.value;
    list.replaceChildren(...found.slice(first, first + PAGE).map((row) => {
      const outcome = answerOf(row, model)?.outcome ?? "not asked";
      const item = element("button", { type: "button", "data-id": row.id },
        element("span", {}, row.type + (row.days == null ? "" : ` · ${days(row.days)}`)),
        element("span", { class: `outcome ${outcome}` }, mark(outcome)),
        element("span", { class: "q" }, (row.type === "difference" || row.type === "prediction" ? row.short : row.question) ?? row.id));
      item.addEventListener("click", () => choose(row));
      return element("li", {}, item);
    }));
    list.scrollTop = 0;
    byId("where").textContent = found.length ? `${first + 1}–${Math.min(first + PAGE, found.length)} of ${found.length}` : "none";
    byId("earlier").disabled = page === 0;
    byId("later").disabled = first + PAGE >= found.length;
    current();
  };

  const days = (count) => `${count} day${Math.abs(count) === 1 ? "" : "s"}`;
  const mark = (outcome) => ({ right: "✓ right", wrong: "✗ wrong", partly: "~ partly" })[outcome] ?? outcome;
  const current = () => {
    const items = [...list.querySelectorAll("button")], now = items.find((item) => item.dataset.id === chosen?.id);
    for (const item of items) {
      if (item === now) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
      item.tabIndex = item === (now ?? items[0]) ? 0 : -1; // one stop for Tab; arrow keys do the rest
    }
  };

  const choose = (row) => {
    chosen = row;
    current();
    if (!row) { detail.replaceChildren(element("p", { class: "empty" }, "No case fits the filter.")); return; }
    const parts = [element("h3", {}, row.question ?? `Question ${row.id}`)];
    parts.push(element("p", { class: "hint" }, [row.type, row.days == null ? "" : `${days(row.days)} between the images`, `id ${row.id}`].filter(Boolean).join(" · ")));
    if (row.images.length) parts.push(shownImages(row));
    if (row.reference || row.short) {
      parts.push(answerBlock("Reference answer", row.reference || row.short, row.reference ? `short: ${row.short}` : "", "truth"));
    }
    for (const answer of row.answers) {
      const scores = Object.entries(answer.scores).map(([name, value]) => `${measures[name] ?? name} ${value}`).join(" · ");
      const title = element("span", {}, `${labels[answer.model]} `, element("span", { class: `outcome ${answer.outcome}` }, mark(answer.outcome)));
      parts.push(answerBlock(title, answer.text ?? "", scores, ""));
    }
    detail.replaceChildren(...parts);
  };

  const shownImages = (row) => {
    const names = row.images.length > 1 ? ["Reference image", "Main image"] : [row.type === "prediction" ? "Reference image" : "Image"];
    return element("div", { class: "images" }, ...row.images.map((image, k) => element("figure", {},
      image ? larger(row, k, names, element("img", { src: images[image], alt: `${names[k]}: chest radiograph`, loading: "lazy" }))
            : element("div", { class: "absent" }, "image left out"),
      element("figcaption", {}, names[k], row.taken[k] ? element("span", { class: "taken" }, row.taken[k]) : ""))));
  };
  const larger = (row, k, names, image) => {
    const button = element("button", { type: "button", class: "larger", "aria-label": `${names[k]}: larger, with zoom and window` }, image);
    button.addEventListener("click", () => {
      const shown = row.images.map((each, place) => [names[place], images[each]]).filter(([, source]) => source);
      document.dispatchEvent(new CustomEvent("view", { detail: shown }));
    });
    return button;
  };
  const answerBlock = (title, text, scores, kind) => element("div", { class: `answer ${kind}` },
    element("h4", {}, title), element("p", {}, text), element("p", { class: "scores" }, scores));

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { form.elements.model.value = principal; filter(); }));
  byId("earlier").addEventListener("click", () => { page -= 1; turn(); });
  byId("later").addEventListener("click", () => { page += 1; turn(); });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = [...list.querySelectorAll("button")], next = items[items.indexOf(document.activeElement) + step];
    if (next) { next.focus(); next.click(); }
  });
  filter();
  // Back brings the form's words with it after this file has run; a page that was kept whole has its case still.
  addEventListener("pageshow", (event) => { if (!event.persisted) filter(); });
})();
