// Holds the dashboards against the types that Grafana publishes: the dashboard as a whole, and each panel's options and field settings, which
// a dashboard's own type leaves open. A key that is not known there, or a value that is not allowed, is an error.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import ts from 'typescript';

const KINDS = { timeseries: 'TimeSeries', stat: 'Stat', table: 'Table', 'state-timeline': 'StateTimeline' };

const here = dirname(fileURLToPath(import.meta.url));
const module = (kind) =>
  `@grafana/schema/dist/esm/raw/composable/${kind.replace('-', '')}/panelcfg/x/${KINDS[kind]}PanelCfg_types.gen`;

const lines = ["import type { Dashboard, DataQuery } from '@grafana/schema';"];
for (const [kind, name] of Object.entries(KINDS)) lines.push(`import type * as ${name} from '${module(kind)}';`);
lines.push(
  '// Values of enumerations, as files have them; nothing need be there that has a default.',
  'type Plain<T> = T extends string ? `${T}` : T extends (infer I)[] ? Plain<I>[] : T extends object ? { [K in keyof T]?: Plain<T[K]> } : T;',
  '// What Prometheus is asked, beside what every data source knows.',
  'type Query = DataQuery & { expr: string; legendFormat: string; editorMode: "code"; instant: boolean; range: boolean; format?: "table" };',
);
for (const name of ['pipeline', 'learning', 'fleet']) {
  const dashboard = JSON.parse(readFileSync(join(here, '../dashboards', `${name}.json`), 'utf8'));
  for (const panel of dashboard.panels.filter(({ type }) => type !== 'row')) {
    const kind = KINDS[panel.type];
    if (!kind) throw new Error(`${name} / ${panel.title}: a panel of type ${panel.type}`);
    lines.push(`// ${name} / ${panel.title}`);
    lines.push(`(${JSON.stringify(panel.options)}) satisfies Plain<${kind}.Options>;`);
    const { custom = {} } = panel.fieldConfig.defaults;
    // A stat has no field settings of its own.
    lines.push(`(${JSON.stringify(custom)}) satisfies Plain<${panel.type === 'stat' ? 'object' : `${kind}.FieldConfig`}>;`);
    lines.push(`(${JSON.stringify(panel.targets)}) satisfies Query[];`);
  }
  lines.push(`(${JSON.stringify(dashboard)}) satisfies Plain<Dashboard>;`);
}

const file = join(here, 'types-of-dashboards.ts');
writeFileSync(file, lines.join('\n'));
try {
  const options = { noEmit: true, strict: true, skipLibCheck: true, module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, target: ts.ScriptTarget.ESNext, types: [] };
  const faults = ts.getPreEmitDiagnostics(ts.createProgram([file], options));
  for (const fault of faults) {
    const at = fault.file?.getLineAndCharacterOfPosition(fault.start);
    const place = at && lines.slice(0, at.line + 1).findLast((line) => line.startsWith('//'));
    console.error(`${place ?? ''} (line ${at?.line + 1}): ${ts.flattenDiagnosticMessageText(fault.messageText, '\n')}`);
  }
  if (faults.length > 0) process.exitCode = 1;
  else console.log('the dashboards are of the types that @grafana/schema gives');
} finally {
  rmSync(file);
}
