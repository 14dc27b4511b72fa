// Shows what to do about a problem: the section of the runbook, which is part of this page's files.
import { useEffect, useState } from "preact/hooks";
import { Dialog } from "./dialog";
import { section, type Block, type Piece, type Section } from "./runbook";

/** The page of the documentation that is built in. */
const PAGE = "docs/alerts.md";

export function Runbook({ place, close }: { place: string; close: () => void }) {
  const [found, setFound] = useState<Section | null | undefined>(undefined);
  useEffect(() => {
    const [page, anchor = ""] = place.split("#");
    if (page !== PAGE) setFound(null);
    else
      void import("../../../docs/alerts.md?raw").then(
        (text) => setFound(section(text.default, anchor)),
        () => setFound(null),
      );
  }, [place]);
  return (
    <Dialog title={found ? `What to do: ${found.title}` : "What to do"} close={close}>
      {found?.blocks.map((block, number) => <Shown key={number} block={block} />)}
      {found === null && <p>This runbook is not part of the page.</p>}
      <p class="faint">
        More: <code>{place}</code>
      </p>
    </Dialog>
  );
}

function Shown({ block }: { block: Block }) {
  if (block.kind === "code") return <pre>{block.text}</pre>;
  if (block.kind === "paragraph") return <p>{block.pieces.map(piece)}</p>;
  return (
    <ol>
      {block.steps.map((step, number) => (
        <li key={number}>{step.map(piece)}</li>
      ))}
    </ol>
  );
}

function piece(some: Piece, number: number) {
  return some.kind === "code" ? <code key={number}>{some.text}</code> : some.text;
}
