/** A chart inside a node, drawn from the node's widgets while they change. */

import { app } from "../../../scripts/app.js";
import { drawWords, newChart } from "./chart.js";
import { addElement, isWired, onChange, valueOf } from "./widgets.js";
import { say } from "./words.js";

const HEIGHT = 100;

/**
 * Give every node of a class a chart.
 *
 * name     of the widget that it is
 * label    () -> what it shows, for those who do not see it
 * widgets  whose values it is drawn from
 * draw     (chart, ...values); not called when a wire fills one of them, for what comes over it is not known here
 */
export function addDrawing(nodeClass, { name, label, widgets, draw }) {
  app.registerExtension({
    name: `svd_stages.${name}`,
    nodeCreated(node) {
      if (node.comfyClass !== nodeClass) return;
      const chart = newChart(label());
      addElement(node, name, chart, () => HEIGHT);
      onChange(node, () => {
        if (widgets.some((widget) => isWired(node, widget))) drawWords(chart, say("the wired values decide"));
        else draw(chart, ...widgets.map((widget) => valueOf(node, widget)));
      });
    },
  });
}
