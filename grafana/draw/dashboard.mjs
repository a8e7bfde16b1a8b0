// What a dashboard shows, asked of a Prometheus as Grafana would ask: variables chosen one after the other, then every query.
import { readFileSync } from 'node:fs';

/** Points along a graph, at most; Grafana asks for about one a pixel. */
const POINTS = 400;

async function ask(prometheus, path, parameters) {
  const url = new URL(`/api/v1/${path}`, prometheus);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.append(name, value);
  const answer = await (await fetch(url)).json();
  if (answer.status !== 'success') throw new Error(`${answer.error}: ${parameters.query ?? parameters['match[]']}`);
  return answer.data;
}

/** The dashboard of a file, with what it shows in place of what it asks. */
export async function read(path, prometheus, wanted, range, scrapeSeconds) {
  const dashboard = JSON.parse(readFileSync(path, 'utf8'));
  const step = Math.max(scrapeSeconds, Math.ceil((range.end - range.start) / POINTS));
  const rate = Math.max(step + scrapeSeconds, 4 * scrapeSeconds);
  const given = { __rate_interval: `${rate}s`, __range: `${Math.ceil(range.end - range.start)}s` };
  const chosen = {};
  const fill = (query) =>
    query.replace(/\$(\w+)/g, (whole, name) => given[name] ?? chosen[name]?.query ?? whole);
  for (const variable of dashboard.templating.list.filter((one) => one.type === 'query')) {
    const [, selector, label] = variable.query.query.match(/^label_values\((.*), (\w+)\)$/);
    const values = await ask(prometheus, `label/${label}/values`, { 'match[]': fill(selector), ...range });
    if (variable.multi) {
      chosen[variable.name] = { query: variable.allValue, shown: 'All' };
    } else {
      const value = wanted[variable.name] ?? values[0];
      if (!values.includes(value)) throw new Error(`${variable.name} ${value} is not among ${values}`);
      chosen[variable.name] = { query: value, shown: value };
    }
  }
  for (const panel of dashboard.panels.filter((one) => one.type !== 'row')) {
    panel.answers = await Promise.all(
      panel.targets.map(async (target) => {
        const query = fill(target.expr);
        const data = target.instant
          ? await ask(prometheus, 'query', { query, time: range.end })
          : await ask(prometheus, 'query_range', { query, ...range, step });
        return { target, step, result: data.result };
      }),
    );
  }
  return { dashboard, range, variables: Object.entries(chosen).map(([name, { shown }]) => ({ name, shown })) };
}
