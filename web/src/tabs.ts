/** The tabs that choose a task. The address says which one is chosen: #translate, … */
import { part } from './dom';
import type { TaskName } from './protocol';

const NAMES: TaskName[] = ['write', 'translate', 'fill', 'see'];

const named = (hash: string) => NAMES.find((name) => `#${name}` === hash) ?? 'write';

/** Shows the panel of the chosen task, now and whenever it changes, and tells. */
export function watchTabs(chosen: (name: TaskName) => void) {
  const tabs = NAMES.map((name) => part<HTMLButtonElement>(document, `tab-${name}`));
  const choose = () => {
    const name = named(location.hash);
    tabs.forEach((tab, index) => {
      const selected = NAMES[index] === name;
      tab.setAttribute('aria-selected', String(selected));
      tab.tabIndex = selected ? 0 : -1;
      part(document, `panel-${NAMES[index]}`).hidden = !selected;
    });
    chosen(name);
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener('click', () => {
      if (NAMES[index] !== named(location.hash)) location.hash = `#${NAMES[index]}`;
    });
    // Arrows move the focus alone: a tab loads a model, which the reader asks for by Enter or Space.
    tab.addEventListener('keydown', (event) => {
      const last = tabs.length - 1;
      const steps: Record<string, number> = {
        ArrowRight: index === last ? 0 : index + 1,
        ArrowLeft: index === 0 ? last : index - 1,
        Home: 0,
        End: last,
      };
      const next = steps[event.key];
      if (next === undefined) return;
      event.preventDefault();
      tabs[next]?.focus();
    });
  });
  addEventListener('hashchange', choose);
  choose();
}
