/** Animated preview of all frames on the sampling node. Removed when the run ends. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addElement, chain, fitHeight } from "./lib/widgets.js";

const FRAMES_PER_SECOND = 8;
const NAME = "svd_stages_preview";
const SAMPLER = "SVDEulerSampler";
const previews = new Map();

api.addEventListener("svd_stages.preview", ({ detail }) => show(detail));
for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, clear);

app.registerExtension({ name: "svd_stages.preview" });

/** Show a contact sheet that nodes/comfy/preview.py sent on its node. */
function show(sheet) {
  const node = findNode(sheet.node);
  if (node?.comfyClass !== SAMPLER) return; // the page shows another graph
  const preview = previews.get(node) ?? open(node, sheet);
  const image = new Image();
  image.onload = () => Object.assign(preview, { sheet, image });
  image.src = `data:image/jpeg;base64,${sheet.image}`;
}

/** Return the node of an execution id; "5:7" is node 7 inside the subgraph node 5. */
function findNode(id) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

function open(node, sheet) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [sheet.width, sheet.height];
  canvas.style.cssText = "width:100%;height:100%;object-fit:contain;display:block";
  const pixels = () => Math.max(40, (node.size[0] - 20) * (sheet.height / sheet.width));
  const height = node.size[1];
  const preview = { widget: addElement(node, NAME, canvas, pixels), sheet: null, image: null, frame: 0, added: 0 };
  preview.timer = setInterval(() => draw(canvas, preview), 1000 / FRAMES_PER_SECOND);
  previews.set(node, preview);
  fitHeight(node);
  preview.added = node.size[1] - height;
  saveHeightWithoutPreview(node);
  return preview;
}

/** Save the node with its height without the preview. */
function saveHeightWithoutPreview(node) {
  if (node.savesWithoutPreview) return;
  node.savesWithoutPreview = true;
  chain(node, "onSerialize", (saved) => {
    saved.size = [node.size[0], node.size[1] - (previews.get(node)?.added ?? 0)];
  });
}

function draw(canvas, preview) {
  const { sheet, image } = preview;
  if (!image || document.hidden) return;
  preview.frame = (preview.frame + 1) % sheet.frames;
  const [column, row] = [preview.frame % sheet.columns, Math.floor(preview.frame / sheet.columns)];
  const source = [column * sheet.width, row * sheet.height, sheet.width, sheet.height];
  canvas.getContext("2d").drawImage(image, ...source, 0, 0, canvas.width, canvas.height);
}

function clear() {
  for (const [node, preview] of previews) {
    clearInterval(preview.timer);
    preview.widget.onRemove?.();
    preview.widget.element?.remove();
    node.widgets = node.widgets.filter((widget) => widget !== preview.widget);
    node.setSize([node.size[0], node.size[1] - preview.added]);
    node.graph?.setDirtyCanvas(true, true);
  }
  previews.clear();
}
