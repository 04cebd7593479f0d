"use strict";
// Histograms and bars by name; each slot reads out under the pointer or by arrow keys.
const Bars = (() => {
  const { HEIGHT, svg, ticks, shown, short, canvas, keys, tip } = Drawing;

  function histogram(figure, chart, width) {
    const most = Math.max(...chart.all);
    const yTicks = ticks(0, most, 4).filter(Number.isInteger);
    const left = 10 + 6.4 * Math.max(...yTicks.map((one) => short(one).length));
    const box = { left, right: width - 12, top: 14, bottom: HEIGHT - 22 };
    const step = (box.right - box.left) / chart.all.length;
    const y = (value) => box.bottom - (value / most) * (box.bottom - box.top);
    const total = chart.all.reduce((a, b) => a + b, 0);
    const correct = chart.right.reduce((a, b) => a + b, 0);
    const root = canvas(figure, width, `${chart.title}: ${total} answers, ${correct} correct, median ${chart.median} ` +
      "words. Arrow keys read bars.");
    for (const value of yTicks) {
      svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "rule" }, root);
      svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, root, short(value));
    }
    const group = svg("g", { class: `s${chart.run}` }, root);
    chart.all.forEach((count, i) => {
      for (const [value, kind] of [[count, "all"], [chart.right[i], "some"]]) {
        if (value) {
          svg("path", { d: `M${box.left + i * step + 0.5} ${box.bottom}V${y(value)}h${Math.max(0.5, step - 1)}` +
            `V${box.bottom}z`, class: kind }, group);
        }
      }
    });
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }, root);
    for (const value of ticks(0, chart.all.length * chart.width, width / 70).filter(Number.isInteger)) {
      const at = box.left + (value / chart.width) * step;
      if (at <= box.right) svg("text", { x: at, y: HEIGHT - 6, "text-anchor": "middle" }, root, shown(value));
    }
    const middle = box.left + ((chart.median + 0.5) / chart.width) * step;
    svg("line", { x1: middle, x2: middle, y1: box.top, y2: box.bottom, class: "median" }, root);
    const said = `median ${chart.median}`;
    const place = middle + 5 + 6.4 * said.length <= width ? { x: middle + 5 } : { x: middle - 5, "text-anchor": "end" };
    svg("text", { ...place, y: box.top - 3, class: "halo" }, root, said);
    slots(figure, root, chart.all.length, (i) => {
      const from = i * chart.width;
      const open = chart.open && i === chart.all.length - 1;
      const words = open ? `${from} words and more` : chart.width === 1 ? `${from} words`
        : `${from} – ${from + chart.width - 1} words`;
      return {
        x: box.left + i * step, y: box.top, width: step, height: box.bottom - box.top, head: words,
        lines: [["answers", shown(chart.all[i])], ["correct", shown(chart.right[i])]],
      };
    }, (at) => Math.floor((at.x - box.left) / step));
  }

  function bars(figure, chart, width) {
    const most = Math.max(...chart.rows.map((row) => row[1]));
    const total = chart.rows.reduce((sum, row) => sum + row[1], 0);
    const row = 24;
    const left = Math.min(width * 0.4, 12 + 6.6 * Math.max(...chart.rows.map((one) => one[0].length)));
    const scale = (width - left - 60) / most;
    const root = canvas(figure, width, `${chart.title}: ${chart.rows.map((one) => one.join(" ")).join(", ")}. ` +
      "Arrow keys read bars.", row * chart.rows.length + 4);
    chart.rows.forEach(([name, count], i) => {
      const fits = Math.floor(left / 6.6);
      svg("text", { x: 0, y: i * row + 16 }, root, name.length > fits ? `${name.slice(0, fits - 1)}…` : name);
      svg("path", { d: `M${left} ${i * row + 5}h${Math.max(1, count * scale)}v15H${left}z`, class: "some s0" }, root);
      svg("text", { x: left + count * scale + 6, y: i * row + 16, class: "count" }, root, shown(count));
    });
    slots(figure, root, chart.rows.length, (i) => ({
      x: 0, y: i * row + 1, width, height: row - 1, head: chart.rows[i][0],
      lines: [["questions", shown(chart.rows[i][1])], ["share", shown(chart.rows[i][1] / total, "%")]],
    }), (at) => Math.floor(at.y / row));
  }

  function slots(figure, root, count, slot, find) {
    const layer = svg("g", {}, root);
    let place = -1;
    function read(next) {
      place = Math.min(count - 1, Math.max(0, next));
      const one = slot(place);
      layer.replaceChildren();
      svg("rect", { x: one.x, y: one.y, width: one.width, height: one.height, class: "hot" }, layer);
      tip(figure, one.head, one.lines, one.x + Math.min(one.width, 120), one.y);
    }
    const leave = () => {
      layer.replaceChildren();
      figure.querySelector(".tip")?.remove();
      place = -1;
    };
    root.addEventListener("pointermove", (event) => {
      const area = root.getBoundingClientRect();
      const scale = root.viewBox.baseVal.width / area.width;
      read(find({ x: (event.clientX - area.left) * scale, y: (event.clientY - area.top) * scale }));
    });
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    keys(root, () => place, read, count, leave);
  }

  return { histogram, bars };
})();
