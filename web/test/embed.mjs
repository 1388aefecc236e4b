// node embed.mjs FOLDER: the text that the page of docs/embed.md writes in Chromium.
import { launchChromium, serve } from './support.mjs';

const [server, browser] = await Promise.all([serve(process.argv[2]), launchChromium()]);
try {
  const page = await browser.newPage();
  await page.goto(server.url);
  await page.waitForSelector('#stop', { state: 'detached', timeout: 120_000 });
  console.log(await page.textContent('#text'));
} finally {
  await browser.close();
  await server.close();
}
