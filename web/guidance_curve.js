/** The guidance curve over the frames, drawn in SVDGuidance while its widgets change. */

import { app } from "../../scripts/app.js";
import { drawChart, drawWords, newChart } from "./lib/chart.js";
import { guidanceWeights } from "./lib/curves.js";
import { addElement, isWired, onChange, valueOf } from "./lib/widgets.js";
import { say } from "./lib/words.js";

const FRAMES = 25;
const HEIGHT = 100;

app.registerExtension({
  name: "svd_stages.guidance_curve",
  nodeCreated(node) {
    if (node.comfyClass !== "SVDGuidance") return;
    const chart = newChart(say("Guidance weight of each frame"));
    addElement(node, "guidance_curve", chart, () => HEIGHT);
    onChange(node, () => draw(node, chart));
  },
});

function draw(node, chart) {
  const names = ["shape", "min_guidance", "max_guidance"];
  if (names.some((name) => isWired(node, name))) return drawWords(chart, say("the wired values decide"));
  const [shape, low, high] = names.map((name) => valueOf(node, name));
  const weights = guidanceWeights(shape, low, high, FRAMES);
  drawChart(chart, weights, { scale: "linear", ticks: [...new Set([1, ...weights.slice(0, 1), Math.max(...weights)])], across: say("frame") });
}
