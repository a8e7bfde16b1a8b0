// A dashboard on a page: its title, what is chosen, its rows and panels on Grafana's grid. Panels are drawn with Grafana's own components.
import { Component } from 'react';
import { createRoot } from 'react-dom/client';

import { ThemeContext, createTheme, standardTransformers, standardTransformersRegistry } from '@grafana/data';
import { PanelChrome } from '@grafana/ui';

import { Content } from './panel.jsx';

const CELL = 30; // of Grafana's grid, in pixels; between two lies a gap
const GAP = 8;
const theme = createTheme({ colors: { mode: 'dark' } });

function place({ x, y, w, h }, width) {
  const column = (width - 23 * GAP) / 24;
  return {
    position: 'absolute',
    left: x * (column + GAP),
    top: y * (CELL + GAP),
    width: w * column + (w - 1) * GAP,
    height: h * CELL + (h - 1) * GAP,
  };
}

class Guard extends Component {
  state = {};
  static getDerivedStateFromError(error) {
    return { error };
  }
  componentDidCatch(error) {
    setTimeout(() => {
      throw new Error(`${this.props.title}: ${error.stack}`);
    });
  }
  render() {
    return this.state.error ? null : this.props.children;
  }
}

function Panel({ panel, range, style }) {
  return (
    <div style={style}>
      <PanelChrome width={style.width} height={style.height} title={panel.title} description={panel.description}>
        {(width, height) => (
          <Guard title={panel.title}>
            <Content panel={panel} range={range} theme={theme} width={width} height={height} />
          </Guard>
        )}
      </PanelChrome>
    </div>
  );
}

function Row({ panel, style }) {
  return <div style={{ ...style, display: 'flex', alignItems: 'center', ...theme.typography.h5 }}>⌄ {panel.title}</div>;
}

function Chosen({ variables }) {
  const label = { background: theme.colors.background.secondary, padding: '4px 8px', border: `1px solid ${theme.colors.border.weak}` };
  return (
    <div style={{ display: 'flex', gap: 8, height: 40 }}>
      {variables.map(({ name, shown }) => (
        <div key={name} style={{ display: 'flex', height: 30 }}>
          <div style={label}>{name}</div>
          <div style={{ ...label, color: theme.colors.text.primary }}>{shown}</div>
        </div>
      ))}
    </div>
  );
}

function Dashboard({ dashboard, variables, range, width }) {
  const lines = Math.max(...dashboard.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <div style={{ padding: 16, ...theme.typography.bodySmall, color: theme.colors.text.secondary }}>
      <div style={{ ...theme.typography.h3, color: theme.colors.text.primary, height: 36 }}>{dashboard.title}</div>
      <Chosen variables={variables} />
      <div style={{ position: 'relative', height: lines * (CELL + GAP) }}>
        {dashboard.panels.map((panel) => {
          const Kind = panel.type === 'row' ? Row : Panel;
          return <Kind key={panel.title} panel={panel} range={range} style={place(panel.gridPos, width - 32)} />;
        })}
      </div>
    </div>
  );
}

standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: () => Promise.resolve(transformation),
  })),
);
document.body.style.cssText = `margin: 0; background: ${theme.colors.background.canvas}; font-family: ${theme.typography.fontFamily}`;

window.draw = (shown) => {
  const root = document.getElementById('root');
  createRoot(root).render(
    <ThemeContext.Provider value={theme}>
      <Dashboard {...shown} width={document.documentElement.clientWidth} />
    </ThemeContext.Provider>,
  );
  requestAnimationFrame(() => requestAnimationFrame(() => root.setAttribute('data-drawn', '')));
};
