"use strict";
// What every chart needs. Text goes in through textContent alone, so nothing of a run can become markup.
const Drawing = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 190;
  const state = { runs: [], phases: [], charts: [], hidden: new Set() }; // hidden: runs switched off in the legend

  function svg(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function ticks(low, high, wanted) {
    const rough = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  }

  function shown(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "%") return `${trimmed((100 * value).toFixed(Math.abs(value) < 0.1 ? 2 : 1))}\u00a0%`;
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return trimmed(value.toExponential(2)).replace("-", "−");
    if (size >= 1e4) return Math.round(value).toLocaleString("en");
    return trimmed(value.toPrecision(4)).replace("-", "−");
  }

  function trimmed(text) {
    return text.includes(".") ? text.replace(/\.?0+(?=e|$)/, "") : text;
  }

  function short(value, unit) {
    if (unit === "%") return trimmed((100 * value).toPrecision(4));
    const size = Math.abs(value);
    if (size >= 1e4 && size < 1e7) return `${trimmed((value / 1e3).toFixed(1))}k`;
    return shown(Number(value.toPrecision(6)), unit);
  }

  function closest(sorted, value) {
    let low = 0;
    let high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low > 0 && value - sorted[low - 1] <= sorted[low] - value ? low - 1 : low;
  }

  function canvas(figure, width, label, height = HEIGHT) {
    figure.querySelector("svg")?.remove();
    figure.querySelector(".tip")?.remove();
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": label }, figure);
  }

  function keys(root, place, read, count, leave) {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return leave();
      if (event.key in moves) read(place() < 0 ? (moves[event.key] > 0 ? 0 : count - 1) : place() + moves[event.key]);
      else if (event.key === "Home") read(0);
      else if (event.key === "End") read(count - 1);
      else return undefined;
      return event.preventDefault();
    });
  }

  function tip(figure, head, lines, at, top) {
    let box = figure.querySelector(".tip");
    if (!box) {
      box = document.createElement("div");
      box.className = "tip";
      box.setAttribute("role", "status");
      figure.append(box);
    }
    const title = document.createElement("b");
    title.textContent = head;
    box.replaceChildren(title);
    for (const [name, said, run] of lines) {
      const row = document.createElement("div");
      if (run !== undefined && state.runs.length > 1) {
        const swatch = document.createElement("span");
        swatch.className = `swatch s${run % 7}`;
        row.append(swatch);
      }
      row.append(name ? `${name}: ${said}` : said);
      box.append(row);
    }
    const picture = figure.querySelector("svg");
    const scale = picture.getBoundingClientRect().width / picture.viewBox.baseVal.width;
    const left = at * scale + 12;
    const flipped = left + box.offsetWidth > figure.clientWidth ? at * scale - 12 - box.offsetWidth : left;
    const start = Math.min(Math.max(flipped, 0), Math.max(0, figure.clientWidth - box.offsetWidth));
    box.style.left = `${start}px`;
    const above = picture.getBoundingClientRect().top - figure.getBoundingClientRect().top;
    const tall = box.offsetHeight > picture.clientHeight / 2; // below the chart, so as not to hide it
    box.style.top = `${above + (tall ? picture.clientHeight : top * scale)}px`;
  }

  return { HEIGHT, state, svg, ticks, shown, short, closest, canvas, keys, tip };
})();
