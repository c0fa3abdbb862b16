/** The row of noise levels, drawn in SVDSigmas while its widgets change. */

import { app } from "../../scripts/app.js";
import { drawChart, drawWords, newChart } from "./lib/chart.js";
import { noiseLevels } from "./lib/curves.js";
import { addElement, isWired, onChange, valueOf } from "./lib/widgets.js";
import { say } from "./lib/words.js";

const HEIGHT = 100;
const NAMES = ["schedule", "steps", "sigma_min", "sigma_max", "rho"];

app.registerExtension({
  name: "svd_stages.sigma_schedule",
  nodeCreated(node) {
    if (node.comfyClass !== "SVDSigmas") return;
    const chart = newChart(say("Noise level of each step"));
    addElement(node, "sigma_schedule", chart, () => HEIGHT);
    onChange(node, () => draw(node, chart));
  },
});

function draw(node, chart) {
  if (NAMES.some((name) => isWired(node, name))) return drawWords(chart, say("the wired values decide"));
  const [schedule, steps, low, high, rho] = NAMES.map((name) => valueOf(node, name));
  if (!(low > 0 && low < high)) return drawWords(chart, say("sigma_min must be below sigma_max"));
  drawChart(chart, noiseLevels(schedule, steps, low, high, rho), { scale: "log", ticks: decades(low, high), across: say("step") });
}

/** Powers of ten from low to high, the ends included: 0.01, 1, 100. */
function decades(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  const all = Array.from({ length: Math.max(to - from + 1, 0) }, (_, index) => 10 ** (from + index));
  return all.length > 4 ? all.filter((_, index) => index % 2 === 0) : all;
}
