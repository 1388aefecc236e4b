/** The page behind `?selftest`: whether the browser's adapter computes right, a row for each kernel in each variant. */
import { part } from './dom';
import { EngineWorker } from './engine';
import type { Reply, SelftestReport, SelftestRow } from './protocol';
import { explain, hush, reload, say, show } from './status';

const root = part(document, 'selftest');
const table = part(root, 'rows');
const summary = part(root, 'summary');
const copy = part<HTMLButtonElement>(root, 'copy');
const copied = part(root, 'copied');
const text = part(root, 'report');
const adapter = part(document, 'adapter');

const WORDS = { ok: 'ok', wrong: 'WRONG', failed: 'FAILED', refused: 'refused', note: 'note' };
const number = (value: number) => (value === 0 ? '0' : value.toExponential(1));

/** The rows that are shown, by kernel and variant. */
const shown = new Map<string, HTMLElement>();

function showRow(row: SelftestRow) {
  const name = `${row.kernel} ${row.variant}`;
  const found = shown.get(name);
  const line = found ?? document.createElement('tr');
  if (!found) {
    shown.set(name, line);
    table.append(line);
  }
  const tried = row.cases > 0;
  line.dataset.status = tried || row.status !== 'ok' ? row.status : 'begun';
  const cells = [
    row.kernel,
    row.variant,
    line.dataset.status === 'begun' ? '…' : WORDS[row.status],
    tried ? String(row.cases) : '',
    row.error === null ? '' : number(row.error),
    tried ? number(row.limit) : '',
    tried ? row.seconds.toFixed(1) : '',
  ];
  line.replaceChildren(
    ...cells.map((cell) => {
      const element = document.createElement('td');
      element.textContent = cell;
      return element;
    }),
  );
  if (row.remark !== null) {
    const remark = document.createElement('p');
    remark.textContent = row.remark;
    line.children[2]?.append(remark);
  }
}

function finish(report: SelftestReport) {
  const count = (status: SelftestRow['status']) => report.rows.filter((row) => row.status === status).length;
  const right = count('ok');
  const others = [`${count('refused')} not for this adapter`, `${count('note')} to note`];
  const all = right + count('wrong') + count('failed');
  summary.textContent = `${right} of ${all} right, in ${report.seconds.toFixed(0)} s; ${others.join(', ')}`;
  root.dataset.ok = String(report.ok);
  text.textContent = JSON.stringify({ browser: navigator.userAgent, ...report }, null, 1);
  copy.disabled = false;
  show(report.ok ? 'done' : 'failed');
}

/** Copies the report; where the browser does not let it, it is there to be copied by hand. */
async function copyReport() {
  try {
    await navigator.clipboard.writeText(text.textContent ?? '');
    copied.textContent = 'copied';
  } catch {
    text.hidden = false;
    getSelection()?.selectAllChildren(text);
    copied.textContent = 'this browser does not let the page copy it: it is selected below';
  }
}

/** Tests, with `kernels` for the demo model's text. */
export function selftest(kernels: string | null) {
  const model = new URL('models/prose/', document.baseURI).href;
  const request = { kind: 'selftest', options: { model, ...(kernels !== null && { kernels }) } } as const;
  const fail = (why: string) => {
    say(why, true);
    show('failed');
  };
  const reply = (reply: Reply) => {
    switch (reply.kind) {
      case 'testing':
        adapter.textContent = reply.adapter || 'unnamed adapter';
        return show('working', 'testing');
      case 'row':
        return showRow(reply.row);
      case 'tested':
        return finish(reply.report);
      case 'failed':
        return fail(`The selftest failed: ${reply.message}`);
      case 'unsupported':
        worker.stop();
        say(explain(reply.lack), false);
        return show('unsupported');
    }
  };
  const worker = new EngineWorker({
    reply,
    died: (why) => fail(`The engine stopped: ${why}`),
    silent: (silent) => (silent ? say('The engine has not answered for half a minute. It may be busy.', true) : hush()),
  });
  const start = () => {
    hush();
    shown.clear();
    table.replaceChildren();
    summary.textContent = copied.textContent = '';
    delete root.dataset.ok;
    text.hidden = copy.disabled = true;
    show('loading');
    worker.restart(request);
  };
  reload.addEventListener('click', start);
  copy.addEventListener('click', copyReport);
  root.hidden = false;
  start();
}
