/** Presets in the loader's context menu: frames and guidance of each checkpoint, and sizes. */

import { app } from "../../scripts/app.js";
import { chain, setValue } from "./lib/widgets.js";
import { connectedNodes } from "./lib/links.js";
import { translate } from "./lib/translations.js";

/** Frames and guidance by checkpoint: Stability's sampling configurations svd.yaml and svd_xt.yaml. */
const CHECKPOINTS = {
  "SVD: 14 frames, guidance 1 to 2.5": { frames: 14, guidance: [1.0, 2.5] },
  "SVD-XT and 1.1: 25 frames, guidance 1.5 to 3": { frames: 25, guidance: [1.5, 3.0] },
};

/** Width and height. SVD was trained at 1024x576; the others have about its area or need less memory. */
const SIZES = {
  "1024 x 576, as trained": [1024, 576],
  "576 x 1024, portrait": [576, 1024],
  "768 x 768, square": [768, 768],
  "768 x 448, less memory": [768, 448],
  "512 x 320, little memory": [512, 320],
  "320 x 512, portrait, little memory": [320, 512],
};

app.registerExtension({
  name: "svd_stages.presets",
  nodeCreated(node) {
    if (node.comfyClass !== "SVDCheckpointLoader") return;
    chain(node, "getExtraMenuOptions", (_canvas, options) => {
      options?.push({ content: translate("SVD presets"), submenu: { options: presetsOf(node) } });
    });
  },
});

function presetsOf(node) {
  const checkpoints = Object.entries(CHECKPOINTS).map(([name, preset]) => ({
    content: translate(name),
    callback: () => apply(node, (each) => setFrames(each, preset)),
  }));
  const sizes = Object.entries(SIZES).map(([name, size]) => ({
    content: translate(name),
    callback: () => apply(node, (each) => setSize(each, size)),
  }));
  return [...checkpoints, null, ...sizes];
}

function setFrames(node, { frames, guidance: [low, high] }) {
  if (node.comfyClass === "SVDImageConditioning") setValue(node, "video_frames", frames);
  if (["SVDEulerSampler", "SVDGuidance", "SVDFrameGuider", "SVDFrameGuidance"].includes(node.comfyClass)) {
    setValue(node, "min_guidance", low);
    setValue(node, "max_guidance", high);
  }
}

function setSize(node, [width, height]) {
  if (node.comfyClass !== "SVDResizeImage") return;
  setValue(node, "width", width);
  setValue(node, "height", height);
}

/** Call `change` with every node connected to `loader`. */
function apply(loader, change) {
  connectedNodes(loader).forEach(change);
  loader.graph.setDirtyCanvas(true, true);
}
