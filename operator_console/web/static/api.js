// Asks the server; a session that has ended leads to the login page.

let csrf = "";

export class RefusedError extends Error {}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(60_000), ...options });
  } catch {
    throw new RefusedError("The console's server does not answer. Nothing is known about what became of this.");
  }
  if (answer.status === 401) {
    location.assign("/login?ended=1");
    return new Promise(() => {});
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new RefusedError(body.reason || `The server refused: ${answer.status} ${answer.statusText}`);
  return body;
}

export async function whoAmI() {
  const me = await ask("/api/me");
  csrf = me.csrf;
  return me;
}

export const fetchState = () => ask("/api/state", { signal: AbortSignal.timeout(8_000) });
export const fetchVersion = (version) => ask(`/api/versions/${encodeURIComponent(version)}`);
export const fetchLetters = () => ask("/api/dead-letters");
export const fetchAudit = () => ask("/api/audit");

const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify({ ...body, confirm: true }),
  });

export const giveOrder = (order, about = {}) => post(`/api/orders/${order}`, about);
export const requeue = (handle) => post(`/api/dead-letters/${encodeURIComponent(handle)}/requeue`, {});

export async function signOut() {
  await fetch("/logout", { method: "POST", headers: { "X-CSRF-Token": csrf } });
  location.assign("/login");
}
