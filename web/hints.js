/** Show a hint under a node if a setting is outside the range of the training. */

import { app } from "../../scripts/app.js";
import { addElement, fitHeight, isLinked, onChange, valueOf } from "./lib/widgets.js";
import { connectedNodes, loadersOf, sourceOf, targets } from "./lib/links.js";
import { translate } from "./lib/translations.js";

const LINE = 16;

/** The rules are for the published checkpoints. The built-in one was trained with other values. */
const BUILT_IN = "svd-nano";

/** Nodes whose widgets the hints of the nodes after them depend on. */
const SOURCES = ["SVDSamplerSelect", "KSamplerSelect", "SVDSigmas"];

/** class -> rules: [widget names, (...values, node) => hint or false]. */
const RULES = {
  SVDResizeImage: [
    [["width", "height"], (width, height) => width * height > 1.5 * 1024 * 576 && translate("much larger than 1024x576, which SVD was trained at")],
    [["width", "height"], (width, height) => width * height < 256 * 256 && translate("much smaller than 1024x576, which SVD was trained at")],
  ],
  SVDImageConditioning: [
    [["video_frames"], (frames) => frames > 25 && translate("SVD-XT was trained on 25 frames, SVD on 14")],
  ],
  SVDMicroConditioning: [
    [["fps"], (fps) => (fps < 5 || fps > 30) && translate("SVD was trained on 5 to 30 frames per second")],
    [["motion_bucket_id"], (bucket) => bucket > 255 && translate("SVD was trained on buckets up to 255")],
    [["noise_aug_strength"], (strength) => strength > 1 && translate("so much noise hides the image from the model")],
  ],
  SVDNoiseAugmentation: [[["noise_aug_strength"], (strength) => strength > 1 && translate("so much noise hides the image from the model")]],
  SVDSigmas: [
    [["sigma_max"], (sigma) => sigma > 700 && translate("SVD was trained up to 700")],
    [["steps", "schedule"], (steps, schedule) => steps < 10 && ["karras", "exponential"].includes(schedule) && translate("for few steps choose align_your_steps")],
    [["steps", "schedule"], (steps, schedule) => steps > 8 && schedule === "animate_lcm" && translate("animate_lcm is made for 1 to 8 steps")],
  ],
  SVDEulerSampler: [
    [["max_guidance"], (weight) => weight > 6 && translate("guidance above 6 oversaturates colors; 2.5 to 3 is usual")],
    [[], (node) => hasFewKarrasSteps(node) && translate("for dpmpp_2m on less than 15 steps choose align_your_steps")],
  ],
  SVDGuidance: [[["max_guidance"], (weight) => weight > 6 && translate("guidance above 6 oversaturates colors; 2.5 to 3 is usual")]],
};

/** node -> function that updates its hints. Removed nodes are garbage-collected. */
const updates = new WeakMap();

app.registerExtension({
  name: "svd_stages.hints",
  nodeCreated(node) {
    if (RULES[node.comfyClass]) addHints(node, RULES[node.comfyClass]);
    if (SOURCES.includes(node.comfyClass)) {
      onChange(node, () => targets(node).forEach((other) => updates.get(other)?.()));
    }
    if (node.comfyClass === "SVDCheckpointLoader") {
      onChange(node, () => connectedNodes(node).forEach((other) => updates.get(other)?.()));
    }
  },
});

function addHints(node, rules) {
  const element = document.createElement("div");
  element.style.cssText = `font:11px/${LINE}px sans-serif;color:#e0a030;overflow:hidden;padding:0 4px`;
  let hints = [];
  addElement(node, "hints", element, () => hints.length * 2 * LINE);
  const update = () => {
    const current = hintsOf(node, rules);
    if (current.join() === hints.join()) return;
    hints = current;
    element.replaceChildren(...hints.map(paragraph));
    fitHeight(node);
  };
  updates.set(node, update);
  onChange(node, update);
}

function hintsOf(node, rules) {
  if (loadersOf(node).some((loader) => valueOf(loader, "checkpoint") === BUILT_IN)) return [];
  return rules
    .filter(([names]) => !names.some((name) => isLinked(node, name)))
    .map(([names, rule]) => rule(...names.map((name) => valueOf(node, name)), node))
    .filter(Boolean);
}

/** Return true if dpmpp_2m is linked to `node`, and its noise levels are those of less than 15 karras steps. */
function hasFewKarrasSteps(node) {
  const choice = sourceOf(node, "sampler");
  if (!choice || valueOf(choice, "sampler_name") !== "dpmpp_2m") return false;
  const sigmas = sourceOf(node, "sigmas");
  const schedule = sigmas ? valueOf(sigmas, "schedule") : "karras";
  const holder = sigmas ?? node;
  return schedule === "karras" && !isLinked(holder, "steps") && valueOf(holder, "steps") < 15;
}

function paragraph(hint) {
  const line = document.createElement("div");
  line.textContent = `⚠ ${hint}`;
  line.title = hint;
  line.style.height = `${2 * LINE}px`;
  return line;
}
