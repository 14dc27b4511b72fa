// The headings of docs/alerts.md as blocks of text: the page shows what to do without the site of the documentation. Pure.

export type Piece = { kind: "text" | "code"; text: string };
export type Block = { kind: "paragraph"; pieces: Piece[] } | { kind: "steps"; steps: Piece[][] } | { kind: "code"; text: string };

export interface Section {
  title: string;
  blocks: Block[];
}

/** The section of a page of the documentation with this anchor; null if there is none. */
export function section(page: string, anchor: string): Section | null {
  const lines = page.split("\n");
  const start = lines.findIndex((line) => /^#+ /.test(line) && slug(line) === anchor);
  if (start < 0) return null;
  const next = lines.findIndex((line, at) => at > start && /^#+ /.test(line));
  const body = lines.slice(start + 1, next < 0 ? undefined : next).join("\n");
  return { title: heading(lines[start]!), blocks: body.split(/\n{2,}/).flatMap(blocks) };
}

export function slug(line: string): string {
  return heading(line)
    .toLowerCase()
    .replace(/[^\w\s-]/g, "")
    .trim()
    .replace(/[-\s]+/g, "-");
}

function heading(line: string): string {
  return line.replace(/^#+ /, "").replaceAll("`", "");
}

function blocks(text: string): Block[] {
  const trimmed = text.trim();
  if (!trimmed) return [];
  if (trimmed.startsWith("```")) return [{ kind: "code", text: trimmed.replace(/^```\w*\n|\n?```$/g, "") }];
  if (/^(\d+\.|-) /.test(trimmed)) {
    const steps = trimmed.split(/\n(?=(?:\d+\.|-) )/).map((step) => pieces(step.replace(/^(\d+\.|-) /, "")));
    return [{ kind: "steps", steps }];
  }
  return [{ kind: "paragraph", pieces: pieces(trimmed) }];
}

/** Text and code. Links to other pages keep their text: only this page is here. */
function pieces(text: string): Piece[] {
  const plain = text.replace(/\s*\n\s*/g, " ").replace(/\[([^\]]+)\]\([^)]+\)/g, "$1").replace(/\*\*?/g, "");
  return plain
    .split(/(`[^`]+`)/)
    .filter(Boolean)
    .map((part): Piece => (part.startsWith("`") ? { kind: "code", text: part.slice(1, -1) } : { kind: "text", text: part }));
}
