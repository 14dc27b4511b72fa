// The page as the server makes it: it says where Tapeline is, and the browser connects to it.

import { Market } from "./market";

// The settings are read at each request, so that one build serves everywhere.
export const dynamic = "force-dynamic";

export default function Page() {
  const url = process.env.TAPELINE_URL ?? "http://127.0.0.1:8765";
  const symbols = (process.env.TAPELINE_SYMBOLS ?? "BTC/USDT,ETH/USDT").split(",");
  return <Market url={url} symbols={symbols} />;
}
