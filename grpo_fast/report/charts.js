"use strict";
// Each figure of the page draws the chart whose number it carries, at its own width.
const Charts = (() => {
  const { state } = Drawing;
  const KINDS = { ...Lines, ...Bars };

  function draw(figure) {
    const width = Math.round(figure.clientWidth);
    if (!width) return; // inside something closed: drawn when it opens
    const chart = state.charts[Number(figure.dataset.chart)];
    figure.dataset.width = width;
    KINDS[chart.kind](figure, chart, width);
  }

  function start(data) {
    Object.assign(state, data);
    const watch = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (target.clientWidth && Number(target.dataset.width) !== Math.round(target.clientWidth)) draw(target);
      }
    });
    for (const figure of document.querySelectorAll("[data-chart]")) {
      draw(figure);
      watch.observe(figure);
    }
  }

  function toggle(run, on) {
    if (on) state.hidden.delete(run);
    else state.hidden.add(run);
    document.querySelectorAll("[data-chart]").forEach(draw);
  }

  return { start, toggle, draw };
})();
