/** Parts of the page by their test ids, and what several tasks show. */

/** The part of an element that has a test id. */
export function part<T extends HTMLElement = HTMLElement>(root: ParentNode, testId: string): T {
  const found = root.querySelector<T>(`[data-testid="${testId}"]`);
  if (!found) throw new Error(`the page has no ${testId}`);
  return found;
}

const canFocus = (element: HTMLElement) => element.checkVisibility() && !element.matches(':disabled');

/** What had the focus when it was disabled or hidden. */
let left: HTMLElement | undefined;

/** Disables, enables, hides or shows controls; the focus that this takes comes back, or goes to one of `others`. */
export function keepFocus(change: () => void, others: HTMLElement[]) {
  const before = document.activeElement;
  change();
  if (before instanceof HTMLElement && before !== document.body && !canFocus(before)) left = before;
  const now = document.activeElement;
  if (now !== left && now !== document.body) left = undefined; // the reader went on
  const next = left && [left, ...others].find(canFocus);
  if (!next) return;
  left = undefined;
  next.focus({ preventScroll: true });
}

/** Adds the parts of a token view to a section, which says its title and perhaps its language. */
export function stamp(section: HTMLElement) {
  const template = document.querySelector<HTMLTemplateElement>('template#tokens');
  if (!template) throw new Error('the page has no template');
  const copy = document.importNode(template.content, true);
  const heading = copy.querySelector('h2');
  if (heading) heading.textContent = section.dataset.title ?? '';
  if (section.dataset.lang) part(copy, 'output').lang = section.dataset.lang;
  section.append(copy);
}

export interface Bar {
  id: number;
  label: string;
  probability: number;
}

/** "7.5 %" */
export const percent = (probability: number) => `${(100 * probability).toFixed(1)} %`;

/** A list of names with their probabilities as bars; with `pick`, each is a button. */
export function bars(entries: Bar[], pick?: (entry: Bar, index: number) => void): HTMLElement {
  const list = document.createElement('ol');
  list.className = 'bars';
  entries.forEach((entry, index) => {
    const row = document.createElement(pick ? 'button' : 'div');
    row.className = 'bar';
    row.dataset.id = String(entry.id);
    row.dataset.probability = String(entry.probability);
    row.style.setProperty('--share', String(entry.probability));
    const label = document.createElement('span');
    label.textContent = entry.label;
    const share = document.createElement('span');
    share.className = 'share';
    share.textContent = percent(entry.probability);
    row.append(label, share);
    if (row instanceof HTMLButtonElement) {
      row.type = 'button';
      row.addEventListener('click', () => pick?.(entry, index));
    }
    const item = document.createElement('li');
    item.append(row);
    list.append(item);
  });
  return list;
}

/** "0.42 s" */
export const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
