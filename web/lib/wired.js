/** Which nodes hang together. */

/** Every node that is wired to `start`, over any number of wires; `start` is the first. */
export function wiredTo(start) {
  const [met, waiting] = [new Set([start]), [start]];
  while (waiting.length) {
    for (const other of neighbours(waiting.pop())) {
      if (met.has(other)) continue;
      met.add(other);
      waiting.push(other);
    }
  }
  return [...met];
}

function neighbours(node) {
  const { graph } = node;
  if (!graph) return [];
  const wires = [...(node.inputs ?? []).map((input) => input.link), ...(node.outputs ?? []).flatMap((output) => output.links ?? [])];
  return wires
    .map((id) => (id == null ? null : graph.getLink?.(id) ?? graph.links[id]))
    .filter(Boolean)
    .flatMap((link) => [graph.getNodeById(link.origin_id), graph.getNodeById(link.target_id)])
    .filter(Boolean);
}
