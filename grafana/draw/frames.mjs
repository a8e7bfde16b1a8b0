// From Prometheus' answers to data frames, as Grafana's data source makes them, with the panel's field settings applied.
import { FieldConfigOptionsRegistry, FieldType, applyFieldOverrides, cacheFieldDisplayNames, getFieldDisplayName, identityOverrideProcessor, toDataFrame } from '@grafana/data';

const legend = (format, labels) => format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');

/** A frame a series: time and value. */
function series({ target, step, result }, range) {
  return result
    .map((one) => {
      const samples = new Map((one.values ?? [one.value]).map(([time, value]) => [time, Number(value)]));
      const times = [];
      if (target.instant) times.push(...samples.keys());
      else for (let time = range.start; time <= range.end; time += step) times.push(time);
      const name = legend(target.legendFormat, one.metric);
      const value = { name: 'Value', type: FieldType.number, labels: one.metric, config: name ? { displayNameFromDS: name } : {} };
      return toDataFrame({
        refId: target.refId,
        name,
        fields: [
          { name: 'Time', type: FieldType.time, values: times.map((time) => time * 1000) },
          { ...value, values: times.map((time) => samples.get(time) ?? null) },
        ],
      });
    })
    .sort((a, b) => getFieldDisplayName(a.fields[1]).localeCompare(getFieldDisplayName(b.fields[1]), 'en', { numeric: true }));
}

/** One frame: a row a series, a column a label. */
function table({ target, result }, several) {
  const labels = [...new Set(result.flatMap((one) => Object.keys(one.metric)))].sort();
  const column = (label) => ({ name: label, type: FieldType.string, values: result.map((one) => one.metric[label] ?? '') });
  const value = { name: several ? `Value #${target.refId}` : 'Value', type: FieldType.number, values: result.map((one) => Number(one.value[1])) };
  const time = { name: 'Time', type: FieldType.time, values: result.map((one) => one.value[0] * 1000) };
  return toDataFrame({ refId: target.refId, fields: [time, ...labels.map(column), value] });
}

export function frames(panel, range) {
  if (panel.type === 'table') return panel.answers.map((answer) => table(answer, panel.answers.length > 1));
  return panel.answers.flatMap((answer) => series(answer, range));
}

/** The settings that a panel uses, each taken as it is. */
function settings({ defaults, overrides }) {
  const plain = Object.keys(defaults).filter((id) => id !== 'custom');
  const custom = Object.keys(defaults.custom ?? {}).map((name) => `custom.${name}`);
  const overridden = overrides.flatMap(({ properties }) => properties.map(({ id }) => id));
  return new FieldConfigOptionsRegistry(() =>
    [...new Set([...plain, ...custom, ...overridden])].map((id) => ({
      id,
      path: id.replace(/^custom\./, ''),
      name: id,
      isCustom: id.startsWith('custom.'),
      shouldApply: () => true,
      process: identityOverrideProcessor,
    })),
  );
}

export function configured(data, panel, theme) {
  const all = applyFieldOverrides({
    data,
    fieldConfig: panel.fieldConfig,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
    fieldConfigRegistry: settings(panel.fieldConfig),
  });
  cacheFieldDisplayNames(all);
  return all;
}
