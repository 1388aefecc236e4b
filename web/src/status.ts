/** How the page is: its badge, and a message in place of what cannot be done. */
import { part } from './dom';
import type { Lack } from './protocol';

export type State = 'loading' | 'ready' | 'working' | 'done' | 'failed' | 'unsupported';

const badge = part(document, 'status');
const message = part(document, 'message');
const messageText = part(document, 'message-text');
export const reload = part<HTMLButtonElement>(document, 'reload');

/** Shows a state, in a word of its own. */
export function show(state: State, word: string = state) {
  badge.textContent = word;
  badge.dataset.state = state;
}

/** Shows a message, with the way on where there is one. */
export function say(text: string, canReload: boolean) {
  messageText.textContent = text;
  reload.hidden = !canReload;
  message.hidden = false;
}

/** Takes the message away. */
export function hush() {
  message.hidden = true;
}

export function explain(lack: Lack): string {
  switch (lack) {
    case 'insecure':
      return 'Browsers offer WebGPU to secure pages only: open this page over https, or from localhost.';
    case 'webgpu':
      return (
        'This browser has no WebGPU, which headwise needs. It is in Chrome and Edge 113 or newer, ' +
        'Firefox 141 (Windows) or 145 (macOS) or newer, and Safari 26 or newer.'
      );
    case 'adapter':
      return (
        'This browser knows WebGPU but offers no GPU adapter here: its driver may be on the browser’s ' +
        'block list, or hardware acceleration may be turned off in the settings.'
      );
    case 'wasm':
      return (
        'This browser has no WebAssembly, which headwise needs: it is turned off in the settings, or by a mode ' +
        'that protects the browser at the cost of what pages can do.'
      );
  }
}
