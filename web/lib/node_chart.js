/** A chart inside a node that follows the node's widgets. */

import { app } from "../../../scripts/app.js";
import { drawText, newChart } from "./chart.js";
import { addElement, isLinked, onChange, valueOf } from "./widgets.js";
import { translate } from "./translations.js";

const HEIGHT = 100;

/**
 * Add a chart to every node of a class.
 *
 * name     name of the chart's widget
 * label    () -> text for screen readers
 * widgets  names of the widgets whose values are drawn
 * draw     (chart, ...values); not called if one of the widgets is linked, because its value is unknown
 */
export function addNodeChart(nodeClass, { name, label, widgets, draw }) {
  app.registerExtension({
    name: `svd_stages.${name}`,
    nodeCreated(node) {
      if (node.comfyClass !== nodeClass) return;
      const chart = newChart(label());
      addElement(node, name, chart, () => HEIGHT);
      onChange(node, () => {
        if (widgets.some((widget) => isLinked(node, widget))) drawText(chart, translate("linked values are used"));
        else draw(chart, ...widgets.map((widget) => valueOf(node, widget)));
      });
    },
  });
}
