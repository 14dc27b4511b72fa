// Begins the page: what changed is drawn once a frame.
import { options, render } from "preact";
import "uplot/dist/uPlot.min.css";
import { PageContext } from "./context";
import { Page } from "./page";
import { applyColours } from "./pieces/colours";
import { Whole } from "./whole";

options.debounceRendering = (draw) => requestAnimationFrame(draw);
applyColours();
const page = new Page();
page.start();
const root = document.getElementById("page");
if (root) render(<PageContext.Provider value={page}><Whole /></PageContext.Provider>, root);
