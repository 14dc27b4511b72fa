// The whole page, in the order of a person's questions.
import { Complete } from "./parts/complete";
import { Flow } from "./parts/flow";
import { Incoming } from "./parts/incoming";
import { Market } from "./parts/market";
import { Running } from "./parts/running";
import { Top } from "./parts/top";
import { Hour } from "./parts/hour";
import { Well } from "./parts/well";

export function Whole() {
  return (
    <>
      <a class="skip" href="#well">
        To the state of the pipeline
      </a>
      <Top />
      <main>
        <Well />
        <Hour />
        <Incoming />
        <Flow />
        <Complete />
        <Running />
        <Market />
      </main>
    </>
  );
}
