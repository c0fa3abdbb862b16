/** A line under a node when a setting leaves what the model was trained for. It forbids nothing. */

import { app } from "../../scripts/app.js";
import { addElement, fitHeight, isWired, onChange, valueOf } from "./lib/widgets.js";
import { loadersOf, servedBy } from "./lib/wired.js";
import { say } from "./lib/words.js";

const LINE = 16;

/** What the rules speak of: the published checkpoints. The built-in one was made for other values. */
const BUILT_IN = "svd-nano";

/** class -> rules: [widgets that it looks at, what it says of their values; nothing when all is well]. */
const RULES = {
  SVDResizeImage: [
    [["width", "height"], (width, height) => width * height > 1.5 * 1024 * 576 && say("much larger than 1024x576, which SVD was trained at")],
    [["width", "height"], (width, height) => width * height < 256 * 256 && say("much smaller than 1024x576, which SVD was trained at")],
  ],
  SVDImageConditioning: [
    [["video_frames"], (frames) => frames > 25 && say("SVD-XT was trained on 25 frames, SVD on 14")],
  ],
  SVDMicroConditioning: [
    [["fps"], (fps) => (fps < 5 || fps > 30) && say("SVD was trained on 5 to 30 frames per second")],
    [["motion_bucket_id"], (bucket) => bucket > 255 && say("SVD was trained on buckets up to 255")],
    [["noise_aug_strength"], (strength) => strength > 1 && say("so much noise hides the picture from the model")],
  ],
  SVDNoiseAugmentation: [[["noise_aug_strength"], (strength) => strength > 1 && say("so much noise hides the picture from the model")]],
  SVDSigmas: [
    [["sigma_max"], (sigma) => sigma > 700 && say("SVD was trained up to 700")],
    [["steps", "schedule"], (steps, schedule) => steps < 10 && schedule !== "align_your_steps" && say("for few steps choose align_your_steps")],
  ],
  SVDEulerSampler: [[["max_guidance"], (weight) => weight > 6 && say("guidance above 6 burns colours; 2.5 to 3 is usual")]],
  SVDGuidance: [[["max_guidance"], (weight) => weight > 6 && say("guidance above 6 burns colours; 2.5 to 3 is usual")]],
};

/** node -> looks at its values again. Nodes that are dropped drop out. */
const updates = new WeakMap();

app.registerExtension({
  name: "svd_stages.hints",
  nodeCreated(node) {
    if (RULES[node.comfyClass]) addHints(node, RULES[node.comfyClass]);
    if (node.comfyClass === "SVDCheckpointLoader") {
      onChange(node, () => servedBy(node).forEach((served) => updates.get(served)?.()));
    }
  },
});

function addHints(node, rules) {
  const words = document.createElement("div");
  words.style.cssText = `font:11px/${LINE}px sans-serif;color:#e0a030;overflow:hidden;padding:0 4px`;
  let hints = [];
  addElement(node, "hints", words, () => hints.length * 2 * LINE);
  const update = () => {
    const now = hintsOf(node, rules);
    if (now.join() === hints.join()) return;
    hints = now;
    words.replaceChildren(...hints.map(paragraph));
    fitHeight(node);
  };
  updates.set(node, update);
  onChange(node, update);
}

function hintsOf(node, rules) {
  if (loadersOf(node).some((loader) => valueOf(loader, "checkpoint") === BUILT_IN)) return [];
  return rules
    .filter(([names]) => !names.some((name) => isWired(node, name)))
    .map(([names, rule]) => rule(...names.map((name) => valueOf(node, name))))
    .filter(Boolean);
}

function paragraph(hint) {
  const line = document.createElement("div");
  line.textContent = `⚠ ${hint}`;
  line.title = hint;
  line.style.height = `${2 * LINE}px`;
  return line;
}
