// Puts the demo models into web/public/models/ as the page reads them: each weights file whole, where its crates have shards,
// so that a browser asks for one file and for none that is not there.

import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const web = import.meta.dirname;
const WEIGHTS = 'model.safetensors';

/** The header of a safetensors file, and its data. */
function parse(bytes) {
  const data = 8 + Number(bytes.readBigUInt64LE());
  return [JSON.parse(bytes.subarray(8, data)), bytes.subarray(data)];
}

/** One safetensors file of those that an index lists. */
function joined(folder) {
  const { weight_map } = JSON.parse(readFileSync(join(folder, `${WEIGHTS}.index.json`)));
  const whole = {};
  const parts = [];
  let start = 0;
  for (const file of new Set(Object.values(weight_map).sort())) {
    const [{ __metadata__, ...tensors }, data] = parse(readFileSync(join(folder, file)));
    for (const [name, { data_offsets, ...tensor }] of Object.entries(tensors)) {
      whole[name] = { ...tensor, data_offsets: data_offsets.map((offset) => offset + start) };
    }
    parts.push(data);
    start += data.length;
  }
  const json = JSON.stringify(whole);
  const header = Buffer.from(json.padEnd(8 * Math.ceil(Buffer.byteLength(json) / 8)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...parts]);
}

for (const name of ['prose', 'ui-en-de', 'ui-fill', 'fashion']) {
  const from = join(web, '..', 'models', name);
  const to = join(web, 'public', 'models', name);
  rmSync(to, { recursive: true, force: true });
  mkdirSync(to, { recursive: true });
  for (const file of ['config.json', 'generation_config.json', 'tokenizer.json', WEIGHTS, 'examples']) {
    if (existsSync(join(from, file))) cpSync(join(from, file), join(to, file), { recursive: true });
  }
  if (!existsSync(join(to, WEIGHTS))) writeFileSync(join(to, WEIGHTS), joined(from));
}
