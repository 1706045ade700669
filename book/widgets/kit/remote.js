// The worker with the models (lm-worker.js), started when it is first asked for something, and shared by a page's widgets.
let worker = null, count = 0;
const waiting = new Map();

/**
 * Ask for something. @param {string} what a task of lm-worker.js @param {Object<string, any>} message
 * @param {(said: Object<string, any>) => void} [on] what is told on the way
 * @returns {Promise<Object<string, any>>} what is told at the end
 */
export function ask(what, message = {}, on = () => {}) {
  if (!worker) {
    worker = new Worker(new URL("../lm-worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", ({ data }) => {
      const one = waiting.get(data.id);
      if (!one) return;
      if (!data.done) { one.on(data); return }
      waiting.delete(data.id);
      if (data.failed) one.fail(new Error(data.failed)); else one.end(data);
    });
    worker.addEventListener("error", (event) => {
      for (const one of waiting.values()) one.fail(new Error(event.message || "the model could not be started"));
      waiting.clear();
    });
  }
  const id = ++count;
  return new Promise((end, fail) => { waiting.set(id, { on, end, fail }); worker.postMessage({ ...message, id, do: what, root: models() }) });
}

/** End a training that is under way, after its present step. */
export const stop = () => worker?.postMessage({ do: "stop" });

/** Address of the folder of models. */
export const models = () => new URL(`${document.body.dataset.root}_static/models/`, location.href).href;
