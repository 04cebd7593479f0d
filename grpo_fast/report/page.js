"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // What a reload must keep lives in the history entry: it needs no storage, and works for files.
  const kept = history.state || {};
  history.scrollRestoration = "manual";
  let paused = Boolean(kept.paused);

  // --- theme

  const theme = document.getElementById("theme");
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
  const name = () => { theme.textContent = dark() ? "light" : "dark"; };
  if (kept.theme) root.dataset.theme = kept.theme;
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
    keep();
  });
  preferred.addEventListener("change", name);
  name();

  // --- charts and their legend

  Charts.start(JSON.parse(document.getElementById("data").textContent));
  const legend = all(".legend button");
  const press = (button, on) => {
    button.setAttribute("aria-pressed", on);
    Charts.toggle(Number(button.dataset.run), on);
  };
  for (const button of legend) {
    button.addEventListener("click", () => {
      press(button, button.getAttribute("aria-pressed") !== "true");
      keep();
    });
    if ((kept.hidden || []).includes(button.textContent)) press(button, false);
  }

  // --- case studies

  const form = document.querySelector(".filters");
  const cases = all(".case");
  const fields = form ? all("[data-filter]", form) : [];
  const words = new Map();
  const outcomes = {
    "has-right": (right) => right > 0,
    "has-wrong": (right, wrong) => wrong > 0,
    "mixed": (right, wrong) => right > 0 && wrong > 0,
    "all-right": (right, wrong) => right > 0 && wrong === 0,
    "all-wrong": (right, wrong) => wrong > 0 && right === 0,
  };

  function fits(one, filter, value) {
    if (filter === "outcome") return outcomes[value](Number(one.dataset.right), Number(one.dataset.wrong));
    if (filter !== "search") return one.dataset[filter] === value;
    if (!words.has(one)) words.set(one, one.textContent.toLowerCase());
    return value.toLowerCase().split(/\s+/).filter(Boolean).every((word) => words.get(one).includes(word));
  }

  function filter() {
    const wanted = fields.filter((field) => field.value).map((field) => [field.dataset.filter, field.value]);
    let count = 0;
    for (const one of cases) {
      one.hidden = !wanted.every(([key, value]) => fits(one, key, value));
      count += !one.hidden;
    }
    form.querySelector("output").textContent = `${count} of ${cases.length} groups`;
  }

  if (form) {
    for (const one of cases) {
      const picture = one.querySelector(".pictures img");
      if (!picture) continue;
      const small = new Image();
      small.src = picture.src;
      small.alt = "";
      one.querySelector(".thumb").append(small);
    }
    for (const field of fields) {
      const before = (kept.filters || {})[field.dataset.filter];
      if (before && (field.tagName === "INPUT" || [...field.options].some((one) => one.value === before))) {
        field.value = before;
      }
    }
    const open = form.querySelector("[data-open]");
    open.addEventListener("click", () => {
      const opened = open.textContent === "open all";
      for (const one of cases) if (!one.hidden) one.open = opened;
      open.textContent = opened ? "close all" : "open all";
    });
    form.addEventListener("input", () => { filter(); keep(); });
    form.addEventListener("reset", () => setTimeout(() => { filter(); keep(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  // --- what is open, in print and after a reload

  const key = (one) => one.id || one.querySelector("summary").textContent.replace(/[\d,]+/g, "");
  const closable = all("details");
  for (const one of closable) {
    if ((kept.open || []).includes(key(one))) one.open = true;
    one.addEventListener("toggle", keep);
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = closable.filter((one) => !one.open && !one.classList.contains("case"));
    for (const one of opened) one.open = true;
    all("[data-chart]").forEach(Charts.draw);
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

  // --- where the reader is

  const links = new Map(all(".links a").map((one) => [one.hash.slice(1), one]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  }, { rootMargin: "-25% 0px -70% 0px" });
  all("main > section").forEach((one) => seen.observe(one));

  function keep() {
    const filters = {};
    for (const field of fields) if (field.value) filters[field.dataset.filter] = field.value;
    history.replaceState({
      theme: root.dataset.theme,
      hidden: legend.filter((one) => one.getAttribute("aria-pressed") === "false").map((one) => one.textContent),
      filters,
      open: closable.filter((one) => one.open).map(key),
      scroll: scrollY,
      paused,
    }, "");
  }
  let settling = 0;
  addEventListener("scroll", () => {
    clearTimeout(settling);
    settling = setTimeout(keep, 200);
  }, { passive: true });

  // --- a run that goes on

  const live = document.getElementById("live");
  const every = Number(root.dataset.refresh);
  if (every) {
    live.hidden = false;
    const say = () => {
      live.setAttribute("aria-pressed", !paused);
      live.title = paused ? "the page stays as it is" : `read again every ${every} seconds`;
    };
    live.addEventListener("click", () => { paused = !paused; say(); keep(); });
    say();
    setInterval(() => {
      const busy = paused || document.hidden || !getSelection().isCollapsed || form?.contains(document.activeElement) ||
        document.querySelector(".tip");
      if (busy) return;
      keep();
      location.reload();
    }, 1000 * every);
  }

  if (kept.scroll !== undefined) scrollTo(0, kept.scroll);
  else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
})();
