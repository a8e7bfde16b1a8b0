// What is inside a panel, by its type.
import { useEffect, useState } from 'react';

import { dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, transformDataFrame } from '@grafana/data';
import { BigValue, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

import { configured, frames } from './frames.mjs';
import { Timeline } from './timeline.jsx';

export function Content({ panel, range, theme, width, height }) {
  const [data, setData] = useState();
  useEffect(() => {
    const set = (all) => setData(configured(all, panel, theme));
    const done = transformDataFrame(panel.transformations ?? [], frames(panel, range)).subscribe(set);
    return () => done.unsubscribe();
  }, []);
  if (!data) return null;
  const time = { from: dateTime(range.start * 1000), to: dateTime(range.end * 1000) };
  const shown = { panel, data, width, height, theme, range: { ...time, raw: time } };
  switch (panel.type) {
    case 'timeseries':
      return <Series {...shown} />;
    case 'stat':
      return <Stat {...shown} />;
    case 'table':
      return <TableNG data={data[0]} width={width} height={height} sortBy={panel.options.sortBy} />;
    case 'state-timeline':
      return <Timeline {...shown} />;
    default:
      throw new Error(`a panel of type ${panel.type}`);
  }
}

function Series({ panel, data, width, height, range }) {
  if (data.length === 0) return <div>No data</div>;
  return <TimeSeries frames={data} timeRange={range} timeZone="utc" width={width} height={height} legend={panel.options.legend} options={panel.options} />;
}

function Stat({ panel, data, width, height, theme }) {
  const { reduceOptions, textMode, colorMode, graphMode, justifyMode } = panel.options;
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions,
    replaceVariables: (text) => text,
    theme,
    data,
    sparkline: graphMode !== 'none',
    timeZone: 'utc',
  });
  const factors = getDisplayValueAlignmentFactors(values);
  const one = ({ value, width, height }) => (
    <BigValue
      value={value.display}
      sparkline={value.sparkline}
      textMode={textMode}
      colorMode={colorMode}
      graphMode={graphMode}
      justifyMode={justifyMode}
      alignmentFactors={factors}
      width={width}
      height={height}
      theme={theme}
    />
  );
  return <VizRepeater getValues={() => values} renderValue={one} width={width} height={height} source={data} orientation={panel.options.orientation} />;
}
