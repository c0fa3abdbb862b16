/** Chart of the guidance weights in SVDGuidance, updated when its widgets change. */

import { drawChart } from "./lib/chart.js";
import { guidanceWeights } from "./lib/curves.js";
import { addNodeChart } from "./lib/node_chart.js";
import { translate } from "./lib/translations.js";

const FRAMES = 25;

addNodeChart("SVDGuidance", {
  name: "guidance_curve",
  label: () => translate("Guidance weight of each frame"),
  widgets: ["shape", "min_guidance", "max_guidance"],
  draw(chart, shape, low, high) {
    const weights = guidanceWeights(shape, low, high, FRAMES);
    const ticks = [...new Set([1, ...weights.slice(0, 1), Math.max(...weights)])];
    drawChart(chart, weights, { scale: "linear", ticks, across: translate("frame") });
  },
});
