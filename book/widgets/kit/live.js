// The live lab: where `posttrain book` serves the page, a widget can start the library's own run and follow it. The events
// are the same {step, metrics, samples} that a study recorded, so that the same drawing shows both.

const root = () => new URL("/lab/", location.origin);
let known = null;

/**
 * What the lab offers, asked once per page; null where no lab answers (a static host, another address, no token).
 * @returns {Promise<{experiments: Object<string, {section: string, says: string, settings: Object<string, any>}>,
 *   running: ?{id: string, experiment: string, settings: Object<string, any>}}|null>}
 */
export function ping() {
  // The server says by a cookie that it is a lab: elsewhere nothing is asked, so that no page makes a request that fails.
  if (!["127.0.0.1", "localhost"].includes(location.hostname) || !document.cookie.includes(`posttrain-lab-here-${location.port}=`)) return Promise.resolve(null);
  known ??= fetch(new URL("ping", root())).then((answer) => (answer.ok ? answer.json() : null)).catch(() => null);
  return known;
}

/**
 * Start an experiment. The promise fails with the lab's own words: a setting out of bounds, or a run under way.
 * @param {string} experiment @param {Object<string, number|string>} settings @returns {Promise<string>} the run's id
 */
export async function start(experiment, settings) {
  const answer = await fetch(new URL("runs", root()), {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ experiment, settings }),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.why);
  return said.id;
}

/**
 * Follow a run from its first event on.
 * @param {string} id
 * @param {{step: (event: {step: number, metrics: Object<string, number>, samples: Object[]}) => void,
 *   end: (event: {state: "done"|"stopped"|"failed", why?: string}) => void}} on
 * @returns {() => void} stops following; the run goes on
 */
export function stream(id, on) {
  const source = new EventSource(new URL(`runs/${id}/events`, root()));
  let last = -1;
  source.addEventListener("step", (event) => {
    if (+event.lastEventId <= last) return; // the browser came back after a broken connection: the lab tells all again
    last = +event.lastEventId;
    on.step(JSON.parse(event.data));
  });
  source.addEventListener("end", (event) => { source.close(); on.end(JSON.parse(event.data)) });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) on.end({ state: "failed", why: "the lab does not answer any more" });
  });
  return () => source.close();
}

/** Stop a run. @param {string} id */
export async function stop(id) { await fetch(new URL(`runs/${id}`, root()), { method: "DELETE" }) }

/**
 * A panel for a widget: a button that runs the experiment with the widget's settings and becomes "Stop"; without a lab,
 * the command that opens one.
 * @param {{experiment: string, settings: () => Object<string, number|string>, begin?: () => void,
 *   step: (event: Object) => void, end?: (event: Object) => void}} options
 * @returns {HTMLElement}
 */
export function panel({ experiment, settings, begin = () => {}, step, end = () => {} }) {
  const box = document.createElement("div"), said = document.createElement("p");
  box.className = "pt-live-panel";
  said.setAttribute("role", "status");
  ping().then((lab) => {
    if (!lab || !lab.experiments[experiment]) {
      const code = document.createElement("code");
      code.textContent = "posttrain book";
      said.append("To run this yourself, with the settings you choose here, open the book with ", code, ", by the address that it prints.");
      box.append(said);
      return;
    }
    const button = document.createElement("button");
    const idle = () => { button.textContent = "Run it here"; running = null };
    let running = null, steps = 0;
    const follow = (id) => {
      running = id, steps = 0;
      button.textContent = "Stop";
      said.textContent = "Starting; what comes before the first step may take a minute or two.";
      begin();
      stream(id, {
        step: (event) => { said.textContent = `Step ${++steps}, on this machine.`; step(event) },
        end: (event) => { said.textContent = { done: `Done after ${steps} steps.`, stopped: `Stopped after ${steps} steps.` }[event.state] || `It failed: ${event.why}`; idle(); end(event) },
      });
    };
    button.type = "button";
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        if (running) await stop(running);
        else follow(await start(experiment, settings()));
      } catch (error) { said.textContent = error.message }
      button.disabled = false;
    });
    idle();
    box.append(button, said);
    if (lab.running?.experiment === experiment) follow(lab.running.id);
  });
  return box;
}
