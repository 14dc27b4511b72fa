// Ids: that of an event (partition-offset-index of the frame that brought it), and that of a message (a position in the live topics).

/** Which of two events of one partition came first: negative if the first one did. */
export function compareIds(a: string, b: string): number {
  const left = a.split("-");
  const right = b.split("-");
  for (let at = 0; at < 3; at++) {
    const difference = Number(left[at]) - Number(right[at]);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Whether a position, such as `ticks:120,98;bars:4,0`, is at or after another one in every partition. */
export function reaches(position: string, other: string): boolean {
  const mine = parsed(position);
  return [...parsed(other)].every(([table, offsets]) => offsets.every((offset, at) => (mine.get(table)?.[at] ?? -1) >= offset));
}

function parsed(position: string): Map<string, number[]> {
  const parts = position.split(";").filter((part) => part !== "");
  return new Map(parts.map((part) => [part.split(":")[0] ?? "", (part.split(":")[1] ?? "").split(",").map(Number)]));
}
