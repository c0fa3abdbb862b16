/** The guidance curve over the frames, drawn in SVDGuidance while its widgets change. */

import { drawChart } from "./lib/chart.js";
import { guidanceWeights } from "./lib/curves.js";
import { addDrawing } from "./lib/drawing.js";
import { say } from "./lib/words.js";

const FRAMES = 25;

addDrawing("SVDGuidance", {
  name: "guidance_curve",
  label: () => say("Guidance weight of each frame"),
  widgets: ["shape", "min_guidance", "max_guidance"],
  draw(chart, shape, low, high) {
    const weights = guidanceWeights(shape, low, high, FRAMES);
    const ticks = [...new Set([1, ...weights.slice(0, 1), Math.max(...weights)])];
    drawChart(chart, weights, { scale: "linear", ticks, across: say("frame") });
  },
});
