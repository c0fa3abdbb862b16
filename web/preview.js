/** The video while it is sampled: all frames, moving, on the node that samples. Gone when the run ends. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addElement, fitHeight } from "./lib/widgets.js";

const FRAMES_A_SECOND = 8;
const NAME = "svd_stages_preview";
const shown = new Map();

api.addEventListener("svd_stages.preview", ({ detail }) => show(detail));
for (const end of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(end, clear);

app.registerExtension({ name: "svd_stages.preview" });

/** Take the frames of `sheet`, the picture that nodes/comfy/preview.py made, to the node they are of. */
function show(sheet) {
  const node = findNode(sheet.node);
  if (!node) return;
  const preview = shown.get(node) ?? open(node, sheet);
  const picture = new Image();
  picture.onload = () => Object.assign(preview, { sheet, picture });
  picture.src = `data:image/jpeg;base64,${sheet.image}`;
}

/** The node of an execution id; "5:7" is node 7 inside the subgraph node 5. */
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
  const before = [...node.size];
  const widget = addElement(node, NAME, canvas, pixels);
  const preview = { widget, before, sheet: null, picture: null, frame: 0 };
  preview.timer = setInterval(() => draw(canvas, preview), 1000 / FRAMES_A_SECOND);
  shown.set(node, preview);
  fitHeight(node);
  return preview;
}

function draw(canvas, preview) {
  const { sheet, picture } = preview;
  if (!picture || document.hidden) return;
  preview.frame = (preview.frame + 1) % sheet.frames;
  const [column, row] = [preview.frame % sheet.columns, Math.floor(preview.frame / sheet.columns)];
  const place = [column * sheet.width, row * sheet.height, sheet.width, sheet.height];
  canvas.getContext("2d").drawImage(picture, ...place, 0, 0, canvas.width, canvas.height);
}

function clear() {
  for (const [node, preview] of shown) {
    clearInterval(preview.timer);
    preview.widget.onRemove?.();
    preview.widget.element?.remove();
    node.widgets = node.widgets.filter((widget) => widget !== preview.widget);
    node.setSize(preview.before);
    node.graph?.setDirtyCanvas(true, true);
  }
  shown.clear();
}
