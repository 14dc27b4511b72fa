// The one error of this package: what is wrong, and whether it helps to try again.

export class TapelineError extends Error {
  override readonly name = "TapelineError";

  /** `status`: of HTTP, or a websocket's close code; 0 if there was no answer. `retry`: whether a later try may work. */
  constructor(
    message: string,
    readonly status: number,
    readonly retry: boolean,
  ) {
    super(message);
  }
}

/** What the server says of a request that failed. */
export async function errorOf(answer: Response): Promise<TapelineError> {
  const body: unknown = await answer.json().catch(() => null);
  const said = typeof body === "object" && body !== null && "error" in body ? String(body.error) : `The server answered ${answer.status}.`;
  return new TapelineError(said, answer.status, answer.status >= 500 || answer.status === 409 || answer.status === 429);
}
