import type { NextConfig } from "next";

// A server that holds all that it needs, in .next/standalone.
const config: NextConfig = {
  output: "standalone",
  turbopack: { root: import.meta.dirname },
  outputFileTracingRoot: import.meta.dirname,
};

export default config;
