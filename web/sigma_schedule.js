/** The row of noise levels, drawn in SVDSigmas while its widgets change. */

import { drawChart, drawWords } from "./lib/chart.js";
import { noiseLevels } from "./lib/curves.js";
import { addDrawing } from "./lib/drawing.js";
import { say } from "./lib/words.js";

addDrawing("SVDSigmas", {
  name: "sigma_schedule",
  label: () => say("Noise level of each step"),
  widgets: ["schedule", "steps", "sigma_min", "sigma_max", "rho"],
  draw(chart, schedule, steps, low, high, rho) {
    if (!(low > 0 && low < high)) return drawWords(chart, say("sigma_min must be below sigma_max"));
    const levels = noiseLevels(schedule, steps, low, high, rho);
    drawChart(chart, levels, { scale: "log", ticks: decades(low, high), across: say("step") });
  },
});

/** Powers of ten from low to high, the ends included: 0.01, 1, 100. */
function decades(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const all = Array.from({ length: Math.max(to - from + 1, 0) }, (_, index) => 10 ** (from + index));
  return all.length > 4 ? all.filter((_, index) => index % 2 === 0) : all;
}
