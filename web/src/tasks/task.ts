/** What the page asks of each of its tasks. */
import type { Info, Result, Work } from '../protocol';

/** What a task may ask of the page. */
export interface Page {
  /** Hands work to the engine, if one is loaded and idle; says whether it did. */
  start(work: Work): boolean;
  /** Ends the generation under way. */
  stop(): void;
  /** Shows a message of a task, unless the reader has left it. */
  complain(by: Task, text: string): void;
  /** Has a screen reader say something. */
  speak(text: string): void;
}

export interface Task {
  /** The folder of its model, from the page on. */
  readonly model: string;
  /** The page's word for its work under way. */
  readonly busy: string;
  /** Its model is loaded. */
  ready(info: Info): void;
  /** The engine can or cannot take work; `working` while it does this task's. */
  enable(idle: boolean, working: boolean): void;
  /** Part of what its work gave. */
  show(result: Result): void;
  /** Its work failed; what there is stays. */
  failed?(): void;
  /** Starts work with what its controls say. */
  run(): void;
}

/** The middle layer of `count`. */
export const middle = (count: number) => Math.floor(count / 2);

export const layerNames = (count: number, prefix = 'layer') => Array.from({ length: count }, (_, i) => `${prefix} ${i}`);
