// A state timeline. Grafana does not publish its own as a component; this draws what it would, a bar a series, coloured by the value mappings.
export function Timeline({ data, width, height, range }) {
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const left = 200;
  const bottom = 24;
  const line = (height - bottom) / Math.max(data.length, 1);
  const x = (time) => left + ((time - from) / (to - from)) * (width - left);
  const ticks = Array.from({ length: 6 }, (_, k) => from + ((k + 0.5) / 6) * (to - from));
  return (
    <svg width={width} height={height} fontSize={12} fill="#ccccdc">
      {data.map(({ fields: [times, field] }, k) => (
        <g key={k}>
          <text x={left - 8} y={(k + 0.5) * line + 4} textAnchor="end">
            {field.state?.displayName ?? field.config.displayNameFromDS}
          </text>
          {runs(times.values, field.values).map(({ value, start, end }) => {
            const { text, color } = field.display(value);
            const wide = x(end) - x(start);
            return (
              <g key={start}>
                <rect x={x(start)} width={wide} y={(k + 0.1) * line} height={0.8 * line} fill={color} fillOpacity={0.8} />
                {wide > 60 && (
                  <text x={x(start) + 4} y={(k + 0.5) * line + 4} fill="#111">
                    {text}
                  </text>
                )}
              </g>
            );
          })}
        </g>
      ))}
      {ticks.map((time) => (
        <text key={time} x={x(time)} y={height - 6} textAnchor="middle" fillOpacity={0.7}>
          {new Date(time).toISOString().slice(11, 19)}
        </text>
      ))}
    </svg>
  );
}

/** Equal values one after the other, taken together; nothing where there is no value. */
function runs(times, values) {
  const all = [];
  values.forEach((value, k) => {
    if (value === null || Number.isNaN(value)) return;
    const end = times[Math.min(k + 1, times.length - 1)];
    const last = all.at(-1);
    if (last && last.value === value && last.end === times[k]) last.end = end;
    else all.push({ value, start: times[k], end });
  });
  return all;
}
