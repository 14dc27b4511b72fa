// How the page is built: into the Python package, so that the server and the wheel have it.
import { defineConfig, type Plugin } from "vite";

const server = "http://127.0.0.1:8765";

/** The page is drawn when its script has run: no empty frame before it, and no flash of the other colours. */
const drawnAtOnce: Plugin = {
  name: "drawn at once",
  apply: "build",
  transformIndexHtml: {
    order: "post",
    handler: (html) => html.replace('<script type="module"', '<script type="module" blocking="render"'),
  },
};

export default defineConfig({
  plugins: [drawnAtOnce],
  server: { proxy: { "/v1": { target: server, ws: true } } },
  build: {
    target: ["chrome123", "firefox121", "safari17.5"], // these know light-dark()
    outDir: "../src/tapeline/web/assets",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
  },
});
