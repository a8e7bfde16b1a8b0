// Draws every panel of the dashboards: `node draw.mjs --prometheus http://127.0.0.1:9090 --out ../../docs/grafana`.
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

import { build } from 'esbuild';
import { chromium } from 'playwright-core';
import upng from 'upng-js';

import { read } from './dashboard.mjs';

/** The same picture in 128 colours, a third as large. */
function fewColours(png) {
  const image = upng.decode(png);
  return Buffer.from(upng.encode(upng.toRGBA8(image), image.width, image.height, 128));
}

const here = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    prometheus: { type: 'string', default: 'http://127.0.0.1:9090' },
    out: { type: 'string', default: join(here, 'out') },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    // What is chosen on dashboards of one run; the first in the drop-down where it is left out.
    job: { type: 'string' },
    pipeline: { type: 'string' },
    instance: { type: 'string' },
    // The time shown: so many minutes before `end`, seconds since 1970.
    minutes: { type: 'string', default: '30' },
    end: { type: 'string', default: String(Math.floor(Date.now() / 1000)) },
    // The interval at which Prometheus scrapes, in seconds.
    scrape: { type: 'string', default: '5' },
    width: { type: 'string', default: '1400' },
  },
});

const range = { start: Number(options.end) - 60 * Number(options.minutes), end: Number(options.end) };
const folder = mkdtempSync(join(tmpdir(), 'draw-'));
try {
  await build({
    entryPoints: [join(here, 'page.jsx')],
    outfile: join(folder, 'page.js'),
    bundle: true,
    format: 'iife',
    jsx: 'automatic',
    loader: { '.svg': 'dataurl', '.png': 'dataurl', '.woff2': 'dataurl', '.ttf': 'dataurl' },
    define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    logLevel: 'error',
  });
  const page = '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css"><div id="root"></div><script src="page.js"></script>';
  writeFileSync(join(folder, 'page.html'), page);
  appendFileSync(join(folder, 'page.css'), 'button { color: inherit; background: none; border: 0; padding: 0; font: inherit }');

  const browser = await chromium.launch({
    executablePath: options.chromium,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  try {
    mkdirSync(options.out, { recursive: true });
    for (const name of ['pipeline', 'learning', 'fleet']) {
      const shown = await read(join(here, '../dashboards', `${name}.json`), options.prometheus, options, range, Number(options.scrape));
      const tab = await browser.newPage({ viewport: { width: Number(options.width), height: 900 } });
      const faults = [];
      tab.on('pageerror', (error) => faults.push(error.stack ?? error.message));
      await tab.goto(pathToFileURL(join(folder, 'page.html')).href);
      await tab.evaluate((it) => window.draw(it), shown);
      await tab.waitForSelector('#root[data-drawn]', { timeout: 30_000 });
      await tab.waitForTimeout(500); // canvases are painted in the next frames
      if (faults.length > 0) throw new Error(`${name}: ${faults.join('\n')}`);
      const path = resolve(options.out, `${name}.png`);
      writeFileSync(path, fewColours(await tab.locator('#root').screenshot()));
      console.log(path);
      await tab.close();
    }
  } finally {
    await browser.close();
  }
} finally {
  rmSync(folder, { recursive: true });
}
