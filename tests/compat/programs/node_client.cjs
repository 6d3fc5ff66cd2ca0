// The released TypeScript SDK on Node: requests on stdin, answers and notes on stdout.
"use strict";

const { createRequire } = require("node:module");
const readline = require("node:readline");

const [environment, queueName] = process.argv.slice(2);
const installed = createRequire(`${environment}/`);
const { Absurd, TimeoutError } = installed("absurd-sdk");
const { Pool } = installed("pg");

const quiet = { log: console.error, info: console.error, warn: console.error, error: console.error };
// One connection that stays: no function of the schema may need a second session, and the clock is the session's.
const pool = new Pool({ connectionString: process.env.ABSURD_DATABASE_URL, max: 1, idleTimeoutMillis: 0 });
const app = register(new Absurd({ db: pool, queueName, log: quiet }));
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let healthy = false;

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const note = (text) => say({ note: text });
const hold = async (text) => {
  note(text);
  await lines.next();
};

// ---------------------------------------------------------------- the tasks

async function order(params, ctx) {
  const reserved = await ctx.step("reserve", async () => {
    note("reserve");
    return { sku: params.sku, qty: 1 };
  });
  const payment = await ctx.awaitEvent(`payment:${params.order}`);
  const parcel = await ctx.step("ship", async () => {
    if (params.hold) await hold("ship");
    else note("ship");
    return `parcel-${params.order}`;
  });
  const delivery = await ctx.awaitEvent(`delivery:${params.order}`);
  return { reserved, payment, parcel, delivery };
}

async function flaky(params, ctx) {
  await ctx.step("prepare", async () => {
    note("prepare");
    return null;
  });
  return await ctx.step("charge", async () => {
    note("charge");
    if (!healthy) throw new Error("card declined");
    return "charged";
  });
}

async function waiter(params, ctx) {
  let payload;
  try {
    payload = await ctx.awaitEvent(params.event, { timeout: params.timeout ?? undefined });
  } catch (error) {
    if (!(error instanceof TimeoutError)) throw error;
    payload = { "timed out": error.message };
  }
  note("answered");
  if (params.then_fail && !healthy) throw new Error("failed after the wait");
  return payload;
}

async function sleeper(params, ctx) {
  note("asleep");
  await ctx.sleepFor("nap", params.seconds);
  note("awake");
  return "rested";
}

async function holder(params, ctx) {
  await hold("holding");
  await ctx.step("after", async () => {
    note("after");
    return null;
  });
  return "held";
}

async function steps(params, ctx) {
  const again = [];
  for (const n of [0, 1, 2]) again.push(await ctx.step("again", async () => n));
  const handle = await ctx.beginStep("two halves");
  const halves = await ctx.completeStep(handle, { halves: 2 });
  const values = await ctx.step("decorated", async () => [null, true, 1.5, "ü"]);
  await ctx.heartbeat();
  await ctx.heartbeat(60);
  await ctx.emitEvent("inside", { task: ctx.taskID });
  return { again, halves, values, headers: ctx.headers };
}

async function parent(params, ctx) {
  note("waiting for the child");
  const child = await ctx.awaitTaskResult(params.child, { queue: params.queue, timeout: 20 });
  return { state: child.state, result: child.result };
}

function register(client) {
  const tasks = { order, flaky, waiter, sleeper, holder, steps, parent };
  for (const [name, handler] of Object.entries(tasks)) client.registerTask({ name }, handler);
  return client;
}

// ---------------------------------------------------------------- the calls

const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
const snake = (name) => name.replace(/ID$/, "_id").replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const rename = (object, how) =>
  object && Object.fromEntries(Object.entries(object).map(([name, of]) => [how(name), of]));
const options = ({ retry_strategy, cancellation, ...rest }) => ({
  ...rename(rest, camel),
  ...(retry_strategy && { retryStrategy: rename(retry_strategy, camel) }),
  ...(cancellation && { cancellation: rename(cancellation, camel) }),
});
const snapshot = (found) => found && { state: found.state, result: found.result ?? null, failure: found.failure ?? null };

const calls = {
  create_queue: ({ name, ...rest }) => app.createQueue(name ?? undefined, options(rest)),
  drop_queue: ({ name }) => app.dropQueue(name),
  list_queues: () => app.listQueues(),
  get_policy: async ({ name }) => rename(await app.getQueuePolicy(name ?? undefined), snake),
  set_policy: ({ name, ...rest }) => app.setQueuePolicy(name ?? undefined, options(rest)),
  spawn: async ({ task, params, ...rest }) => rename(await app.spawn(task, params, options(rest)), snake),
  emit: ({ event, payload }) => app.emitEvent(event, payload),
  result: async ({ task_id }) => snapshot(await app.fetchTaskResult(task_id)),
  await_result: async ({ task_id, timeout }) => snapshot(await app.awaitTaskResult(task_id, { timeout })),
  cancel: ({ task_id }) => app.cancelTask(task_id),
  retry: async ({ task_id, max_attempts, spawn_new }) =>
    rename(await app.retryTask(task_id, { maxAttempts: max_attempts, spawnNewTask: spawn_new }), snake),
  claim: (given) => app.claimTasks(options(given)),
  work: ({ worker_id, claim_timeout, batch_size }) => app.workBatch(worker_id, claim_timeout, batch_size),
  start: async (given) => {
    const own = register(new Absurd({ db: process.env.ABSURD_DATABASE_URL, queueName, log: quiet }));
    const worker = await own.startWorker({ pollInterval: 0.02, ...options(given) });
    const told = new Promise((resolve) => process.once("SIGTERM", resolve));
    note("started");
    await told;
    await worker.close();
    await own.close();
  },
  clock: ({ at }) => pool.query("select set_config('absurd.fake_now', $1, false)", [at ?? ""]),
  heal: () => {
    healthy = true;
  },
};

async function main() {
  for (let line = await lines.next(); !line.done; line = await lines.next()) {
    const { call, args } = JSON.parse(line.value);
    try {
      const answer = await calls[call](args);
      say({ answer: call === "clock" ? null : (answer ?? null) });
    } catch (error) {
      console.error(error);
      say({ error: { name: error.constructor.name, message: error.message, code: error.code ?? null } });
    }
  }
  await pool.end();
}

main();
