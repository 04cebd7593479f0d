"use strict";
// Curves over steps: smoothed lines over faint raw ones, phases marked, values read by pointer or arrow keys.
const Lines = (() => {
  const { HEIGHT, state, svg, ticks, shown, short, closest, canvas, keys, tip } = Drawing;

  function line(figure, chart, width) {
    const visible = chart.series.filter((one) => !state.hidden.has(one.run));
    const all = (visible.length ? visible : chart.series).flatMap((one) => [
      ...one.raw, ...(one.low || []), ...(one.high || [])].filter((value) => value !== null));
    let low = Math.min(...all);
    let high = Math.max(...all);
    if (chart.unit === "%") {
      low = 0;
      high = chart.markers ? 1 : Math.max(high, 1e-3) * 1.05;
    } else {
      if (low > 0 && low < 0.6 * high) low = 0;
      if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
      const room = (high - low) * 0.06;
      [low, high] = [low === 0 ? 0 : low - room, high + room];
    }
    let first = Infinity;
    let last = -Infinity;
    for (const phases of state.phases) for (const one of phases) {
      first = Math.min(first, one[1]);
      last = Math.max(last, one[2]);
    }
    for (const one of chart.series) {
      first = Math.min(first, one.x[0]);
      last = Math.max(last, one.x[one.x.length - 1]);
    }
    if (first === last) [first, last] = [first - 1, last + 1];

    const yTicks = ticks(low, high, 5);
    const left = Math.max(36, 10 + 6.4 * Math.max(...yTicks.map((one) => short(one, chart.unit).length)));
    const box = { left, right: width - 12, top: 14, bottom: HEIGHT - 22 };
    const x = (value) => box.left + ((value - first) / (last - first)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const root = canvas(figure, width, described(chart, visible));

    phaseMarks(root, box, x);
    for (const value of yTicks) {
      svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "rule" }, root);
      svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, root, short(value, chart.unit));
    }
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }, root);
    for (const value of ticks(first, last, width / 90).filter(Number.isInteger)) {
      const fits = x(value) + 3.4 * shown(value).length <= width;
      const place = fits ? { x: x(value), "text-anchor": "middle" } : { x: width, "text-anchor": "end" };
      svg("text", { ...place, y: HEIGHT - 6 }, root, shown(value));
    }
    for (const one of visible) series(root, one, chart.markers, x, y);
    const near = (at) => first + ((at - box.left) / (box.right - box.left)) * (last - first);
    hover(figure, root, box, visible, chart, x, y, near);
  }

  function phaseMarks(root, box, x) {
    const shownRuns = state.phases.map((phases, run) => [phases, run]).filter(([, run]) => !state.hidden.has(run));
    for (const [phases, run] of shownRuns) {
      phases.forEach(([name, start, end], place) => {
        if (state.runs.length === 1) {
          if (place % 2 === 0 && phases.length > 1) {
            svg("rect", { x: x(start), y: box.top, width: Math.max(1, x(end) - x(start)),
              height: box.bottom - box.top, class: "band" }, root);
          }
          if (phases.length > 1 && x(end) - x(start) > 8 * name.length) {
            svg("text", { x: x(start) + 3, y: box.top - 3 }, root, name.toUpperCase());
          }
        } else if (place > 0) {
          svg("line", { x1: x(start), x2: x(start), y1: box.top, y2: box.bottom, class: `edge s${run % 7}` }, root);
        }
      });
    }
  }

  function series(root, one, markers, x, y) {
    const group = svg("g", { class: `s${one.run % 7}${state.runs.length > 1 ? " many" : ""}` }, root);
    const main = one.smooth || one.raw;
    if (one.smooth && !one.dash) svg("path", { d: path(one.x, one.raw, x, y), class: "raw" }, group);
    svg("path", { d: path(one.x, main, x, y), class: one.dash ? "line dash" : "line" }, group);
    if (!markers && one.x.length > 1) return;
    one.x.forEach((step, i) => {
      if (one.low && one.low[i] !== null) {
        svg("line", { x1: x(step), x2: x(step), y1: y(one.low[i]), y2: y(one.high[i]), class: "err" }, group);
      }
      if (!one.dash) svg("circle", { cx: x(step), cy: y(one.raw[i]), r: 2.6, class: "mark" }, group);
    });
  }

  function path(xs, ys, x, y) {
    return xs.map((step, i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("");
  }

  function described(chart, visible) {
    const parts = visible.map((one) => {
      const end = one.x.length - 1;
      const values = `${shown(one.raw[0], chart.unit)} at step ${one.x[0]} to ` +
        `${shown(one.raw[end], chart.unit)} at step ${one.x[end]}`;
      return `${state.runs[one.run]} ${one.name}: ${values}`;
    });
    return `${chart.title}. ${parts.join("; ")}. Arrow keys read values.`;
  }

  function hover(figure, root, box, visible, chart, x, y, near) {
    const steps = [...new Set(visible.flatMap((one) => one.x))].sort((a, b) => a - b);
    if (!steps.length) return;
    const layer = svg("g", {}, root);
    let place = -1;

    function read(next) {
      place = Math.min(steps.length - 1, Math.max(0, next));
      const step = steps[place];
      layer.replaceChildren();
      svg("line", { x1: x(step), x2: x(step), y1: box.top, y2: box.bottom, class: "cursor" }, layer);
      const lines = [];
      for (const one of visible) {
        const i = one.x[closest(one.x, step)] === step || visible.length > 1 ? closest(one.x, step) : -1;
        if (i < 0) continue;
        const value = (one.smooth || one.raw)[i];
        svg("circle", { cx: x(one.x[i]), cy: y(value), r: 3.5, class: `spot s${one.run % 7}` }, layer);
        const name = [state.runs.length > 1 ? state.runs[one.run] : "",
          chart.series.length > state.runs.length ? one.name : ""].filter(Boolean).join(" · ");
        let said = shown(one.raw[i], chart.unit);
        if (one.low && one.low[i] !== null) {
          said += ` (${shown(one.low[i], chart.unit)} – ${shown(one.high[i], chart.unit)})`;
        }
        if (one.smooth) said += `, smoothed ${shown(one.smooth[i], chart.unit)}`;
        lines.push([name, one.x[i] === step ? said : `${said} at ${one.x[i]}`, one.run]);
      }
      tip(figure, stepName(step, visible), lines, x(step), box.top);
    }

    root.addEventListener("pointermove", (event) => {
      const scale = root.viewBox.baseVal.width / root.getBoundingClientRect().width;
      read(closest(steps, near((event.clientX - root.getBoundingClientRect().left) * scale)));
    });
    const leave = () => {
      layer.replaceChildren();
      figure.querySelector(".tip")?.remove();
      place = -1;
    };
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    keys(root, () => place, read, steps.length, leave);
  }

  function stepName(step, visible) {
    const runs = new Set(visible.map((one) => one.run));
    if (runs.size !== 1) return `step ${shown(step)}`;
    const [run] = runs;
    const phase = (state.phases[run] || []).find((one) => step >= one[1] && step <= one[2]);
    return phase ? `${phase[0].toUpperCase()} step ${(step - phase[3]).toLocaleString("en")}` : `step ${shown(step)}`;
  }

  return { line };
})();
