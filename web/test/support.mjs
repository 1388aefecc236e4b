// What the tests share: commands found on the PATH, a static server, browsers with WebGPU.
import { accessSync, constants, existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { delimiter, extname, join, normalize, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import puppeteer from 'puppeteer-core';

export const web = fileURLToPath(new URL('..', import.meta.url));
export const dist = join(web, 'dist');

/** A file of one of the models. */
export const modelFile = (model, file) => readFileSync(join(web, '..', 'models', model, file));
export const modelJson = (model, file) => JSON.parse(modelFile(model, file));

/** The path of a file of the screenshots' folder. */
export function artefact(name) {
  const folder = join(web, 'test-results');
  mkdirSync(folder, { recursive: true });
  return join(folder, name);
}

/** The value of an environment variable that the test cannot do without. */
export function required(variable, what) {
  const value = process.env[variable];
  if (!value) throw new Error(`set ${variable} to ${what}`);
  if (!existsSync(value)) throw new Error(`${variable}: there is no ${value}`);
  return resolve(value);
}

function findCommand(variable, names) {
  if (process.env[variable]) return process.env[variable];
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    for (const name of names) {
      const path = join(folder, name);
      try {
        accessSync(path, constants.X_OK);
        return path;
      } catch {
        // the next one
      }
    }
  }
  throw new Error(`none of ${names.join(', ')} is on the PATH: run scripts/setup browsers, or set ${variable}`);
}

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.wasm': 'application/wasm',
};

/**
 * Serves a folder on a loopback port under /some/folder/, as any plain host would; its front page without the last slash,
 * too. `instead(path)` may give another answer: its status, type and body.
 */
export async function serve(folder, instead = () => undefined) {
  const base = '/some/folder/';
  const missing = [];
  const server = createServer((request, response) => {
    let path = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
    const other = instead(path);
    if (other) {
      response.writeHead(other.status ?? 200, { 'content-type': other.type ?? 'text/plain' }).end(other.body);
      return;
    }
    if (`${path}/` === base) path += '/';
    let file = path.startsWith(base) ? join(folder, normalize(`/${path.slice(base.length)}`)) : undefined;
    if (file?.endsWith('/')) file += 'index.html';
    if (!file || !existsSync(file) || !statSync(file).isFile()) {
      missing.push(path);
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'application/octet-stream' });
    response.end(readFileSync(file));
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return {
    url: `http://127.0.0.1:${server.address().port}${base}`,
    /** Paths that were asked for in vain. */
    missing,
    close: () => new Promise((done) => { server.close(done); server.closeAllConnections(); }),
  };
}

const CHROMIUM_FLAGS = [
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-default-apps',
  '--disable-sync',
  '--disable-quic',
  '--no-first-run',
  '--no-pings',
];

/** Both are needed: without either, headless Chromium on Linux has no adapter. */
export const CHROMIUM_WEBGPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];

export function launchChromium(flags = CHROMIUM_WEBGPU) {
  return chromium.launch({
    executablePath: findCommand('CHROMIUM', ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']),
    headless: true,
    chromiumSandbox: process.getuid?.() !== 0, // the sandbox refuses to run as root
    args: [...CHROMIUM_FLAGS, ...flags],
  });
}

export const FIREFOX_WEBGPU = {
  'dom.webgpu.enabled': true,
  'dom.webgpu.workers.enabled': true,
  'gfx.webgpu.ignore-blocklist': true,
  'gfx.webgpu.force-enabled': true,
  'ui.prefersReducedMotion': 1, // colours change at once
};

export function launchFirefox(preferences = FIREFOX_WEBGPU) {
  return puppeteer.launch({
    browser: 'firefox',
    executablePath: findCommand('FIREFOX', ['firefox-esr', 'firefox']),
    headless: true,
    extraPrefsFirefox: preferences,
  });
}
