/** Chart of the noise levels in SVDSigmas, updated when its widgets change. */

import { drawChart, drawText } from "./lib/chart.js";
import { noiseLevels } from "./lib/curves.js";
import { addNodeChart } from "./lib/node_chart.js";
import { translate } from "./lib/translations.js";

addNodeChart("SVDSigmas", {
  name: "sigma_schedule",
  label: () => translate("Noise level of each step"),
  widgets: ["schedule", "steps", "sigma_min", "sigma_max", "rho"],
  draw(chart, schedule, steps, low, high, rho) {
    if (!(low > 0 && low < high)) return drawText(chart, translate("sigma_min must be below sigma_max"));
    if (schedule === "animate_lcm" && steps > 40) return drawText(chart, translate("animate_lcm has at most 40 steps"));
    const levels = noiseLevels(schedule, steps, low, high, rho);
    drawChart(chart, levels, { scale: "log", ticks: decades(low, high), across: translate("step") });
  },
});

/** Return the powers of ten from low to high, both included; every second one if there are more than 4. */
function decades(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const all = Array.from({ length: Math.max(to - from + 1, 0) }, (_, index) => 10 ** (from + index));
  return all.length > 4 ? all.filter((_, index) => index % 2 === 0) : all;
}
