/** Widgets of a node: reading them, being told of changes, adding one that only shows. */

/** The value of the widget called `name`. */
export function valueOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)?.value;
}

/** Set the widget called `name`, as a person would, and tell the node. False when there is none. */
export function setValue(node, name, value) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (!widget) return false;
  widget.value = value;
  widget.callback?.(value);
  return true;
}

/** Whether a wire fills the input called `name`, so that its widget has no say. */
export function isWired(node, name) {
  return node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
}

/** Call `tell` now, whenever a widget of `node` changes, is loaded, or a wire is put in or taken out. */
export function onChange(node, tell) {
  for (const widget of node.widgets ?? []) chain(widget, "callback", tell);
  for (const event of ["onConfigure", "onConnectionsChange", "onWidgetChanged"]) chain(node, event, () => setTimeout(tell));
  tell();
}

/** After whatever `object[name]` did before, call `after`. */
export function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    after(...values);
    return result;
  };
}

const MARGIN = 20;

/** Add an element, `pixels()` high, below the node's widgets. It is not saved, and no graph is queued with it. */
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

/** Make the node as high as its widgets need; its width stays. */
export function fitHeight(node) {
  node.setSize([node.size[0], Math.max(node.computeSize()[1], 0)]);
  node.graph?.setDirtyCanvas(true, true);
}
