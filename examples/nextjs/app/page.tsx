// The page as the server makes it: it says where Tapeline is, and the browser connects to it.

import { readFileSync } from "node:fs";
import { Market } from "./market";

// The settings are read at each request, so that one build serves everywhere.
export const dynamic = "force-dynamic";

export default function Page() {
  const url = process.env.TAPELINE_URL ?? "http://127.0.0.1:8765";
  const symbols = (process.env.TAPELINE_SYMBOLS ?? "BTC/USDT,ETH/USDT").split(",");
  // Whoever can open this page gets the token with it. So give it the token of those who may look, never the operator's.
  const file = process.env.TAPELINE_TOKEN_FILE;
  const token = file ? readFileSync(file, "utf8").trim() : undefined;
  return <Market url={url} symbols={symbols} token={token} />;
}
