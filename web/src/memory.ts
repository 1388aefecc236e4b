/** The measured choice of kernels from one visit to the next. Workers have no `localStorage`, so the page keeps it. */
const KEY = 'headwise.kernels';

export function recall(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

export function remember(note: string) {
  try {
    localStorage.setItem(KEY, note);
  } catch {
    // the next visit measures again
  }
}
