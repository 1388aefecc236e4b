/** The page: one task at a time and its model; or, behind `?selftest`, whether the adapter computes right. */
import './style.css';
import { keepFocus, part } from './dom';
import { EngineWorker, type Listener } from './engine';
import { recall, remember } from './memory';
import type { Info, LoadOptions, Reply, TaskName } from './protocol';
import { type State, explain, hush, reload, say, show } from './status';
import { watchTabs } from './tabs';
import { Fill } from './tasks/fill';
import { See } from './tasks/see';
import type { Page, Task } from './tasks/task';
import { Translate } from './tasks/translate';
import { Write } from './tasks/write';

const progress = part<HTMLProgressElement>(document, 'progress');
const progressText = part(document, 'progress-text');
const adapter = part(document, 'adapter');
const speech = part(document, 'speech');

let state: State = 'loading';
let loaded = false;

const page: Page = {
  start(work) {
    if (!loaded || state === 'working') return false;
    hush();
    speech.textContent = '';
    enter('working');
    worker.send(work);
    return true;
  },
  stop: () => worker.send({ kind: 'stop' }),
  complain(by, text) {
    if (by === task && state !== 'unsupported') say(text, false);
  },
  speak(text) {
    const paragraph = document.createElement('p');
    paragraph.textContent = text;
    speech.append(paragraph);
  },
};

const panel = (name: TaskName) => part(document, `panel-${name}`);
const tasks: Record<TaskName, Task> = {
  write: new Write(panel('write'), page),
  translate: new Translate(panel('translate'), page),
  fill: new Fill(panel('fill'), page),
  see: new See(panel('see'), page),
};
let task: Task | undefined;

const query = new URLSearchParams(location.search);
/** `?kernels=plain` in the address chooses the shape of the kernels. */
const kernels = query.get('kernels');

function options(): LoadOptions {
  const remembered = recall();
  return { ...(kernels !== null && { kernels }), ...(remembered !== null && { remembered }) };
}

const listener: Listener = {
  reply: onReply,
  died: (why) => {
    loaded = false;
    fail(`The engine ${state === 'loading' ? 'could not start' : 'stopped'}: ${why}`);
  },
  silent: (silent) => {
    if (silent) say('The engine has not answered for half a minute. It may be busy; reload it if it stays so.', true);
    else hush();
  },
};
const worker = new EngineWorker(listener);

function enter(next: State) {
  state = next;
  show(next, next === 'working' ? task?.busy : undefined);
  part(document, 'loading').hidden = next !== 'loading';
  const resting = next !== 'loading' && next !== 'working';
  const panel = document.querySelector<HTMLElement>('[role="tabpanel"]:not([hidden])');
  const enable = () => task?.enable(loaded && next !== 'working', next === 'working');
  keepFocus(enable, resting && panel ? [part(panel, 'run'), reload] : []);
}

function fail(text: string) {
  task?.failed?.();
  say(text, true);
  enter('failed');
}

/** Loads the task's model in place of the one before, in a new worker where the old one is busy or ailing. */
function load(restart: boolean) {
  if (!task) return;
  hush();
  progress.removeAttribute('value');
  progressText.textContent = '';
  adapter.textContent = adapter.title = '';
  speech.textContent = '';
  loaded = false;
  enter('loading');
  const base = new URL(task.model, document.baseURI).href;
  const request = { kind: 'load', base, options: options() } as const;
  if (restart) worker.restart(request);
  else worker.ask(request);
}

function choose(name: TaskName) {
  if (task === tasks[name] || state === 'unsupported') {
    return;
  }
  const usable = loaded && (state === 'ready' || state === 'done');
  task?.failed?.(); // what it was doing ends here
  task?.enable(false, false);
  task = tasks[name];
  load(!usable);
}

function onReply(reply: Reply) {
  switch (reply.kind) {
    case 'unsupported':
      worker.stop();
      enter('unsupported');
      return say(explain(reply.lack), false);
    case 'progress':
      progress.max = reply.total;
      progress.value = reply.done;
      progressText.textContent = `${megabytes(reply.done)} of ${megabytes(reply.total)} MB`;
      return;
    case 'ready':
      return onReady(reply.info);
    case 'failed':
      return fail(`${state === 'loading' ? 'The model could not be loaded' : 'The run failed'}: ${reply.message}`);
    case 'testing':
    case 'row':
    case 'tested':
    case 'pong':
      return;
    default:
      task?.show(reply);
      if (reply.kind !== 'token') enter('done');
  }
}

function onReady(info: Info) {
  const { name, backend, type } = info.adapter;
  const [least, most] = info.subgroups ?? [];
  const subgroups = least && `subgroups of ${least === most ? least : `${least} to ${most}`}`;
  adapter.textContent = [name || 'unnamed adapter', backend, type, subgroups].filter(Boolean).join(' · ');
  adapter.title = Object.entries(info.kernels).map(([kernel, variant]) => `${kernel}: ${variant}`).join('\n');
  if (info.remembered !== null) remember(info.remembered);
  loaded = true;
  task?.ready(info);
  enter('ready');
}

const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);

function start() {
  reload.addEventListener('click', () => load(true));
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && state === 'working') page.stop();
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !event.repeat) task?.run();
  });
  watchTabs(choose);
  part(document, 'tabs').hidden = false;
}

// A browser that runs this from a file still lets it fetch none; the script in the page says so, and takes the state for
// the sign that this one is at work.
if (location.protocol !== 'file:') {
  part(document, 'state').hidden = false;
  if (query.has('selftest')) {
    import('./selftest').then(({ selftest }) => selftest(kernels), (error: unknown) => fail(String(error)));
  } else {
    start();
  }
}
