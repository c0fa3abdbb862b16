/** Helpers for widgets of a node: read and set values, observe changes, add an element. */

/** Return the value of a widget. */
export function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** Set the value of a widget and call its callback, like a user. Return false if there is no such widget. */
export function setValue(node, name, value) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return false;
  widget.value = value;
  widget.callback?.(value);
  return true;
}

/** Return true if an input is linked, so that its widget is not used. */
export function isLinked(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

/** Call `callback` now, and when a widget of `node` changes, the node is loaded, or a link is added or removed. */
export function onChange(node, callback) {
  for (const widget of node.widgets ?? []) chain(widget, "callback", callback);
  for (const event of ["onConfigure", "onConnectionsChange", "onWidgetChanged"]) chain(node, event, () => setTimeout(callback));
  callback();
}

/** Extend the method `object[name]`: call `after` when it has run. */
export function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    after(...values);
    return result;
  };
}

const MARGIN = 20;

/** Add an element of height `pixels()` below the node's widgets. It is neither saved nor sent with the prompt. */
export function addElement(node, name, element, pixels) {
  const height = () => (pixels() ? pixels() + MARGIN : 0);
  const widget = node.addDOMWidget(name, "svd_stages", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  return widget;
}

/** Set the node's height to that of its widgets. The width stays. */
export function fitHeight(node) {
  node.setSize([node.size[0], Math.max(node.computeSize()[1], 0)]);
  node.graph?.setDirtyCanvas(true, true);
}
