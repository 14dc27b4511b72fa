// Asks the server. What it refuses is an error whose text is for people.

/** The server said no, and why. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    text: string,
  ) {
    super(text);
  }
}

export async function get<T>(path: string, parameters: Record<string, string> = {}, signal?: AbortSignal): Promise<T> {
  const query = new URLSearchParams(parameters).toString();
  return answered<T>(await fetch(query ? `${path}?${query}` : path, signal ? { signal } : {}));
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  return answered<T>(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered<T>(answer: Response): Promise<T> {
  if (answer.ok) return (await answer.json()) as T;
  const said: unknown = await answer.json().catch(() => null);
  const text = said !== null && typeof said === "object" && "error" in said ? String(said.error) : answer.statusText;
  throw new Refusal(answer.status, text || `The server answered ${answer.status}.`);
}

/** Why something could not be done, for people. */
export function reason(error: unknown): string {
  if (error instanceof Refusal) return error.message;
  return "The server does not answer. Look whether `tapeline dashboard` runs.";
}
